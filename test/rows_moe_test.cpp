// The row operations of moe/ against naive oracles in double: the router with groups, bias and
// ties, the balance loss, and the moves between token order and expert order.
#include <algorithm>
#include <limits>
#include <numeric>

#include "moe/rows/permute.h"
#include "moe/rows/router.h"
#include "test/row_testing.h"

namespace duet {
namespace {

template <class C> class RouterRows : public RowTest<C> {};
TYPED_TEST_SUITE(RouterRows, AccCases);
template <class C> class PermuteRows : public RowTest<C> {};
TYPED_TEST_SUITE(PermuteRows, AllCases);

const RouterShape kShapes[] = {{2, 1, 1, 1, 1.0}, {8, 2, 1, 1, 1.0}, {8, 8, 1, 1, 2.5},
    {8, 2, 4, 2, 1.5}, {33, 5, 1, 1, 1.0}, {33, 4, 11, 3, 1.0}, {64, 6, 8, 4, 2.5},
    {64, 1, 32, 3, 1.0}, {100, 10, 50, 5, 1.0}, {256, 8, 8, 4, 2.5}};

// The indices of the k largest, of equal ones the first, best first.
std::vector<int> naive_top(const std::vector<double>& values, int k) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
      [&](int a, int b) { return values[size_t(a)] > values[size_t(b)]; });
  order.resize(size_t(k));
  return order;
}

// The experts of a token, ascending, from its affinities with bias.
std::vector<int> naive_choice(std::vector<double> biased, const RouterShape& s) {
  const int size = s.experts / s.groups;
  std::vector<double> group_score;
  for (int q = 0; q < s.groups; ++q) {
    std::vector<double> members(biased.begin() + q * size, biased.begin() + (q + 1) * size);
    std::sort(members.rbegin(), members.rend());
    group_score.push_back(members[0] + members[1]);
  }
  const std::vector<int> best = naive_top(group_score, s.topk_groups);
  for (int i = 0; i < s.experts; ++i)
    if (std::find(best.begin(), best.end(), i / size) == best.end())
      biased[size_t(i)] = -std::numeric_limits<double>::infinity();
  std::vector<int> choice = naive_top(biased, s.topk);
  std::sort(choice.begin(), choice.end());
  return choice;
}

TYPED_TEST(RouterRows, Forward) {
  using T = typename TestFixture::T;
  for (const RouterShape& s : kShapes)
    for (bool ties : {false, true}) {
      const int64_t tokens = 12;
      Mat<T> x(tokens, s.experts), bias(1, s.experts), w(tokens, s.topk), total(tokens, 1);
      Mat<T> scratch(tokens, s.experts + s.groups);
      Mat<int32_t> idx(tokens, s.topk), plain(tokens, s.topk);
      x.random(this->rng, 2), bias.random(this->rng, 0.3);
      if (ties)  // logits of three values, so that group scores tie as well
        for (int64_t t = 0; t < tokens; ++t)
          for (int64_t i = 0; i < s.experts; ++i)
            x(t, i) = T(int(this->rng() % 3)), bias(0, i) = T(0);
      Mat<double> logits(x);
      this->template run<RouterF>(tokens,
          {.x = x,
              .bias = bias,
              .topk_idx = idx,
              .topk_w = w,
              .plain_idx = plain,
              .total = total,
              .scratch = scratch,
              .shape = s});
      Mat<double> affinity(tokens, s.experts), expected_w(tokens, s.topk),
          expected_total(tokens, 1);
      for (int64_t t = 0; t < tokens; ++t) {
        // Compared where the choice is made: on the affinities as the operation rounded them.
        std::vector<double> rounded, biased;
        double sum = 0;
        expected_total(t) = 0;
        for (int64_t i = 0; i < s.experts; ++i) {
          expected_total(t) += affinity(t, i) = 1 / (1 + std::exp(-logits(t, i)));
          rounded.push_back(double(x(t, i)));
          biased.push_back(double(T(x(t, i) + bias(0, i))));
        }
        const std::vector<int> top = naive_top(rounded, s.topk), choice = naive_choice(biased, s);
        for (int j = 0; j < s.topk; ++j) {
          ASSERT_EQ(plain(t, j), top[size_t(j)]) << s.experts << " experts, token " << t;
          ASSERT_EQ(idx(t, j), choice[size_t(j)]) << s.experts << " experts, token " << t;
          sum += affinity(t, choice[size_t(j)]);
        }
        for (int j = 0; j < s.topk; ++j)
          expected_w(t, j) = affinity(t, choice[size_t(j)]) / sum * s.scaling;
      }
      expect_close(x, affinity);
      expect_close(total, expected_total);
      expect_close(w, expected_w);
    }
}

