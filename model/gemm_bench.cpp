// The shapes of the `bench` preset: d_model 256, 8 heads, q.k 48 wide (32 + 16 rotary), v 32, kv_lora 64, 16 experts of width
// 512, sequences of 256 tokens, 8 at a time. GFLOP/s counts useful work: half of a causal product.
#include "model/gemm_bench.h"

#include <chrono>
#include <iomanip>
#include <vector>

#include "model/device.h"

namespace duet {
namespace {

struct Shape {
  const char* what;
  Form form;
  int64_t m, n, k;        // per matrix; grouped: over all groups
  int batch = 1, heads = 0, groups = 0;
  bool causal = false;
  bool accumulate = false;
};

constexpr Shape kShapes[] = {
    {"expert up + gate, one expert", Form::NN, 2048, 1024, 256},
    {"  its dx", Form::NT, 2048, 256, 1024},
    {"  its dW", Form::TN, 256, 1024, 2048, 1, 0, 0, false, true},
    {"shared expert down", Form::NN, 2048, 256, 512},
    {"  its dx", Form::NT, 2048, 512, 256},
    {"  its dW", Form::TN, 512, 256, 2048, 1, 0, 0, false, true},
    {"head", Form::NN, 2048, 256, 256},
    {"q", Form::NN, 2048, 384, 256},
    {"kv down", Form::NN, 2048, 80, 256},
    {"  its dx", Form::NT, 2048, 256, 80},
    {"  its dW", Form::TN, 256, 80, 2048, 1, 0, 0, false, true},
    {"kv up", Form::NN, 2048, 512, 64},
    {"router", Form::NN, 2048, 16, 256},
    {"16 experts up + gate", Form::NN, 4096, 1024, 256, 1, 0, 16},
    {"  their dx", Form::NT, 4096, 256, 1024, 1, 0, 16},
    {"  their dW", Form::TN, 256, 1024, 4096, 1, 0, 16, false, true},
    {"16 experts down", Form::NN, 4096, 256, 512, 1, 0, 16},
    {"  their dx", Form::NT, 4096, 512, 256, 1, 0, 16},
    {"  their dW", Form::TN, 512, 256, 4096, 1, 0, 16, false, true},
    {"attention scores q k^T", Form::NT, 256, 256, 48, 8, 8, 0, true},
    {"attention p v", Form::NN, 256, 32, 256, 8, 8, 0, true},
    {"  dp = do v^T", Form::NT, 256, 256, 32, 8, 8, 0, true},
    {"  dv = p^T do", Form::TN, 256, 32, 256, 8, 8, 0, true},
    {"  dq = ds k", Form::NN, 256, 48, 256, 8, 8, 0, true},
    {"  dk = ds^T q", Form::TN, 256, 48, 256, 8, 8, 0, true},
    {"tiny: expert", Form::NN, 64, 32, 64},
    {"tiny: dense", Form::NN, 512, 128, 64},
    {"tiny: dW", Form::TN, 64, 128, 512},
};

// Heads lie side by side in the rows of q, k, v and o; the [query, key] matrix of each head is contiguous.
Gemm place(Device& device, const Shape& s, std::vector<Buf>& keep) {
  const bool tn = s.form == Form::TN, nt = s.form == Form::NT;
  const int64_t groups = std::max(s.groups, 1);
  auto matrix = [&](int64_t rows, int64_t cols, bool by_head, int64_t& stride) {
    const int64_t ld = by_head ? cols * s.heads : cols;
    stride = by_head ? cols : rows * cols;
    keep.push_back(device.buffer(rows * (by_head ? 1 : s.batch), ld, Dtype::f32, Use::scratch));
    for (int64_t i = 0; i < keep.back()->size(); i++) keep.back()->row<float>(0)[i] = float(i % 17) - 8;
    return Tensor{keep.back()->data, Dtype::f32, rows, cols, ld};
  };
  Gemm g = {.form = s.form, .accumulate = s.accumulate, .batch = s.batch, .causal = s.causal};
  const bool heads = s.heads > 0;
  g.a = tn ? matrix(s.k, s.m, heads && !s.causal, g.stride_a) : matrix(s.m, s.k, heads && nt, g.stride_a);
  g.b = nt ? matrix(groups * s.n, s.k, heads, g.stride_b) : matrix(tn ? s.k : groups * s.k, s.n, heads, g.stride_b);
  g.c = matrix(tn ? groups * s.m : s.m, s.n, heads && !nt, g.stride_c);
  if (s.groups) {
    if (tn) g.c.rows = s.m, g.stride_c = s.m * s.n;
    else g.b.rows /= groups, g.stride_b = s.n * s.k;
  }
  return g;
}

}  // namespace

void bench_gemm(int threads, std::ostream& out) {
  using Clock = std::chrono::steady_clock;
  auto device = make_cpu_device(threads);
  out << "GEMM, fp32, " << device->name() << ", useful GFLOP/s:\n" << std::fixed;
  for (const Shape& s : kShapes) {
    std::vector<Buf> keep;
    const Gemm g = place(*device, s, keep);
    std::vector<int64_t> offsets;
    for (int i = 0; s.groups && i <= s.groups; i++) offsets.push_back((s.form == Form::TN ? s.k : s.m) * i / s.groups);
    double best = 1e30;
    const auto stop = Clock::now() + std::chrono::milliseconds(60);
    while (Clock::now() < stop) {
      const auto start = Clock::now();
      for (int i = 0; i < 4; i++) {
        if (s.groups) device->compute().grouped_gemm(g, offsets);
        else device->compute().gemm(g);
      }
      best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count() / 4);
    }
    const double flops = 2. * double(s.m * s.n * s.k * s.batch) / (s.causal ? 2 : 1);
    const char* form = s.form == Form::NN ? "NN" : s.form == Form::NT ? "NT" : "TN";
    out << "  " << std::left << std::setw(30) << s.what << form << std::right << std::setw(6) << s.m << " x" << std::setw(5)
        << s.n << " x" << std::setw(5) << s.k << std::setw(9) << std::setprecision(1) << best * 1e6 << " us" << std::setw(8)
        << flops / best * 1e-9 << "\n";
  }
}

}  // namespace duet
