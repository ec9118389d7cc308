// The speed of the CPU's GEMM, the first part of `make bench`, on shapes of the `bench` preset:
// d_model 256, 8 heads, q.k 48 wide, v 32, kv_lora 64, 16 experts of width 512, sequences of 256
// tokens, 8 at a time. Gradients of weights are exact sums of pieces of 128 rows (grid.h), as in
// training. GFLOP/s counts useful work: half of a causal product.
#include <algorithm>
#include <iomanip>
#include <ostream>
#include <vector>

#include "model/base/clock.h"
#include "model/machine/device.h"
#include "test/study/gemm_bench.h"

namespace duet {
namespace {

struct Shape {
  const char* what;
  Form form;
  int64_t m, n, k;  // per head; grouped: over all groups
  // a causal product for each head of a sequence; a product for each group of rows
  int heads = 0, groups = 0;
};

constexpr Shape kShapes[] = {
    {"expert up, one expert", Form::NN, 2048, 512, 256},
    {"  its dx", Form::NT, 2048, 256, 512},
    {"  its dW", Form::TN, 256, 512, 2048},
    {"q", Form::NN, 2048, 384, 256},
    {"kv down", Form::NN, 2048, 80, 256},
    {"kv up", Form::NN, 2048, 512, 64},
    {"router", Form::NN, 2048, 16, 256},
    {"16 experts up", Form::NN, 4096, 512, 256, 0, 16},
    {"  their dx", Form::NT, 4096, 256, 512, 0, 16},
    {"  their dW", Form::TN, 256, 512, 4096, 0, 16},
    {"attention scores q k^T", Form::NT, 256, 256, 48, 8},
    {"attention p v", Form::NN, 256, 32, 256, 8},
    {"  dv = p^T do", Form::TN, 256, 32, 256, 8},
    {"tiny: dense", Form::NN, 512, 128, 64},
    {"tiny: dW", Form::TN, 64, 128, 512},
};

// Heads lie side by side in the rows of q, k, v and o; the [query, key] matrix of each head is
// contiguous.
Gemm place(Device& device, const Shape& s, std::vector<Buf>& keep) {
  const bool tn = s.form == Form::TN, nt = s.form == Form::NT, causal = s.heads > 0;
  const int64_t groups = std::max(s.groups, 1), batch = std::max(s.heads, 1);
  const auto matrix = [&](int64_t rows, int64_t cols, bool side_by_side, int64_t& stride,
                          Dtype dtype = Dtype::f32) {
    stride = side_by_side ? cols : rows * cols;
    keep.push_back(device.buffer(rows * batch, cols, dtype, Use::scratch));
    for (int64_t i = 0; i < keep.back()->size(); i++) keep.back()->set(i, double(i % 17) - 8);
    return Tensor{keep.back()->data, dtype, rows, cols, side_by_side ? cols * batch : cols};
  };
  Gemm g = {.form = s.form, .accumulate = tn && !causal, .batch = int(batch), .causal = causal};
  g.a = tn ? matrix(s.k, s.m, false, g.stride_a) : matrix(s.m, s.k, causal && nt, g.stride_a);
  g.b = nt ? matrix(groups * s.n, s.k, causal, g.stride_b)
           : matrix(tn ? s.k : groups * s.k, s.n, causal, g.stride_b);
  g.c = matrix(tn ? groups * s.m : s.m, s.n, causal && !nt, g.stride_c,
      tn && !causal ? Dtype::f64 : Dtype::f32);
  (tn ? g.c : g.b).rows /= groups;
  (tn ? g.stride_c : g.stride_b) /= groups;
  return g;
}

}  // namespace

void bench_gemm(int threads, std::ostream& out) {
  auto device = make_cpu_device(threads);
  out << "GEMM, fp32, " << device->name() << ", useful GFLOP/s:\n" << std::fixed;
  for (const Shape& s : kShapes) {
    std::vector<Buf> keep;
    Gemm g = place(*device, s, keep);
    std::vector<int64_t> pieces;
    if (g.c.dtype == Dtype::f64)
      for (int64_t row = 0; row <= s.k; row += 128) pieces.push_back(row);
    g.pieces = pieces;
    std::vector<int64_t> offsets;
    for (int i = 0; s.groups && i <= s.groups; i++)
      offsets.push_back((s.form == Form::TN ? s.k : s.m) * i / s.groups);
    g.groups = offsets;
    double best = 1e30;
    for (const double stop = seconds_now() + 0.06; seconds_now() < stop;) {
      const double start = seconds_now();
      for (int i = 0; i < 4; i++) device->gemm(g);
      best = std::min(best, (seconds_now() - start) / 4);
    }
    const double flops = double(s.m * s.n * s.k) * (s.heads ? s.heads : 2);
    out << "  " << std::left << std::setw(30) << s.what << form_name(s.form) << std::right
        << std::setw(6) << s.m << " x" << std::setw(5) << s.n << " x" << std::setw(5) << s.k
        << std::setw(9) << std::setprecision(1) << best * 1e6 << " us" << std::setw(8)
        << flops / best * 1e-9 << "\n";
  }
}

}  // namespace duet