// A bias of -inf, or any other that no score reaches, takes its expert out; a group whose score is
// -inf with it, for that is the sum of its two best.
TYPED_TEST(RouterRows, InfiniteBiasesAreNeverChosen) {
  using T = typename TestFixture::T;
  const double inf = std::numeric_limits<double>::infinity();
  const RouterShape shapes[] = {
      {8, 2, 4, 2, 1.5}, {8, 2, 1, 1, 1.0}, {12, 3, 4, 2, 1.0}, {64, 6, 32, 6, 1.0}};
  for (const RouterShape& s : shapes)
    for (double never : {-inf, -1e30, -1e35}) {
      const int64_t tokens = 12;
      const int size = s.experts / s.groups;
      Mat<T> x(tokens, s.experts), bias(1, s.experts), w(tokens, s.topk), total(tokens, 1),
          scratch(tokens, s.experts + s.groups);
      Mat<int32_t> idx(tokens, s.topk), plain(tokens, s.topk);
      x.random(this->rng, 2), bias.random(this->rng, 0.3);
      // an expert of each second group, so that enough groups are whole
      for (int q = 0; q < s.groups; q += 2) bias(0, q * size) = T(never);
      this->template run<RouterF>(tokens,
          {.x = x,
              .bias = bias,
              .topk_idx = idx,
              .topk_w = w,
              .plain_idx = plain,
              .total = total,
              .scratch = scratch,
              .shape = s});
      for (int64_t t = 0; t < tokens; ++t) {
        std::vector<double> biased;
        for (int64_t i = 0; i < s.experts; ++i)
          biased.push_back(bias(0, i) < T(-1e20) ? -inf : double(T(x(t, i) + bias(0, i))));
        const std::vector<int> choice = naive_choice(biased, s);
        for (int j = 0; j < s.topk; ++j)
          ASSERT_EQ(idx(t, j), choice[size_t(j)]) << s.experts << " experts, token " << t;
      }
    }
}

// Training that has diverged is found by its loss; until then every choice must be a row that
// exists.
TYPED_TEST(RouterRows, NanLogitsChooseExpertsThatExist) {
  using T = typename TestFixture::T;
  for (const RouterShape& s : kShapes)
    for (int every : {1, 2}) {
      Mat<T> x(4, s.experts), bias(1, s.experts), w(4, s.topk), total(4, 1),
          scratch(4, s.experts + s.groups);
      Mat<int32_t> idx(4, s.topk), plain(4, s.topk);
      x.random(this->rng), bias.fill(0);
      for (int64_t i = 0; i < 4 * s.experts; i += every)
        x(i / s.experts, i % s.experts) = std::numeric_limits<T>::quiet_NaN();
      this->template run<RouterF>(4,
          {.x = x,
              .bias = bias,
              .topk_idx = idx,
              .topk_w = w,
              .plain_idx = plain,
              .total = total,
              .scratch = scratch,
              .shape = s});
      for (int64_t i = 0; i < 4 * s.topk; ++i)
        for (int32_t e : {idx(i / s.topk, i % s.topk), plain(i / s.topk, i % s.topk)})
          ASSERT_TRUE(0 <= e && e < s.experts) << e;
    }
}

