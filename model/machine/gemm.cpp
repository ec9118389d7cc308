// What every backend does first with a product: see that the shapes fit, and count.
// Read next: gemm_cpu.h.
#include <algorithm>

#include "model/machine/device.h"

namespace duet {

void check_gemm(const Gemm& g, std::span<const int64_t> offsets) {
  const Tensor &a = g.a, &b = g.b, &c = g.c;
  DUET_CHECK(a.dtype == b.dtype, "GEMM: expected A and B of one dtype, found ", dtype_name(a.dtype),
      " and ", dtype_name(b.dtype));
  const bool tn = g.form == Form::TN, nt = g.form == Form::NT;
  const bool fits = (tn ? a.cols : a.rows) == c.rows && (nt ? b.rows : b.cols) == c.cols &&
      (tn ? a.rows : a.cols) == (nt ? b.cols : b.rows);
  DUET_CHECK(fits, "GEMM ",
      tn       ? "TN"
          : nt ? "NT"
               : "NN",
      ": shapes do not fit: A [", a.rows, ", ", a.cols, "], B [", b.rows, ", ", b.cols, "], C [",
      c.rows, ", ", c.cols, "]");
  if (offsets.empty()) return;
  DUET_CHECK(std::is_sorted(offsets.begin(), offsets.end()) && offsets.front() >= 0 &&
          offsets.back() <= a.rows,
      "grouped GEMM: expected ascending offsets within 0 .. ", a.rows, ", found ", offsets.front(),
      " .. ", offsets.back());
}

int64_t gemm_flops(const Gemm& g, std::span<const int64_t> offsets) {
  const int64_t rows = offsets.empty() ? g.a.rows * g.batch : offsets.back() - offsets.front();
  return 2 * rows * g.a.cols * (g.form == Form::NT ? g.b.rows : g.b.cols) / (g.causal ? 2 : 1);
}

}  // namespace duet
