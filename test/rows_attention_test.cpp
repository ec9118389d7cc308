// The row operations of attention against their formulas in double.
#include "model/rows/attention.h"

#include <limits>

#include "test/row_testing.h"

namespace duet {
namespace {

template <class C> class RopeRows : public RowTest<C> {};
TYPED_TEST_SUITE(RopeRows, AllCases);
template <class C> class SoftmaxRows : public RowTest<C> {};
TYPED_TEST_SUITE(SoftmaxRows, AllCases);

constexpr int64_t kSeqLen = 4, kTokens = 11;  // the third sequence is cut off: a row is a row
struct Shape {
  int heads, nope, rope, v;
};
constexpr Shape kShapes[] = {
    {1, 1, 2, 1}, {3, 31, 6, 5}, {2, 33, 64, 32}, {2, 5, 70, 100}, {3, 64, 32, 64}};

double angle(int64_t token, int64_t pair) {
  return 0.7 * double(token % kSeqLen + 1) / double(pair + 1);
}

template <class A> struct Angles {
  Mat<A> cos, sin;  // [seq_len, rope / 2]
  explicit Angles(int64_t rope) : cos(kSeqLen, rope / 2), sin(kSeqLen, rope / 2) {
    for (int64_t t = 0; t < kSeqLen; ++t)
      for (int64_t j = 0; j < rope / 2; ++j)
        cos(t, j) = A(std::cos(angle(t, j))), sin(t, j) = A(std::sin(angle(t, j)));
  }
  HeadShape shape(const Shape& s) {
    return {.heads = s.heads,
        .nope = s.nope,
        .rope = s.rope,
        .v = s.v,
        .seq_len = kSeqLen,
        .cos = cos,
        .sin = sin};
  }
};

// Turns x[token, col .. col + rope) pair by pair.
void turn(Mat<double>& x, int64_t token, int64_t col, int64_t rope, int sign) {
  for (int64_t j = 0; j < rope / 2; ++j) {
    const double c = std::cos(angle(token, j)), s = sign * std::sin(angle(token, j));
    const double a = x(token, col + 2 * j), b = x(token, col + 2 * j + 1);
    x(token, col + 2 * j) = a * c - b * s;
    x(token, col + 2 * j + 1) = a * s + b * c;
  }
}

TYPED_TEST(RopeRows, RopeQuery) {
  using T = typename TestFixture::T;
  for (const Shape& s : kShapes)
    for (int sign : {1, -1}) {
      Angles<Acc<T>> angles(s.rope);
      Mat<T> x(kTokens, s.heads * (s.nope + s.rope));
      x.random(this->rng);
      Mat<double> expected(x);
      for (int64_t t = 0; t < kTokens; ++t)
        for (int h = 0; h < s.heads; ++h)
          turn(expected, t, h * (s.nope + s.rope) + s.nope, s.rope, sign);
      this->template run<RopeQuery>(kTokens, {.x = x, .shape = angles.shape(s), .sign = sign});
      expect_close(x, expected);
    }
}

TYPED_TEST(RopeRows, KeyF) {
  using T = typename TestFixture::T;
  for (const Shape& s : kShapes) {
    Angles<Acc<T>> angles(s.rope);
    Mat<T> x(kTokens, s.heads * (s.nope + s.v)), rotary(kTokens, s.rope),
        k(kTokens, s.heads * (s.nope + s.rope));
    x.random(this->rng), rotary.random(this->rng);
    Mat<double> expected(k);
    for (int64_t t = 0; t < kTokens; ++t)
      for (int h = 0; h < s.heads; ++h) {
        const int64_t begin = h * (s.nope + s.rope);
        for (int i = 0; i < s.nope; ++i)
          expected(t, begin + i) = double(x(t, h * (s.nope + s.v) + i));
        for (int i = 0; i < s.rope; ++i) expected(t, begin + s.nope + i) = double(rotary(t, i));
        turn(expected, t, begin + s.nope, s.rope, 1);
      }
    this->template run<KeyF>(kTokens, {.x = x, .rotary = rotary, .k = k, .shape = angles.shape(s)});
    expect_close(k, expected);
  }
}

TYPED_TEST(RopeRows, KeyI) {
  using T = typename TestFixture::T;
  for (const Shape& s : kShapes) {
    Angles<Acc<T>> angles(s.rope);
    Mat<T> dk(kTokens, s.heads * (s.nope + s.rope)), dkv(kTokens, s.heads * (s.nope + s.v)),
        drotary(kTokens, s.rope);
    dk.random(this->rng), dkv.random(this->rng);
    Mat<double> expected_dkv(dkv), expected(kTokens, s.rope);  // values' gradients stay as they are
    expected.fill(0);
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int h = 0; h < s.heads; ++h) {
        const int64_t begin = h * (s.nope + s.rope);
        for (int i = 0; i < s.nope; ++i)
          expected_dkv(t, h * (s.nope + s.v) + i) = double(dk(t, begin + i));
        for (int i = 0; i < s.rope; ++i) expected(t, i) += double(dk(t, begin + s.nope + i));
      }
      turn(expected, t, 0, s.rope, -1);
    }
    this->template run<KeyI>(
        kTokens, {.x = dk, .dkv = dkv, .drotary = drotary, .shape = angles.shape(s)});
    expect_close(dkv, expected_dkv, 0);
    expect_close(drotary, expected);
  }
}

