// Moe against a naive mixture of experts, a loop over tokens and experts in double; load, balance
// loss, bias, dispatch plan.
#include "moe/moe.h"

#include <algorithm>
#include <numeric>

#include "moe/dispatch_plan.h"
#include "test/model_testing.h"

namespace duet {
namespace {

constexpr int64_t kSeqLen = 5, kSequences = 3;

using Row = std::vector<double>;
Row row_of(const Tensor& t, int64_t r) { return Row(t.row<double>(r), t.row<double>(r) + t.cols); }
Row times(const Row& x, const Tensor& w) {  // x W
  Row y(size_t(w.cols), 0.0);
  for (int64_t i = 0; i < w.rows; ++i)
    for (int64_t j = 0; j < w.cols; ++j) y[size_t(j)] += x[size_t(i)] * w.row<double>(i)[j];
  return y;
}
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
std::vector<int> top(const Row& values, int64_t k) {  // indices of the k largest, best first
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
      [&](int a, int b) { return values[size_t(a)] > values[size_t(b)]; });
  order.resize(size_t(k));
  return order;
}

struct NaiveMoe {
  const Bench& b;

  Row expert(const Row& x, const std::string& prefix) const {
    const Row gate = times(x, b.weight(prefix + "gate_proj.weight")),
              up = times(x, b.weight(prefix + "up_proj.weight"));
    Row act;
    for (size_t i = 0; i < gate.size(); ++i) act.push_back(gate[i] * sigmoid(gate[i]) * up[i]);
    return times(act, b.weight(prefix + "down_proj.weight"));
  }
  Row affinities(const Row& x) const {
    Row s = times(x, b.weight("mlp.gate.weight"));
    for (double& a : s) a = sigmoid(a);
    return s;
  }
  std::vector<int> choice(const Row& affinity) const {
    const ModelConfig& c = b.config;
    Row biased = affinity, groups;
    for (size_t e = 0; e < biased.size(); ++e)
      biased[e] += b.weight("mlp.gate.e_score_correction_bias").row<double>(0)[e];
    const int64_t size = c.n_routed / c.n_group;
    for (int64_t q = 0; q < c.n_group; ++q) {
      Row members(biased.begin() + q * size, biased.begin() + (q + 1) * size);
      std::sort(members.rbegin(), members.rend());
      groups.push_back(members[0] + members[1]);
    }
    const std::vector<int> open = top(groups, c.topk_group);
    for (size_t e = 0; e < biased.size(); ++e)
      if (std::count(open.begin(), open.end(), int(e) / size) == 0) biased[e] = -1e300;
    return top(biased, c.topk);
  }
  // y without the residual; counts the chosen experts.
  Row forward(const Row& x, std::vector<int64_t>& load) const {
    const Row affinity = affinities(x);
    const std::vector<int> experts = choice(affinity);
    double sum = 0;
    for (int e : experts) sum += affinity[size_t(e)];
    Row y = b.config.n_shared ? expert(x, "mlp.shared_experts.") : Row(x.size(), 0.0);
    for (int e : experts) {
      const Row out = expert(x, cat("mlp.experts.", e, "."));
      for (size_t i = 0; i < y.size(); ++i)
        y[i] += affinity[size_t(e)] / sum * b.config.routed_scaling * out[i];
      ++load[size_t(e)];
    }
    return y;
  }
  // Equations 17 to 20 for the sequence that starts at x's row `begin`.
  double balance_loss(const Tensor& x, int64_t begin) const {
    const auto experts = size_t(b.config.n_routed);
    Row f(experts, 0.0), p(experts, 0.0);
    for (int64_t t = begin; t < begin + kSeqLen; ++t) {
      const Row affinity = affinities(row_of(x, t));
      const double sum = std::accumulate(affinity.begin(), affinity.end(), 0.0);
      for (int e : top(affinity, b.config.topk))
        f[size_t(e)] += double(experts) / double(b.config.topk * kSeqLen);
      for (size_t e = 0; e < experts; ++e) p[e] += affinity[e] / sum / double(kSeqLen);
    }
    return std::inner_product(f.begin(), f.end(), p.begin(), 0.0);
  }
};

void check_forward(const ModelConfig& config) {
  Bench b(config, kSeqLen, kSequences);
  Moe moe(b.context, b.params, b.params, "mlp.",
      {.microbatches = 2, .placement = each_expert_once(b.config)});
  b.allocate();
  const NaiveMoe naive{b};
  std::vector<int64_t> load(size_t(config.n_routed), 0);
  for (int microbatch : {1, 0}) {
    Buf x = b.random(b.context.tokens(), config.d_model),
        residual = b.random(b.context.tokens(), config.d_model);
    auto saved = moe.make_saved();
    saved->microbatch = microbatch;
    saved->x = x;
    saved->residual = residual;
    for (Phase phase : kForward) moe.run(phase, *saved);
    const Buf& y = saved->y;
    for (int64_t t = 0; t < y->rows; ++t) {
      const Row expected = naive.forward(row_of(x, t), load);
      for (int64_t i = 0; i < y->cols; ++i)
        ASSERT_NEAR(y->row<double>(t)[i], residual->row<double>(t)[i] + expected[size_t(i)], 1e-11)
            << "token " << t;
    }
    for (int64_t s = 0; s < kSequences; ++s)
      EXPECT_NEAR(moe.balance_loss(microbatch, s), naive.balance_loss(x, s * kSeqLen), 1e-12);
  }
  EXPECT_EQ(moe.load(), load);  // of both microbatches
  moe.clear_load();
  EXPECT_EQ(moe.load(), std::vector<int64_t>(load.size(), 0));
}

TEST(Moe, EqualsNaiveMixture) { check_forward(small_config()); }
TEST(Moe, EqualsNaiveMixtureWithoutSharedExpertsAndGroups) {
  ModelConfig c = small_config();
  c.n_shared = 0, c.n_group = c.topk_group = 1, c.topk = 3;
  check_forward(c);
}
TEST(Moe, EqualsNaiveMixtureWhereEveryExpertIsChosen) {
  ModelConfig c = small_config();
  c.n_group = c.topk_group = 1, c.topk = c.n_routed;
  check_forward(c);
}

TEST(Moe, BiasMovesTowardsTheMeanLoad) {
  for (Dtype dtype : {Dtype::f64, Dtype::f32}) {
    Bench b(small_config(), kSeqLen, kSequences, dtype);
    Moe moe(b.context, b.params, b.params, "mlp.", {.placement = each_expert_once(b.config)});
    b.allocate();
    const Tensor bias = b.weight("mlp.gate.e_score_correction_bias");
    std::vector<double> before;
    for (int64_t e = 0; e < 6; ++e) before.push_back(Bench::get(bias, 0, e));
    moe.update_bias({5, 3, 4, 4, 8, 0}, 0.25);  // mean 4
    const double moved[] = {-0.25, 0.25, 0, 0, -0.25, 0.25};
    for (int64_t e = 0; e < 6; ++e)
      EXPECT_NEAR(Bench::get(bias, 0, e), before[size_t(e)] + moved[e], 1e-7) << e;
    EXPECT_EQ(Bench::get(bias, 0, 2), before[2]);
    moe.update_bias({1, 0, 0, 0, 0, 0}, 0.25);  // mean 1/6
    EXPECT_NEAR(Bench::get(bias, 0, 0), before[0] - 0.5, 1e-7);
    EXPECT_NEAR(Bench::get(bias, 0, 2), before[2] + 0.25, 1e-7);
    for (int64_t e = 0; e < 6; ++e) before[size_t(e)] = Bench::get(bias, 0, e);
    moe.update_bias({0, 0, 0, 0, 0, 0}, 0.25);
    for (int64_t e = 0; e < 6; ++e) EXPECT_EQ(Bench::get(bias, 0, e), before[size_t(e)]);
  }
}

TEST(DispatchPlan, IsExpertOrderAndItsInverse) {
  std::mt19937 rng(1);
  for (auto [tokens, topk, experts] :
      {std::tuple{0, 2, 4}, {1, 1, 1}, {1, 3, 8}, {50, 2, 4}, {33, 8, 8}, {20, 1, 64}}) {
    std::vector<int32_t> idx;
    for (int t = 0; t < tokens; ++t) {
      std::vector<int32_t> all(static_cast<size_t>(experts));
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), rng);
      std::sort(all.begin(), all.begin() + topk);
      idx.insert(idx.end(), all.begin(), all.begin() + topk);
    }
    const DispatchPlan plan(idx, topk, experts);
    std::vector<std::pair<int, int>> expected;  // (expert, token): sorted, it is expert order
    for (size_t i = 0; i < idx.size(); ++i) expected.push_back({idx[i], int(i) / topk});
    std::sort(expected.begin(), expected.end());
    ASSERT_EQ(plan.offsets.size(), size_t(experts) + 1);
    ASSERT_EQ(plan.offsets.back(), tokens * topk);
    ASSERT_EQ(plan.token.size(), idx.size());
    for (int e = 0; e < experts; ++e)
      for (int64_t r = plan.offsets[size_t(e)]; r < plan.offsets[size_t(e) + 1]; ++r)
        ASSERT_EQ(expected[size_t(r)], std::pair(e, int(plan.token[size_t(r)])));
    for (size_t i = 0; i < idx.size(); ++i)
      ASSERT_EQ(expected[size_t(plan.pos[i])], std::pair(int(idx[i]), int(i) / topk));
  }
}

}  // namespace
}  // namespace duet
