// What every backend does first with a product: see that the shapes fit, and count.
// Read next: gemm_cpu.h.
#include <algorithm>

#include "model/machine/device.h"

namespace duet {

std::vector<int64_t> Pieces::bounds() const {
  std::vector<int64_t> all = {0};
  for (int64_t i = 1; i <= count(); ++i)
    if (begin(i) > all.back()) all.push_back(begin(i));
  return all;
}

static void check_pieces(const Gemm& g, std::span<const int64_t> offsets) {
  const auto& p = g.pieces;
  DUET_CHECK(
      g.form == Form::TN && g.c.dtype == Dtype::f64 && g.accumulate && g.alpha == 1 && !g.causal,
      "an exact sum: expected a weight gradient, added to fp64");
  DUET_CHECK(p.front() == (offsets.empty() ? 0 : offsets.front()) &&
          p.back() == (offsets.empty() ? g.a.rows : offsets.back()),
      "an exact sum: expected pieces of all rows, found ", p.front(), " .. ", p.back());
  for (size_t i = 1; i < p.size(); ++i)
    DUET_CHECK(p[i] > p[i - 1] && p[i] - p[i - 1] <= kMaxPiece,
        "an exact sum: expected pieces of 1 to ", kMaxPiece, " rows, found ", p[i] - p[i - 1]);
  for (int64_t o : offsets)
    DUET_CHECK(std::binary_search(p.begin(), p.end(), o),
        "an exact sum: expected a piece to begin ", "with the group at row ", o);
}

void check_gemm(const Gemm& g, std::span<const int64_t> offsets) {
  const Tensor &a = g.a, &b = g.b, &c = g.c;
  DUET_CHECK(a.dtype == b.dtype, "GEMM: expected A and B of one dtype, found ", dtype_name(a.dtype),
      " and ", dtype_name(b.dtype));
  const bool tn = g.form == Form::TN, nt = g.form == Form::NT;
  const bool fits = (tn ? a.cols : a.rows) == c.rows &&
      (nt                        ? b.rows
              : g.pieces.empty() ? b.cols
                                 : std::min(b.cols, c.cols)) == c.cols &&
      (tn ? a.rows : a.cols) == (nt ? b.cols : b.rows);
  DUET_CHECK(fits, "GEMM ",
      tn       ? "TN"
          : nt ? "NT"
               : "NN",
      ": shapes do not fit: A [", a.rows, ", ", a.cols, "], B [", b.rows, ", ", b.cols, "], C [",
      c.rows, ", ", c.cols, "]");
  if (!g.pieces.empty()) check_pieces(g, offsets);
  if (offsets.empty()) return;
  DUET_CHECK(std::is_sorted(offsets.begin(), offsets.end()) && offsets.front() >= 0 &&
          offsets.back() <= a.rows,
      "grouped GEMM: expected ascending offsets within 0 .. ", a.rows, ", found ", offsets.front(),
      " .. ", offsets.back());
}

int64_t gemm_flops(const Gemm& g, std::span<const int64_t> offsets) {
  const int64_t rows = offsets.empty() ? g.a.rows : offsets.back() - offsets.front();
  return 2 * g.batch * rows * g.a.cols * (g.form == Form::NT ? g.b.rows : g.b.cols) /
      (g.causal ? 2 : 1);
}

}  // namespace duet