TYPED_TEST(RouterRows, BalanceLoss) {
  using T = typename TestFixture::T;
  for (const RouterShape& s : kShapes) {
    const int64_t seq_len = 37, sequences = 3, tokens = seq_len * sequences;
    Mat<T> x(tokens, s.experts), total(tokens, 1), f(sequences, s.experts), p(sequences, s.experts),
        loss(sequences, 1);
    Mat<int32_t> plain(tokens, s.topk);
    Mat<double> expected_f(sequences, s.experts), expected_p(sequences, s.experts),
        expected_loss(sequences, 1);
    expected_f.fill(0), expected_p.fill(0), expected_loss.fill(0);
    for (int64_t t = 0; t < tokens; ++t) {
      std::vector<double> values;
      double sum = 0;
      for (int64_t i = 0; i < s.experts; ++i) {
        x(t, i) = T(0.01f + float(this->rng() % 1000) / 1000);
        values.push_back(double(x(t, i)));
        sum += values.back();
      }
      total(t) = T(sum);
      const std::vector<int> top = naive_top(values, s.topk);
      for (int j = 0; j < s.topk; ++j) {
        plain(t, j) = top[size_t(j)];
        expected_f(t / seq_len, top[size_t(j)]) += double(s.experts) / double(s.topk * seq_len);
      }
      for (int64_t i = 0; i < s.experts; ++i)
        expected_p(t / seq_len, i) += values[size_t(i)] / sum / double(seq_len);
    }
    for (int64_t q = 0; q < sequences; ++q)
      for (int64_t i = 0; i < s.experts; ++i)
        expected_loss(q) += expected_f(q, i) * expected_p(q, i);
    for (int64_t run : {seq_len, int64_t(33), int64_t(2)}) {
      const int64_t runs = (seq_len + run - 1) / run;
      Mat<T> sums(sequences * runs, 2 * s.experts);
      this->template run_tiles<BalanceSums>(sums.rows(),
          {.x = x,
              .total = total,
              .plain_idx = plain,
              .sums = sums,
              .seq_len = seq_len,
              .run = run});
      this->template run<BalanceLossF>(sequences,
          {.x = sums,
              .f = f,
              .p = p,
              .loss = loss,
              .runs = runs,
              .seq_len = seq_len,
              .topk = s.topk});
      expect_close(f, expected_f);
      expect_close(p, expected_p);
      expect_close(loss, expected_loss);
    }
  }
}

// The chain rule written out: every weight and every share of the balance loss by every affinity,
// that by its logit.
TYPED_TEST(RouterRows, Backward) {
  using T = typename TestFixture::T;
  for (const RouterShape& s : kShapes) {
    const int64_t seq_len = 3, tokens = 6;
    const double balance = 0.7;
    Mat<T> x(tokens, s.experts), dw(tokens, s.topk), total(tokens, 1), f(2, s.experts);
    Mat<int32_t> idx(tokens, s.topk);
    dw.random(this->rng), f.random(this->rng);
    Mat<double> expected(tokens, s.experts);
    for (int64_t t = 0; t < tokens; ++t) {
      std::vector<double> values;
      double all = 0, chosen = 0;
      for (int64_t i = 0; i < s.experts; ++i) {
        x(t, i) = T(0.01f + float(this->rng() % 980) / 1000);
        values.push_back(double(x(t, i)));
        all += values.back();
      }
      total(t) = T(all);
      std::vector<int> top = naive_top(values, s.topk);
      std::sort(top.begin(), top.end());
      for (int j = 0; j < s.topk; ++j) chosen += values[size_t(idx(t, j) = top[size_t(j)])];
      for (int i = 0; i < s.experts; ++i) {
        const double a = values[size_t(i)];
        double d = 0;
        // f_k P_k, and of P_k this token's share a_k / sum(a) / seq_len
        for (int k = 0; k < s.experts; ++k)
          d += balance * double(f(t / seq_len, k)) / double(seq_len) *
              ((i == k) / all - values[size_t(k)] / (all * all));
        if (std::find(top.begin(), top.end(), i) != top.end())
          for (int j = 0; j < s.topk; ++j) {  // w_j = scaling * a_j / chosen
            const int e = top[size_t(j)];
            d += double(dw(t, j)) * s.scaling *
                ((e == i) / chosen - values[size_t(e)] / (chosen * chosen));
          }
        expected(t, i) = d * a * (1 - a);
      }
    }
    this->template run<RouterI>(tokens,
        {.x = x,
            .topk_idx = idx,
            .dw = dw,
            .total = total,
            .f = f,
            .shape = s,
            .seq_len = seq_len,
            .balance = balance});
    if (s.experts > 1)
      expect_close(x, expected);
    else
      EXPECT_NEAR(double(x(0)), 0, 1e-6);  // one expert: nothing depends on its affinity
  }
}

