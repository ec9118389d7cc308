// Quotas against the optimum over all sets of GPUs, the incremental planner's promises, and the
// figures that the studies print.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <sstream>

#include "moe/eplb_incremental.h"
#include "moe/eplb_quota.h"
#include "test/study/eplb_study.h"

namespace duet {
namespace {

struct Case {
  ExpertPlacement placement;
  std::vector<int32_t> counts;  // [gpus, experts]
  std::vector<int64_t> tokens;  // [experts]
};

// A plan for other loads than those that come: log loads differ by `stale`.
Case random_case(const EplbShape& s, double stale, std::mt19937& random) {
  std::normal_distribution<double> normal;
  std::vector<float> load;
  for (int e = 0; e < s.experts; ++e) load.push_back(float(1000 * std::exp(0.7 * normal(random))));
  Case c{
      plan_experts(load, s, {EplbPolicy::balanced}), {}, std::vector<int64_t>(size_t(s.experts))};
  for (float& x : load) x *= float(std::exp(stale * normal(random)));
  for (int rank = 0; rank < s.gpus; ++rank)
    for (size_t e = 0; e < load.size(); ++e) {
      c.counts.push_back(int32_t(load[e] / float(s.gpus) * std::exp(0.3 * normal(random))));
      c.tokens[e] += c.counts.back();
    }
  return c;
}

// The least possible maximum: the tokens that can only go to GPUs of a set must fit there, for
// every set.
double optimum(const ExpertPlacement& p, std::span<const int64_t> tokens) {
  double best = 0;
  for (unsigned set = 1; set < 1u << p.gpus; ++set) {
    int64_t captive = 0;
    for (int e = 0; e < p.experts(); ++e) {
      bool inside = true;
      for (int slot : p.slots_of(e)) inside = inside && (set >> p.gpu_of(slot) & 1);
      if (inside) captive += tokens[size_t(e)];
    }
    best = std::max(best, double(captive) / __builtin_popcount(set));
  }
  return best;
}

TEST(EplbQuota, LevelsAsFarAsReplicasAllow) {
  std::mt19937 random(1);
  double mean = 0;
  for (int n = 0; n < 200; ++n) {
    const Case c = random_case(
        n % 2 ? EplbShape{64, 80, 1, 1, 8} : EplbShape{16, 24, 1, 1, 4}, 0.1 * (n % 4), random);
    const std::vector<int64_t> quota = slot_quotas(c.tokens, c.placement);
    const double ratio = max_of(quota_load(c.placement, quota)) / optimum(c.placement, c.tokens);
    EXPECT_LT(ratio, 1.02);
    mean += ratio / 200;
  }
  EXPECT_LT(mean, 1.002);
}

TEST(EplbQuota, ALateExpertIsLevelledExactly) {
  // GPU 0 has expert 0 alone and half a choice in 1, GPU 1 the other half and 2.
  const ExpertPlacement p({0, 1, 1, 2}, 3, 2);
  // the odd one: to the idler
  EXPECT_EQ(slot_quotas(std::vector<int64_t>{10, 10, 3}, p), (std::vector<int64_t>{10, 1, 9, 3}));
  EXPECT_EQ(slot_quotas(std::vector<int64_t>{10, 5, 0}, p), (std::vector<int64_t>{10, 0, 5, 0}));
  EXPECT_EQ(slot_quotas(std::vector<int64_t>{0, 0, 0}, p), (std::vector<int64_t>{0, 0, 0, 0}));
  // A pair on one GPU: the first slot serves for both.
  EXPECT_EQ(slot_quotas(std::vector<int64_t>{12}, ExpertPlacement({0, 0, 0, 0}, 1, 2)),
      (std::vector<int64_t>{6, 0, 6, 0}));
}

TEST(EplbQuota, NoTokenIsLostAndOwnReplicasComeFirst) {
  std::mt19937 random(2);
  for (int n = 0; n < 40; ++n) {
    const EplbShape s{32, 48, 1, 1, 8};
    const Case c = random_case(s, 0.3, random);
    const int per_node = n % 2 ? 2 : 8;
    const std::vector<int32_t> quota = rank_quotas(c.counts, c.placement, per_node);
    ASSERT_EQ(quota, rank_quotas(c.counts, c.placement, per_node));
    const std::vector<int64_t> totals = slot_quotas(c.tokens, c.placement);
    for (int e = 0; e < s.experts; ++e) {
      for (int rank = 0; rank < s.gpus; ++rank) {
        int64_t sum = 0;
        for (int slot : c.placement.slots_of(e)) {
          const int32_t q = quota[size_t(rank * s.replicas + slot)];
          ASSERT_GE(q, 0);
          sum += q;
          // What a rank keeps for itself is all that it has or all that its slot takes.
          if (c.placement.gpu_of(slot) == rank) {
            EXPECT_EQ(
                q, std::min<int64_t>(c.counts[size_t(rank * s.experts + e)], totals[size_t(slot)]));
          }
        }
        ASSERT_EQ(sum, c.counts[size_t(rank * s.experts + e)]);
      }
    }
    for (int slot = 0; slot < s.replicas; ++slot) {
      int64_t sum = 0;
      for (int rank = 0; rank < s.gpus; ++rank) sum += quota[size_t(rank * s.replicas + slot)];
      ASSERT_EQ(sum, totals[size_t(slot)]);
    }
  }
}

TEST(EplbIncremental, MovesFewSlotsAndOnlyToGain) {
  std::mt19937 random(3);
  int moved = 0;
  for (int n = 0; n < 20; ++n) {
    const EplbShape s{32, 40, 1, 1, 8};
    const Case c = random_case(s, 1.0, random);
    const int budget = 1 + n % 4, gpus_per_node = n % 2 ? 4 : 0;
    const ExpertPlacement next = plan_incremental(c.placement, c.tokens, budget, gpus_per_node);
    EXPECT_EQ(next, plan_incremental(c.placement, c.tokens, budget, gpus_per_node));
    int changed = 0;
    for (int slot = 0; slot < s.replicas; ++slot) {
      const int e = next.phy2log[size_t(slot)];
      if (e == c.placement.phy2log[size_t(slot)]) continue;
      ++changed;
      bool known = gpus_per_node == 0;
      for (int old : c.placement.slots_of(e))
        known = known || c.placement.gpu_of(old) / 4 == c.placement.gpu_of(slot) / 4;
      EXPECT_TRUE(known) << "an expert came to a node that did not have it";
    }
    EXPECT_LE(changed, budget);
    EXPECT_EQ(changed, moved_experts(c.placement, next));
    for (int count : next.logcnt) EXPECT_GE(count, 1);
    const double before = expected_balancedness(c.placement, c.tokens),
                 after = expected_balancedness(next, c.tokens);
    EXPECT_TRUE(changed ? after > before : after == before);
    moved += changed;
  }
  EXPECT_GT(moved, 20);
}

TEST(EplbIncremental, ALevelLayerIsLeftAlone) {
  const ExpertPlacement p({0, 1, 1, 2}, 3, 2);
  EXPECT_EQ(plan_incremental(p, std::vector<int64_t>{10, 6, 10}, 3), p);
}

TEST(EplbIncremental, KeepSlotsReordersGpusOnly) {
  const ExpertPlacement from({0, 1, 2, 3, 4, 0}, 5, 2), to({2, 4, 0, 1, 3, 2}, 5, 2);
  const ExpertPlacement kept = keep_slots(from, to);
  EXPECT_EQ(kept.phy2log, (std::vector<int32_t>{0, 4, 2, 3, 1, 2}));
  EXPECT_EQ(moved_experts(from, kept), moved_experts(from, to));
}

// --- the figures of moe/README.md ----------------------------------------------------------------

TEST(EplbStudy, BalancedReachesItsGoals) {
  for (double sigma : {0.3, 0.5, 0.8}) {
    const PolicyResult large = policy_study({64, 80, 1, 1, 8}, sigma, 100),
                       small = policy_study({16, 24, 1, 1, 4}, sigma, 100);
    EXPECT_GE(large.balanced, 0.999);
    EXPECT_GE(small.balanced, 0.995);
    EXPECT_LT(large.deepseek, 0.998);
    const PolicyResult nodes = policy_study({256, 320, 8, 8, 64}, sigma, 10);
    // the hierarchy costs more than the packing
    EXPECT_GT(nodes.leaving - nodes.balanced, nodes.balanced - nodes.deepseek);
  }
}

TEST(EplbStudy, FewMovesKeepUpWithDrift) {
  std::ostringstream table;
  const std::vector<DriftRow> rows = print_drift_study(table, {.intervals = 6});
  const DriftRow &published = rows.front(), &incremental = rows.back();
  EXPECT_NEAR(published.balancedness, 0.90, 0.01);
  EXPECT_NEAR(rows[rows.size() - 2].balancedness, incremental.balancedness, 0.002);  // by token
  EXPECT_GT(published.moves, 55);
  EXPECT_GE(incremental.balancedness, 0.99);
  EXPECT_GE(incremental.worst, 0.98);
  EXPECT_LE(incremental.max_moves, 3);
  EXPECT_NE(table.str().find("incremental, by segment"), std::string::npos) << table.str();
}

}  // namespace
}  // namespace duet
