// The row operations of the model's two ends and of the optimizer against their formulas in double.
#include "model/rows/ends.h"
#include "model/rows/grid_sums.h"
#include "model/rows/optimizer.h"
#include "test/row_testing.h"

namespace duet {
namespace {

template <class C> class EndRows : public RowTest<C> {};
TYPED_TEST_SUITE(EndRows, AllCases);
template <class C> class OptimizerRows : public RowTest<C> {};
TYPED_TEST_SUITE(OptimizerRows, AllCases);
template <class C> class SumSquaresTest : public RowTest<C> {};
TYPED_TEST_SUITE(SumSquaresTest, AllCases);

Mat<int32_t> column(const std::vector<int32_t>& values) {
  Mat<int32_t> m(int64_t(values.size()), 1);
  for (size_t i = 0; i < values.size(); ++i) m(int64_t(i)) = values[i];
  return m;
}

TYPED_TEST(EndRows, GatherRows) {
  using T = typename TestFixture::T;
  for (int64_t d : kSizes) {
    Mat<T> table(7, d), y(4, d);
    Mat<int32_t> ids = column({6, 0, 3, 0});
    table.random(this->rng);
    Mat<double> expected(4, d);
    for (int64_t t = 0; t < 4; ++t)
      for (int64_t c = 0; c < d; ++c) expected(t, c) = double(table(ids(t), c));
    this->template run<GatherRows>(4, {.x = table, .index = ids, .y = y});
    expect_close(y, expected, 0);
  }
}

TYPED_TEST(EndRows, PadRows) {
  using T = typename TestFixture::T;
  for (int64_t d : {1, 64, 150}) {
    Mat<T> x(3, d), y(3, d + 10);
    x.random(this->rng), y.random(this->rng);
    Mat<double> expected(y);
    for (int64_t r = 0; r < 3; ++r)
      for (int64_t c = 0; c < d; ++c) expected(r, c) = double(x(r, c));
    this->template run<PadRows>(PadRows::launch_rows(x), {.x = x, .y = y});
    expect_close(y, expected, 0);
  }
}

TYPED_TEST(EndRows, EmbedW) {
  using T = typename TestFixture::T;
  std::vector<int> token_ids = {4, 1, 4, 0, 1, 4}, sorted = {3, 1, 4, 0, 2, 5};
  for (int t = 6; t < 80; ++t) token_ids.push_back(4), sorted.push_back(t);
  for (int64_t d : kSizes) {
    Mat<T> dy(80, d);
    Mat<double> grad(5, d);
    dy.random(this->rng), grad.random(this->rng);
    Mat<double> expected(grad);
    for (int64_t t = 0; t < 80; ++t)
      for (int64_t c = 0; c < d; ++c) expected(token_ids[size_t(t)], c) += double(dy(t, c));
    Mat<int32_t> tokens = column(sorted), begins = column({0, 1, 3, 80}), ids = column({0, 1, 4});
    this->template run_tiles<EmbedW>(
        3, {.x = dy, .tokens = tokens, .begins = begins, .ids = ids, .grad = grad});
    expect_close(grad, expected, 1e-14);  // but for the grid of 2^-48
  }
}

TYPED_TEST(EndRows, CrossEntropy) {
  using T = typename TestFixture::T;
  for (int64_t vocab : kSizes)
    for (double spread : {1.0, 300.0}) {
      Mat<T> x(4, vocab);
      Mat<int32_t> target = column({0, int32_t(vocab - 1), int32_t(vocab / 2), int32_t(vocab / 3)});
      Mat<Acc<T>> loss(4, 1);
      x.random(this->rng, spread);
      Mat<double> gradient(x), expected_loss(4, 1);
      const double scale = 0.125;
      for (int64_t r = 0; r < 4; ++r) {
        double top = gradient(r, 0), sum = 0;
        for (int64_t c = 0; c < vocab; ++c) top = std::max(top, gradient(r, c));
        for (int64_t c = 0; c < vocab; ++c) sum += std::exp(gradient(r, c) - top);
        expected_loss(r) = std::log(sum) + top - gradient(r, target(r));
        for (int64_t c = 0; c < vocab; ++c)
          gradient(r, c) = scale * (std::exp(gradient(r, c) - top) / sum - (c == target(r)));
      }
      this->template run<CrossEntropy>(4, {.x = x, .target = target, .loss = loss, .scale = scale});
      expect_close(loss, expected_loss, kTolerance<Acc<T>>);
      expect_close(x, gradient);
    }
}

// --- the optimizer: an arena of 3 blocks, of which two are short ---------------------------------

struct ArenaBlocks {
  Mat<int32_t> begin = column({0, 2, 3}), count = column({256, 33, 1}), decay = column({1, 0, 1});
  static constexpr int64_t kElements = 4 * kBlockAlign;
  operator Blocks() { return {begin, count, decay}; }
  // The block that element i belongs to, or -1: padding.
  int64_t block(int64_t i) const {
    for (int64_t b = 0; b < 3; ++b)
      if (i >= begin(b) * kBlockAlign && i < begin(b) * kBlockAlign + count(b)) return b;
    return -1;
  }
};

TYPED_TEST(SumSquaresTest, SumsTheSquaresOfEachBlock) {
  using T = typename TestFixture::T;
  ArenaBlocks blocks;
  Mat<T> x(1, blocks.kElements);
  Mat<double> grad(1, blocks.kElements), sum(3, 2), expected(3, 2);
  grad.random(this->rng), expected.fill(0);
  for (int64_t i = 0; i < blocks.kElements; ++i) {
    grad(0, i) *= 1 + 1e-9;  // no float: it is rounded
    const double g = double(Acc<T>(grad(0, i)));
    const int64_t b = blocks.block(i);
    if (b < 0) continue;
    expected(b, 0) += g * g;
    expected(b, 1) = std::max(expected(b, 1), std::abs(g));
  }
  this->template run<SumSquares>(3, {.x = x, .grad = grad, .sum = sum, .blocks = blocks});
  expect_close(sum, expected, 1e-14);  // in double whatever T is
}

TYPED_TEST(OptimizerRows, AdamW) {
  using T = typename TestFixture::T;
  using A = Acc<T>;
  for (bool in_place : {false, true}) {
    if (in_place && !std::is_same_v<T, A>) continue;
    ArenaBlocks blocks;
    const int64_t n = blocks.kElements;
    Mat<T> x(1, n);
    Mat<A> master(1, n), m(1, n), v(1, n);
    Mat<double> grad(1, n);
    master.random(this->rng), grad.random(this->rng), m.random(this->rng);
    for (int64_t i = 0; i < n; ++i) v(0, i) = m(0, i) * m(0, i);
    x = in_place ? Mat<T>(master) : x.random(this->rng);
    Mat<double> weight(master), dm(m), dv(v), dx(x);
    const double clip = 0.5, lr = 0.1, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, decay = 0.3;
    for (int64_t i = 0; i < n; ++i) {
      if (blocks.block(i) < 0) continue;  // padding stays as it is
      const double g = double(grad(0, i)) * clip;
      dm(0, i) = beta1 * dm(0, i) + (1 - beta1) * g;
      dv(0, i) = beta2 * dv(0, i) + (1 - beta2) * g * g;
      const double step = dm(0, i) / (1 - beta1) / (std::sqrt(dv(0, i) / (1 - beta2)) + eps);
      dx(0, i) = weight(0, i) = weight(0, i) - lr * step -
          lr * (blocks.decay(blocks.block(i)) ? decay : 0) * weight(0, i);
    }
    this->template run<AdamW>(3,
        {.x = x,
            .master = in_place ? Tensor(x) : Tensor(master),
            .grad = grad,
            .m = m,
            .v = v,
            .blocks = blocks,
            .clip = clip,
            .options = {lr, beta1, beta2, eps, decay},
            .correct1 = 1 / (1 - beta1),
            .correct2 = 1 / (1 - beta2)});
    expect_close(m, dm, kTolerance<A>);
    expect_close(v, dv, kTolerance<A>);
    if (!in_place) expect_close(master, weight, kTolerance<A>);
    expect_close(x, dx);
  }
}

TYPED_TEST(OptimizerRows, CastRows) {
  using T = typename TestFixture::T;
  for (int64_t d : kSizes) {
    Mat<T> x(2, d);
    Mat<Acc<T>> from(2, d);
    from.random(this->rng);
    this->template run<CastRows>(2, {.x = x, .from = from});
    for (int64_t r = 0; r < 2; ++r)
      for (int64_t c = 0; c < d; ++c) EXPECT_EQ(double(x(r, c)), double(T(from(r, c))));
  }
}

}  // namespace
}  // namespace duet
