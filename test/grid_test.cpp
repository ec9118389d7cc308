// Exact sums (model/machine/grid.h) by the CPU's GEMM, against the slowest possible loops: equal in
// every bit, in any order, also of values that lie halfway between two multiples of the grid.
#include "model/machine/grid.h"

#include "test/gemm_testing.h"

namespace duet {
namespace {

template <class T> struct GridTest : testing::Test {
  void SetUp() override {  // madd is fused where this is not zero
    if (sizeof(T) == 8 && madd(1 + 0x1p-52, 1 - 0x1p-52, -1.) == 0)
      GTEST_SKIP() << "of fp64's sums the grid forgets the order with a fused multiply-add only";
  }
};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(GridTest, Types);

// To the nearest multiple of 2^-48, halfway away from zero: what grid_add does.
double to_grid(long double p) {
  p *= 1 + 0x1p-52L;
  return double(std::ldexp(std::round(std::ldexp(p, kGridBits)), -kGridBits));
}

template <class T> void exact_oracle(const Gemm& g) {
  for (int64_t i = 0; i < g.c.rows; i++)
    for (int64_t j = 0; j < g.c.cols; j++)
      for (size_t piece = 1; piece < g.pieces.size(); piece++) {
        T p = 0;
        for (int64_t k = g.pieces[piece - 1]; k < g.pieces[piece]; k++)
          p = madd(a_at<T>(g, i, k), b_at<T>(g, k, j), p);
        g.c.row<double>(i)[j] += to_grid(p);
      }
}

template <class T> Matrix<T> scaled(Matrix<T> m, double factor) {
  for (T& x : m.values) x *= T(factor);
  return m;
}

TYPED_TEST(GridTest, ExactSumsHaveTheContractsBits) {
  using T = TypeParam;
  const std::vector<std::vector<int64_t>> cuts = {{0, 1}, {0, 128, 256}, {0, 16, 17, 60},
      {0, 100, 356, 357, 400, 470, 700}, {0, 256, 512}, {0, 24, 48, 72, 96, 120, 144, 300}};
  for (int threads : {1, 3})
    for (const auto& pieces : cuts)
      for (const auto& [m, n] : {std::pair<int64_t, int64_t>{1, 1}, {13, 33}, {40, 70}, {550, 9}}) {
        const Matrix<T> a = scaled(make_a<T>(Form::TN, m, pieces.back()), 0.01);
        const Matrix<T> b = scaled(make_b<T>(Form::TN, n, pieces.back()), 0.01);
        Matrix<double> found(m, n, 3, 9);
        for (double& x : found.values) x = to_grid(x);
        Matrix<double> expected = found;
        Gemm g = {.form = Form::TN, .a = a.view, .b = b.view, .c = found.view, .accumulate = true};
        g.pieces = pieces;
        const auto device = make_cpu_device(threads);
        device->gemm(g);
        g.c = expected.view;
        exact_oracle<T>(g);
        expect_same_bits(found, expected, cat(m, "x", n, "x", pieces.back()));
      }
}

// Groups, some of them empty, each in pieces; and whole pieces in another order.
TYPED_TEST(GridTest, ExactSumsForgetTheirOrderAndGrouping) {
  using T = TypeParam;
  const std::vector<int64_t> pieces = {0, 128, 140, 300, 301, 460, 700};
  const std::vector<int64_t> offsets = {0, 140, 140, 460, 700};
  const int64_t m = 30, n = 41, rows = pieces.back();
  const Matrix<T> a = scaled(make_a<T>(Form::TN, m, rows), 0.1);
  const Matrix<T> b = scaled(make_b<T>(Form::TN, n, rows), 0.1);
  const auto zeros = [&](int copies = 1) {
    Matrix<double> c(m, n, 3, 0, copies);
    std::fill(c.values.begin(), c.values.end(), 0.0);
    return c;
  };
  const auto device = make_cpu_device(2);
  Matrix<double> groups = zeros(4), whole = zeros(), backwards = zeros();
  Gemm g = {.form = Form::TN, .a = a.view, .b = b.view, .c = groups.view, .accumulate = true};
  g.pieces = pieces;
  g.stride_c = groups.stride();
  g.groups = offsets;
  device->gemm(g);
  g.groups = {};
  g.c = whole.view;
  device->gemm(g);
  for (size_t p = pieces.size() - 1; p > 0; p--) {
    const int64_t begin = pieces[p - 1], count = pieces[p] - begin;
    const int64_t one[] = {0, count};
    Gemm h = g;
    h.a = a.view.row_slice(begin, count), h.b = b.view.row_slice(begin, count);
    h.c = backwards.view, h.pieces = one;
    device->gemm(h);
  }
  expect_same_bits(backwards, whole, "pieces backwards");
  Matrix<double> sum = zeros();
  for (int e = 3; e >= 0; e--)
    for (size_t i = 0; i < sum.values.size(); i++)
      sum.values[i] += groups.values[size_t(e) * sum.values.size() + i];
  expect_same_bits(sum, whole, "groups added up");
}

// Halfway between two multiples of the grid the sum so far must not matter: 1 * x, by every parity.
TEST(Grid, HalfwayValuesGoAwayFromZeroWhateverTheSum) {
  const auto device = make_cpu_device(1);
  const double step = std::ldexp(1, -kGridBits);
  for (double halves : {0.5, 1.5, 2.5, -0.5, -1.5, -2.5})
    for (double before : {0., 1., 2., -1., -2., 12345677., -12345678.}) {
      float one = 1, x = float(halves * step);
      double c = before * step;
      ASSERT_EQ(double(x), halves * step);
      const int64_t pieces[] = {0, 1};
      device->gemm({.form = Form::TN,
          .a = {&one, Dtype::f32, 1, 1, 1},
          .b = {&x, Dtype::f32, 1, 1, 1},
          .c = {&c, Dtype::f64, 1, 1, 1},
          .accumulate = true,
          .pieces = pieces});
      EXPECT_EQ(c, (before + std::round(halves)) * step) << halves << " added to " << before;
    }
}

TEST(Grid, ExactSumsRefuseWhatTheyCannotBe) {
  const auto device = make_cpu_device(1);
  Matrix<float> a(300, 4, 1), b(300, 5, 2), narrow(4, 5, 3);
  Matrix<double> c(4, 5, 3);
  Gemm g = {.form = Form::TN, .a = a.view, .b = b.view, .c = c.view, .accumulate = true};
  const auto refused = [&](std::vector<int64_t> pieces, std::vector<int64_t> offsets = {}) {
    Gemm h = g;
    h.pieces = pieces;
    h.groups = offsets;
    EXPECT_THROW(device->gemm(h), Error);
  };
  refused({0, 300});
  refused({0, 200});
  refused({0, 100, 100, 300});
  refused({0, 100, 300}, {0, 150, 300});
  g.c = narrow.view;
  refused({0, 150, 300});
}

}  // namespace
}  // namespace duet