// Softmax over keys 0 .. query; whatever lies after the query (here NaN, left there by a causal
// GEMM) becomes 0.
TYPED_TEST(SoftmaxRows, Forward) {
  using T = typename TestFixture::T;
  for (int64_t n : kSizes)
    for (double scale : {1.0, 1e4}) {
      const int64_t rows = std::min<int64_t>(2 * n, 130);
      Mat<T> x(rows, n);
      x.random(this->rng, scale);
      Mat<double> expected(x);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t query = r % n;
        double top = expected(r, 0), sum = 0;
        for (int64_t i = 0; i <= query; ++i) top = std::max(top, expected(r, i));
        for (int64_t i = 0; i <= query; ++i) sum += std::exp(expected(r, i) - top);
        for (int64_t i = 0; i < n; ++i)
          expected(r, i) = i <= query ? std::exp(expected(r, i) - top) / sum : 0;
        for (int64_t i = query + 1; i < n; ++i)
          x(r, i) = T(std::numeric_limits<float>::quiet_NaN());
      }
      this->template run<CausalSoftmaxF>(rows, {.x = x});
      expect_close(x, expected);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = r % n + 1; i < n; ++i) ASSERT_EQ(double(x(r, i)), 0);
    }
}

// dS_i = sum_j dP_j (P_j (i == j) - P_i P_j): the whole Jacobian.
TYPED_TEST(SoftmaxRows, Backward) {
  using T = typename TestFixture::T;
  for (int64_t n : kSizes) {
    const int64_t rows = std::min<int64_t>(2 * n, 130);
    Mat<T> p(rows, n), dp(rows, n);
    p.random(this->rng), dp.random(this->rng);
    Mat<double> expected(rows, n);
    expected.fill(0);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t keys = r % n + 1;
      double sum = 0;
      for (int64_t i = 0; i < keys; ++i) sum += std::exp(double(p(r, i)));
      for (int64_t i = 0; i < n; ++i)
        p(r, i) = T(float(i < keys ? std::exp(double(p(r, i))) / sum : 0));
      for (int64_t i = 0; i < keys; ++i)
        for (int64_t j = 0; j < keys; ++j)
          expected(r, i) += double(dp(r, j)) * double(p(r, j)) * ((i == j) - double(p(r, i)));
      for (int64_t i = keys; i < n; ++i) dp(r, i) = T(std::numeric_limits<float>::quiet_NaN());
    }
    this->template run<CausalSoftmaxI>(rows, {.x = p, .dp = dp});
    expect_close(dp, expected);
  }
}

}  // namespace
}  // namespace duet
