// The row operations of RMSNorm and SwiGLU against their formulas in double.
#include "model/rows/grid_sums.h"
#include "model/rows/norm.h"
#include "model/rows/swiglu.h"
#include "test/row_testing.h"

namespace duet {
namespace {

constexpr double kEps = 1e-3;

template <class C> class NormRows : public RowTest<C> {};
TYPED_TEST_SUITE(NormRows, AllCases);
template <class C> class GridSumTest : public RowTest<C> {};
TYPED_TEST_SUITE(GridSumTest, AccCases);
template <class C> class SwigluRows : public RowTest<C> {};
TYPED_TEST_SUITE(SwigluRows, AllCases);

template <class T> double naive_rstd(const Mat<T>& x, int64_t r) {
  double squares = 0;
  for (int64_t c = 0; c < x.cols(); ++c) squares += double(x(r, c)) * double(x(r, c));
  return 1 / std::sqrt(squares / double(x.cols()) + kEps);
}

template <class T>
void expect_normed(const Mat<T>& x, const Mat<T>& gain, const Mat<T>& y, const Mat<Acc<T>>& rstd) {
  Mat<double> expected(x.rows(), x.cols()), expected_rstd(x.rows(), 1);
  for (int64_t r = 0; r < x.rows(); ++r) {
    expected_rstd(r) = naive_rstd(x, r);
    for (int64_t c = 0; c < x.cols(); ++c)
      expected(r, c) = double(x(r, c)) * expected_rstd(r) * double(gain(0, c));
  }
  expect_close(y, expected);
  expect_close(rstd, expected_rstd);
}

TYPED_TEST(NormRows, RmsNormF) {
  using T = typename TestFixture::T;
  for (int64_t d : kSizes) {
    Mat<T> x(5, d), gain(1, d), y(5, d);
    Mat<Acc<T>> rstd(5, 1);
    x.random(this->rng), gain.random(this->rng, 0.3, 1);
    this->template run<RmsNormF>(5, {.x = x, .gain = gain, .y = y, .rstd = rstd, .eps = kEps});
    expect_normed(x, gain, y, rstd);
  }
}

TYPED_TEST(NormRows, AddRmsNormF) {
  using T = typename TestFixture::T;
  for (int64_t d : kSizes) {
    Mat<T> x(5, d), delta(5, d), gain(1, d), h(5, d), y(5, d);
    Mat<Acc<T>> rstd(5, 1);
    x.random(this->rng), delta.random(this->rng), gain.random(this->rng, 0.3, 1);
    this->template run<AddRmsNormF>(
        5, {.x = x, .delta = delta, .gain = gain, .h = h, .y = y, .rstd = rstd, .eps = kEps});
    Mat<double> sum(x);
    for (int64_t r = 0; r < 5; ++r)
      for (int64_t c = 0; c < d; ++c) sum(r, c) += double(delta(r, c));
    expect_close(h, sum);
    expect_normed(h, gain, y, rstd);  // of h as it was rounded
  }
}

// dx_i = residual_i + sum_j dy_j d(y_j)/d(x_i), with the whole Jacobian written out.
TYPED_TEST(NormRows, RmsNormI) {
  using T = typename TestFixture::T;
  for (int64_t d : kSizes)
    for (bool with_residual : {false, true}) {
      Mat<T> x(3, d), gain(1, d), dy(3, d), residual(3, d), dx(3, d);
      Mat<Acc<T>> rstd(3, 1);
      x.random(this->rng), gain.random(this->rng, 0.3, 1), dy.random(this->rng),
          residual.random(this->rng);
      Mat<double> expected(3, d);
      for (int64_t r = 0; r < 3; ++r) {
        const double s = naive_rstd(x, r);
        rstd(r) = Acc<T>(s);
        for (int64_t i = 0; i < d; ++i) {
          expected(r, i) = with_residual ? double(residual(r, i)) : 0;
          for (int64_t j = 0; j < d; ++j) {
            const double jacobian =
                (i == j ? s : 0) - s * s * s * double(x(r, i)) * double(x(r, j)) / double(d);
            expected(r, i) += double(dy(r, j)) * double(gain(0, j)) * jacobian;
          }
        }
      }
      this->template run<RmsNormI>(3,
          {.x = x,
              .gain = gain,
              .rstd = rstd,
              .dy = dy,
              .residual = with_residual ? Tensor(residual) : Tensor(),
              .dx = dx});
      expect_close(dx, expected);
    }
}

// The piece of a token, counted token by token.
int64_t naive_piece(const Pieces& p, int64_t token) {
  int64_t piece = -1;
  for (int64_t t = 0; t <= token; ++t) {
    const int64_t in_sequence = t % p.seq_len, in_segment = in_sequence % p.segment_tokens;
    if (in_segment % kMaxPiece == 0) ++piece;
    // every segment of a sequence has as many pieces as a full one, the last maybe empty ones
    if (t > 0 && in_sequence == 0)
      piece = (piece + p.of_segment() - 1) / p.of_segment() * p.of_segment();
  }
  return piece;
}

TYPED_TEST(NormRows, RmsNormW) {
  using T = typename TestFixture::T;
  for (Pieces pieces : {Pieces{1, 1, 128}, {2, 63, 128}, {3, 130, 64}, {2, 50, 16}, {1, 700, 600}})
    for (int64_t d : {1, 33, 150}) {
      const int64_t tokens = pieces.sequences * pieces.seq_len, partials = pieces.count();
      Mat<T> x(tokens, d), dy(tokens, d);
      Mat<Acc<T>> rstd(tokens, 1), partial(partials, d);
      x.random(this->rng), dy.random(this->rng), rstd.random(this->rng, 0.1, 1),
          partial.random(this->rng);
      this->template run_tiles<RmsNormW>(
          pieces.count(), {.x = x, .rstd = rstd, .dy = dy, .partial = partial, .pieces = pieces});
      Mat<double> expected(partials, d);
      expected.fill(0);
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t c = 0; c < d; ++c)
          expected(naive_piece(pieces, t), c) +=
              double(dy(t, c)) * double(x(t, c)) * double(rstd(t));
      expect_close(partial, expected);
    }
}

// Where a lane reads many rows at once, it still adds each of its column once and in its order.
TEST(DownColumns, AddsRowsInOrder) {
  for (size_t cols : {1, 31, 32})
    for (int64_t rows : {0, 1, 2, 31, 32, 33, 63, 64, 75, 128}) {
      std::vector<std::vector<int64_t>> added(cols), expected(cols);
      const std::string divergence = SimWarp::run([&](SimWarp g) {
        std::vector<int64_t> own;
        const auto read = [](int64_t t, int c) { return 1000 * t + c; };
        down_columns(
            g, ColumnTile<SimWarp>(0, int64_t(cols)), 7, 7 + rows, read, [&](int j, int64_t value) {
              EXPECT_EQ(j, 0);
              own.push_back(value);
            });
        if (size_t(g.lane()) < cols) added[size_t(g.lane())] = own;
      });
      EXPECT_EQ(divergence, "");
      for (size_t c = 0; c < cols; ++c)
        for (int64_t t = 7; t < 7 + rows; ++t) expected[c].push_back(1000 * t + int64_t(c));
      EXPECT_EQ(added, expected) << cols << " columns, " << rows << " rows";
    }
}

TYPED_TEST(GridSumTest, AddsAllRowsOnTheGrid) {
  using T = typename TestFixture::T;
  for (int64_t n : {1, 3, 40})
    for (int64_t d : {1, 31, 63, 64, 65, 100, 128, 200}) {
      Mat<T> x(n, d);
      Mat<double> y(1, d), expected(1, d);
      x.random(this->rng, 1e-9), y.fill(1), expected.fill(1);
      for (int64_t r = 0; r < n; ++r)
        for (int64_t c = 0; c < d; ++c)
          expected(0, c) += double(
              std::ldexp(std::round(std::ldexp((long double)(x(r, c)) * (1 + 0x1p-52L), kGridBits)),
                  -kGridBits));
      this->template run_tiles<GridSum>(1, {.x = x, .y = y});
      for (int64_t c = 0; c < d; ++c) ASSERT_EQ(y(0, c), expected(0, c));
    }
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TYPED_TEST(SwigluRows, ForwardAndBackward) {
  using T = typename TestFixture::T;
  for (int64_t d : kSizes) {
    Mat<T> gate(4, d), up(4, d), act(4, d), dact(4, d);
    gate.random(this->rng, 3), up.random(this->rng), dact.random(this->rng);
    Mat<double> y(4, d), dgate(4, d), dup(4, d);
    for (int64_t r = 0; r < 4; ++r)
      for (int64_t c = 0; c < d; ++c) {
        const double x = double(gate(r, c)), u = double(up(r, c)), dy = double(dact(r, c)),
                     s = sigmoid(x);
        y(r, c) = x * s * u;
        dgate(r, c) = dy * u * (s + x * s * (1 - s));
        dup(r, c) = dy * x * s;
      }
    this->template run<SwigluF>(4, {.x = gate, .up = up, .act = act});
    expect_close(act, y);
    this->template run<SwigluI>(4, {.x = gate, .up = up, .act = dact});
    expect_close(gate, dgate);
    expect_close(up, dup);
    expect_close(dact, y);
  }
}

TYPED_TEST(SwigluRows, FarFromZeroIsFinite) {
  using T = typename TestFixture::T;
  Mat<T> gate(1, 2), up(1, 2), act(1, 2);
  gate(0, 0) = T(1000.0f), gate(0, 1) = T(-1000.0f);
  up.fill(1);
  this->template run<SwigluF>(1, {.x = gate, .up = up, .act = act});
  EXPECT_EQ(double(act(0, 0)), 1000.0 * (double(T(1000.0f)) / 1000.0));
  EXPECT_NEAR(double(act(0, 1)), 0, 1e-30);
}

TYPED_TEST(SwigluRows, Add) {
  using T = typename TestFixture::T;
  for (int64_t d : kSizes) {
    Mat<T> x(4, d), y(4, d);
    x.random(this->rng), y.random(this->rng);
    Mat<double> expected(y);
    for (int64_t r = 0; r < 4; ++r)
      for (int64_t c = 0; c < d; ++c) expected(r, c) += double(x(r, c));
    this->template run<Add>(4, {.x = x, .y = y});
    expect_close(y, expected);
  }
}

}  // namespace
}  // namespace duet
