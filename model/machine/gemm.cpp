// What every device does first with a product: see that the shapes fit, and count.
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

std::vector<int32_t> Pieces::segments() const {
  std::vector<int32_t> all;
  all.reserve(size_t(sequences * seq_len));
  int32_t segment = 0;
  for (int64_t sequence = 0; sequence < sequences; ++sequence)
    for (int64_t first = 0; first < seq_len; first += segment_tokens, ++segment)
      all.insert(all.end(), size_t(least(segment_tokens, seq_len - first)), segment);
  return all;
}

static void check_pieces(const Gemm& g) {
  const auto& p = g.pieces;
  DUET_CHECK(
      g.form == Form::TN && g.c.dtype == Dtype::f64 && g.accumulate && g.alpha == 1 && !g.causal,
      "an exact sum: expected a weight gradient, added to fp64");
  DUET_CHECK(p.front() == g.groups.front() && p.back() == g.groups.back(),
      "an exact sum: expected pieces of all rows, found ", p.front(), " .. ", p.back());
  for (size_t i = 1; i < p.size(); ++i)
    DUET_CHECK(p[i] > p[i - 1] && p[i] - p[i - 1] <= kMaxPiece,
        "an exact sum: expected pieces of 1 to ", kMaxPiece, " rows, found ", p[i] - p[i - 1]);
  for (int64_t row : g.groups)
    DUET_CHECK(std::binary_search(p.begin(), p.end(), row),
        "an exact sum: expected a piece to begin with the group at row ", row);
}

static void check(const Gemm& g) {
  const Tensor &a = g.a, &b = g.b, &c = g.c;
  DUET_CHECK(a.dtype == b.dtype, "GEMM: expected A and B of one dtype, found ", dtype_name(a.dtype),
      " and ", dtype_name(b.dtype));
  const bool tn = g.form == Form::TN, nt = g.form == Form::NT;
  const int64_t cols = nt ? b.rows : b.cols;
  const bool fits = (tn ? a.cols : a.rows) == c.rows &&
      (cols == c.cols || (!g.pieces.empty() && cols > c.cols)) &&
      (tn ? a.rows : a.cols) == (nt ? b.cols : b.rows);
  DUET_CHECK(fits, "GEMM ", form_name(g.form), ": shapes do not fit: A [", a.rows, ", ", a.cols,
      "], B [", b.rows, ", ", b.cols, "], C [", c.rows, ", ", c.cols, "]");
  DUET_CHECK(std::is_sorted(g.groups.begin(), g.groups.end()) && g.groups.front() >= 0 &&
          g.groups.back() <= a.rows,
      "GEMM: expected ascending groups within 0 .. ", a.rows, ", found ", g.groups.front(), " .. ",
      g.groups.back());
  if (!g.pieces.empty()) check_pieces(g);
}

int64_t Gemm::flops() const {
  return 2 * batch * (groups.back() - groups.front()) * a.cols *
      (form == Form::NT ? b.rows : b.cols) / (causal ? 2 : 1);
}

void Device::gemm(Gemm g) {
  const int64_t all[] = {0, g.a.rows};
  if (g.groups.empty()) g.groups = all;
  check(g);
  flops += g.flops();
  multiply(g);
}

}  // namespace duet