// --- between token order and expert order --------------------------------------------------------

constexpr int64_t kTokens = 5, kTopk = 3;
Mat<int32_t> random_places(std::mt19937_64& rng) {
  std::vector<int32_t> order(kTokens * kTopk);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rng);
  Mat<int32_t> pos(kTokens, kTopk);
  for (int64_t i = 0; i < kTokens * kTopk; ++i) pos(i / kTopk, i % kTopk) = order[size_t(i)];
  return pos;
}
constexpr int64_t kWidths[] = {1, 31, 33, 255, 256, 257, 600};  // CombineF sums tiles of 256

TYPED_TEST(PermuteRows, CombineForward) {
  using T = typename TestFixture::T;
  for (int64_t d : kWidths)
    for (bool with_shared : {false, true}) {
      Mat<T> x(kTokens * kTopk, d), shared(kTokens, d), residual(kTokens, d), y(kTokens, d);
      Mat<Acc<T>> w(kTokens, kTopk);
      Mat<int32_t> pos = random_places(this->rng);
      x.random(this->rng), shared.random(this->rng), residual.random(this->rng),
          w.random(this->rng);
      Mat<double> expected(residual);
      for (int64_t t = 0; t < kTokens; ++t)
        for (int64_t c = 0; c < d; ++c) {
          if (with_shared) expected(t, c) += double(shared(t, c));
          for (int64_t j = 0; j < kTopk; ++j)
            expected(t, c) += double(w(t, j)) * double(x(pos(t, j), c));
        }
      this->template run<CombineF>(kTokens,
          {.x = x,
              .pos = pos,
              .w = w,
              .shared = with_shared ? Tensor(shared) : Tensor(),
              .residual = residual,
              .y = y});
      expect_close(y, expected);
    }
}

TYPED_TEST(PermuteRows, CombineBackward) {
  using T = typename TestFixture::T;
  for (int64_t d : kWidths) {
    Mat<T> x(kTokens * kTopk, d), dy(kTokens, d);
    Mat<Acc<T>> w(kTokens, kTopk), dw(kTokens, kTopk);
    Mat<int32_t> pos = random_places(this->rng);
    x.random(this->rng), dy.random(this->rng), w.random(this->rng);
    Mat<double> dx(x), expected_dw(kTokens, kTopk);
    expected_dw.fill(0);
    for (int64_t t = 0; t < kTokens; ++t)
      for (int64_t j = 0; j < kTopk; ++j)
        for (int64_t c = 0; c < d; ++c) {
          expected_dw(t, j) += double(dy(t, c)) * double(x(pos(t, j), c));
          dx(pos(t, j), c) = double(w(t, j)) * double(dy(t, c));
        }
    this->template run<CombineI>(kTokens, {.x = x, .dy = dy, .pos = pos, .w = w, .dw = dw});
    expect_close(x, dx);
    expect_close(dw, expected_dw, kTolerance<Acc<T>>);
  }
}

TYPED_TEST(PermuteRows, DispatchBackward) {
  using T = typename TestFixture::T;
  for (int64_t d : kWidths) {
    Mat<T> x(kTokens * kTopk, d), dx(kTokens, d);
    Mat<int32_t> pos = random_places(this->rng);
    x.random(this->rng), dx.random(this->rng);
    Mat<double> expected(dx);
    for (int64_t t = 0; t < kTokens; ++t)
      for (int64_t j = 0; j < kTopk; ++j)
        for (int64_t c = 0; c < d; ++c) expected(t, c) += double(x(pos(t, j), c));
    this->template run<DispatchI>(kTokens, {.x = x, .pos = pos, .dx = dx});
    expect_close(dx, expected);
  }
}

}  // namespace
}  // namespace duet
