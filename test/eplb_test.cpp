// EPLB's policies against the published example, a slow oracle written from the algorithm's
// description, and all plans of small layers.
#include "moe/eplb.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>

#include "test/testing.h"

namespace duet {
namespace {

using Load = std::vector<float>;

// --- the oracle ----------------------------------------------------------------------------------

struct Item {
  int expert, replica;
  float weight;
};

// Packs of items, in order of arrival.
std::vector<std::vector<int>> oracle_pack(const std::vector<float>& weight, int packs) {
  const size_t room = weight.size() / size_t(packs);
  std::vector<std::vector<int>> pack(static_cast<size_t>(packs));
  if (room == 1) {
    for (int i = 0; i < packs; ++i) pack[size_t(i)] = {i};
    return pack;
  }
  std::vector<std::pair<float, int>> order;
  for (size_t i = 0; i < weight.size(); ++i) order.emplace_back(weight[i], int(i));
  std::sort(order.begin(), order.end(), [](auto a, auto b) { return a.first > b.first; });
  std::map<int, float> load;
  for (auto [w, i] : order) {
    std::vector<std::pair<float, int>> open;
    for (int p = 0; p < packs; ++p)
      if (pack[size_t(p)].size() < room) open.emplace_back(load[p], p);
    const int p = std::min_element(open.begin(), open.end())->second;
    pack[size_t(p)].push_back(i);
    load[p] += w;
  }
  return pack;
}

struct OraclePlan {
  std::vector<int> phy2log;
  std::map<std::pair<int, int>, int> slot;  // of (expert, replica)
};

OraclePlan oracle(const Load& load, int replicas, int groups, int nodes, int gpus) {
  if (groups % nodes) groups = nodes = 1;
  const int experts = int(load.size()), group_size = experts / groups;
  std::vector<float> group_weight;
  for (int g = 0; g < groups; ++g) {
    float sum = 0;
    for (int i = 0; i < group_size; ++i) sum += load[size_t(g * group_size + i)];
    group_weight.push_back(sum);
  }
  OraclePlan plan;
  for (const std::vector<int>& node_groups : oracle_pack(group_weight, nodes)) {
    std::vector<Item> item;
    for (int g : node_groups)
      for (int i = 0; i < group_size; ++i)
        item.push_back({g * group_size + i, 0, load[size_t(g * group_size + i)]});
    const size_t node_experts = item.size();
    std::vector<int> count(node_experts, 1);
    const auto share = [&](size_t i) { return item[i].weight / float(count[i]); };
    while (int(item.size()) < replicas / nodes) {
      size_t busiest = 0;
      for (size_t i = 0; i < node_experts; ++i)
        if (share(i) > share(busiest)) busiest = i;
      item.push_back({item[busiest].expert, count[busiest]++, 0});
    }
    std::vector<float> weight;
    for (const Item& it : item) {
      size_t first = 0;
      while (item[first].expert != it.expert) ++first;
      weight.push_back(share(first));
    }
    for (const std::vector<int>& gpu : oracle_pack(weight, gpus / nodes)) {
      for (int i : gpu) {
        plan.slot[{item[size_t(i)].expert, item[size_t(i)].replica}] = int(plan.phy2log.size());
        plan.phy2log.push_back(item[size_t(i)].expert);
      }
    }
  }
  return plan;
}

void expect_like_oracle(const Load& load, const EplbShape& s) {
  const ExpertPlacement plan = plan_experts(load, s);
  const OraclePlan o = oracle(load, s.replicas, s.groups, s.nodes, s.gpus);
  ASSERT_EQ(plan.phy2log, o.phy2log);
  size_t slots = 0;
  for (int e = 0; e < s.experts; ++e)
    for (int r = 0; r < plan.max_count; ++r) {
      const auto found = o.slot.find({e, r});
      slots += found != o.slot.end();
      ASSERT_EQ(
          plan.log2phy[size_t(e * plan.max_count + r)], found == o.slot.end() ? -1 : found->second);
    }
  ASSERT_EQ(slots, o.slot.size());
}

// --- loads and properties ------------------------------------------------------------------------

Load random_load(int experts, int kind, std::mt19937& random) {
  std::normal_distribution<double> normal;
  Load load(size_t(experts), 0.f);
  for (float& x : load) {
    if (kind == 0) x = float(std::exp(0.5 * normal(random)));
    if (kind == 1) x = float(random() % 4);                        // many ties
    if (kind == 2) x = random() % 3 ? 0 : float(random() % 1000);  // many zeros
    if (kind == 3) x = float(std::exp(3 * normal(random)));        // few take nearly all
  }
  // one takes all, the others nothing
  if (kind == 4) load[random() % load.size()] = 1e6f;
  return load;
}
constexpr int kKinds = 5;

const EplbShape kShapes[] = {{12, 16, 4, 2, 8}, {64, 80, 1, 1, 8}, {16, 24, 4, 2, 4},
    {32, 48, 8, 4, 16}, {64, 96, 8, 4, 16}, {8, 8, 1, 1, 8}, {10, 12, 3, 2, 4}, {8, 32, 4, 2, 4},
    {3, 24, 1, 1, 4}, {256, 288, 8, 4, 32}, {10, 12, 4, 3, 4}};

int pairs(const ExpertPlacement& p) {
  int n = 0;
  for (int g = 0; g < p.gpus; ++g) {
    const auto begin = p.phy2log.begin() + g * p.slots_per_gpu();
    n += p.slots_per_gpu() - int(std::set<int>(begin, begin + p.slots_per_gpu()).size());
  }
  return n;
}

double max_load(const ExpertPlacement& p, const Load& load) { return max_of(gpu_load(p, load)); }

void expect_valid(const ExpertPlacement& p, const EplbShape& s) {
  ASSERT_EQ(p.replicas(), s.replicas);
  ASSERT_EQ(p.experts(), s.experts);
  std::vector<int> count(size_t(s.experts), 0);
  for (int e : p.phy2log) ++count[size_t(e)];
  ASSERT_EQ(p.logcnt, count);
  ASSERT_EQ(p.max_count, *std::max_element(count.begin(), count.end()));
  ASSERT_GE(*std::min_element(count.begin(), count.end()), 1);
  std::set<int> seen;
  for (int e = 0; e < s.experts; ++e) {
    ASSERT_EQ(int(p.slots_of(e).size()), count[size_t(e)]);
    for (int slot : p.slots_of(e)) {
      ASSERT_EQ(p.phy2log[size_t(slot)], e);
      ASSERT_TRUE(seen.insert(slot).second);
    }
    for (int r = count[size_t(e)]; r < p.max_count; ++r)
      ASSERT_EQ(p.log2phy[size_t(e * p.max_count + r)], -1);
  }
}

// The nodes that hold every expert of a group.
std::set<int> homes(const ExpertPlacement& p, const EplbShape& s, int group, bool whole) {
  std::set<int> nodes;
  const int size = s.experts / s.groups;
  for (int node = 0; node < s.nodes; ++node) {
    bool all = true;
    for (int e = group * size; e < (group + 1) * size; ++e) {
      const auto slots = p.slots_of(e);
      const auto here = [&](int slot) { return p.gpu_of(slot) / (s.gpus / s.nodes) == node; };
      all = all &&
          (whole ? std::all_of(slots.begin(), slots.end(), here)
                 : std::any_of(slots.begin(), slots.end(), here));
    }
    if (all) nodes.insert(node);
  }
  return nodes;
}

// --- deepseek ------------------------------------------------------------------------------------

TEST(Eplb, PublishedExample) {
  const std::vector<Load> weight = {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
      {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};
  const std::vector<std::vector<int>> expected = {
      {5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
      {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}};
  for (size_t layer = 0; layer < 2; ++layer)
    EXPECT_EQ(plan_experts(weight[layer], {12, 16, 4, 2, 8}).phy2log, expected[layer]);
}

TEST(Eplb, DeepseekIsTheOracle) {
  std::mt19937 random(1);
  for (const EplbShape& s : kShapes)
    for (int n = 0; n < 40; ++n) expect_like_oracle(random_load(s.experts, n % kKinds, random), s);
}

// More than 16 equal weights: the order is that of the unstable sort, not that of the indices.
TEST(Eplb, TiesFollowTheUnstableSort) {
  const ExpertPlacement plan = plan_experts(Load(64, 1.f), {64, 64, 1, 1, 8});
  expect_valid(plan, {64, 64, 1, 1, 8});
  std::vector<int> in_order;
  for (int g = 0; g < 8; ++g)
    for (int i = 0; i < 8; ++i) in_order.push_back(i * 8 + g);
  EXPECT_NE(plan.phy2log, in_order);
  expect_like_oracle(Load(64, 1.f), {64, 64, 1, 1, 8});
}

TEST(Eplb, BadSizesNameTheirRule) {
  const auto refused = [](EplbShape s) {
    return error_of([&] { plan_experts(Load(size_t(s.experts), 1.f), s); });
  };
  EXPECT_EQ(refused({8, 8, 4, 2, 4}), "no error");
  EXPECT_EQ(refused({8, 8, 3, 2, 4}), "no error");   // 2 does not divide 3: without groups
  EXPECT_EQ(refused({8, 12, 4, 3, 4}), "no error");  // nor 3 4, nor is 4 a multiple of 3
  EXPECT_EQ(refused({9, 12, 4, 2, 4}), "--groups 4: expected a divisor of the 9 experts");
  EXPECT_EQ(refused({8, 9, 4, 2, 3}), "--gpus 3: expected a multiple of --nodes 2");
  EXPECT_EQ(refused({8, 10, 4, 2, 4}), "--replicas 10: expected a multiple of --gpus 4");
  EXPECT_EQ(refused({8, 4, 4, 2, 4}),
      "--replicas 4: expected at least as many as the 8 experts and at most 16384");
  EXPECT_EQ(refused({8, 8, 0, 2, 4}), "--groups 0: expected at least 1");
  EXPECT_EQ(refused({8, 8, 4, 0, 4}), "--nodes 0: expected at least 1");
  EXPECT_EQ(refused({8, 8, 4, 2, -4}), "--gpus -4: expected at least 1");
}

TEST(Eplb, LoadsThatAreNoLoadsAreRefused) {
  for (EplbPolicy policy : {EplbPolicy::deepseek, EplbPolicy::balanced})
    for (float bad :
        {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -1.f}) {
      Load load(8, 1.f);
      load[3] = bad;
      const std::string error = error_of([&] { plan_experts(load, {8, 12, 1, 1, 4}, {policy}); });
      EXPECT_EQ(error.find("load of expert 3: expected a finite number >= 0"), 0u) << error;
    }
}

// --- balanced ------------------------------------------------------------------------------------

TEST(Eplb, BalancedKeepsItsWord) {
  std::mt19937 random(2);
  int published_pairs = 0, left_pairs = 0;
  for (const EplbShape& s : kShapes) {
    const EplbShape used = s.checked();
    for (int n = 0; n < 30; ++n) {
      const Load load =
          n == 0 ? Load(size_t(s.experts), 0.f) : random_load(s.experts, n % kKinds, random);
      const ExpertPlacement published = plan_experts(load, s);
      const ExpertPlacement strict = plan_experts(load, s, {EplbPolicy::balanced});
      const ExpertPlacement leaving = plan_experts(load, s, {EplbPolicy::balanced, true});
      expect_valid(strict, s);
      expect_valid(leaving, s);
      EXPECT_LE(max_load(strict, load), max_load(published, load) * (1 + 1e-9));
      EXPECT_LE(max_load(leaving, load), max_load(strict, load) * (1 + 1e-9));
      for (int group = 0; group < used.groups; ++group) {
        EXPECT_EQ(homes(strict, used, group, true).size(), 1u);
        EXPECT_GE(homes(leaving, used, group, false).size(), 1u);
      }
      if (s.slots_per_gpu() <= s.experts / used.nodes) {
        published_pairs += pairs(published) > 0;
        left_pairs += pairs(strict) > 0;
        if (n % kKinds != 3) {
          EXPECT_LE(pairs(strict), used.gpus <= 8 && s.slots_per_gpu() == 2)
              << "only two slots a GPU may leave no choice";
        }
      }
      EXPECT_EQ(strict, plan_experts(load, s, {EplbPolicy::balanced}));
      EXPECT_EQ(strict.hash(), plan_experts(load, s, {EplbPolicy::balanced}).hash());
    }
  }
  EXPECT_GT(published_pairs, 50);
  EXPECT_LT(left_pairs, published_pairs / 10);
}

// The least max load of any plan without pairs: each expert in turn on every set of GPUs that
// leaves it below the best so far.
struct AllPlansWithoutPairs {
  const Load& load;
  int gpus, slots;
  double best = 1e30;
  std::vector<double> gpu = std::vector<double>(size_t(gpus), 0.);
  std::vector<int> used = std::vector<int>(size_t(gpus), 0);
  void place(size_t e) {
    if (e == load.size()) {
      if (std::all_of(used.begin(), used.end(), [&](int u) { return u == slots; }))
        best = max_of(gpu);
      return;
    }
    for (unsigned set = 1; set < 1u << gpus; ++set) {
      const auto gpu_before = gpu;
      const auto used_before = used;
      bool fits = true;
      for (size_t g = 0; g < gpu.size(); ++g) {
        if (!(set >> g & 1)) continue;
        gpu[g] += double(load[e]) / __builtin_popcount(set);
        fits = fits && ++used[g] <= slots && gpu[g] < best;
      }
      if (fits) place(e + 1);
      gpu = gpu_before;
      used = used_before;
    }
  }
};

TEST(Eplb, PairsOnlyWhereAllPlansWithoutAreWorse) {
  std::mt19937 random(3);
  int published_pairs = 0, needed_pairs = 0, best_possible = 0, plans = 0;
  for (const EplbShape& s : {EplbShape{4, 6, 1, 1, 2}, {4, 6, 1, 1, 3}, {3, 6, 1, 1, 3},
           {5, 8, 1, 1, 2}, {4, 8, 1, 1, 4}, {6, 8, 1, 1, 4}, {8, 12, 1, 1, 3}}) {
    for (int n = 0; n < 60; ++n) {
      Load load = random_load(s.experts, n % kKinds, random);
      std::sort(load.rbegin(), load.rend());
      const ExpertPlacement plan = plan_experts(load, s, {EplbPolicy::balanced});
      const double m = max_load(plan, load);
      AllPlansWithoutPairs all{load, s.gpus, s.slots_per_gpu()};
      all.place(0);
      ++plans;
      best_possible += m <= all.best * (1 + 1e-9);
      published_pairs += pairs(plan_experts(load, s)) > 0;
      needed_pairs += pairs(plan) > 0;
      if (pairs(plan) > 0) {
        EXPECT_GT(all.best, m) << "a pair that another plan does without";
      }
    }
  }
  EXPECT_GT(best_possible, plans * 9 / 10);
  EXPECT_GT(published_pairs, plans / 4);
  EXPECT_LT(needed_pairs, published_pairs / 10);
}

TEST(Eplb, OneExpertTakesAll) {
  Load load(64, 0.f);
  load[7] = 1000;
  const EplbShape s{64, 80, 1, 1, 8};
  const ExpertPlacement plan = plan_experts(load, s, {EplbPolicy::balanced});
  EXPECT_EQ(pairs(plan), 0);
  EXPECT_EQ(balancedness(gpu_load(plan, load)), 1);
  // 17 replicas: some GPU has three of them
  EXPECT_LT(balancedness(gpu_load(plan_experts(load, s), load)), 0.8);
}

// The published order of ties, whatever library this is built with; and where it is libstdc++, on
// loads of every kind.
TEST(EplbDeepseek, TiesAreOrderedAsPublished) {
  Load ties;
  for (int i = 0; i < 24; ++i) ties.push_back(float(i % 3));
  EXPECT_EQ(heaviest_first(ties),
      (std::vector<int>{
          23, 2, 20, 5, 17, 8, 14, 11, 1, 22, 19, 16, 13, 10, 7, 4, 12, 15, 9, 18, 6, 21, 3, 0}));
  EXPECT_EQ(heaviest_first(Load{}), std::vector<int>());
#ifdef __GLIBCXX__
  std::mt19937 random(9);
  for (int n = 1; n < 300; ++n)
    for (int kind = 0; kind < kKinds + 2; ++kind) {
      Load load = random_load(n, std::min(kind, kKinds - 1), random);
      if (kind == kKinds) std::sort(load.begin(), load.end());
      if (kind > kKinds) std::fill(load.begin(), load.end(), 1.f);
      std::vector<std::pair<float, int>> sorted;
      for (int i = 0; i < n; ++i) sorted.emplace_back(load[size_t(i)], i);
      std::sort(sorted.begin(), sorted.end(),
          [](const auto& a, const auto& b) { return a.first > b.first; });
      std::vector<int> expected;
      for (const auto& [weight, i] : sorted) expected.push_back(i);
      ASSERT_EQ(heaviest_first(load), expected) << n << " loads of kind " << kind;
    }
#endif
}

// --- placements ----------------------------------------------------------------------------------

TEST(Eplb, HashKnowsEverySlot) {
  const ExpertPlacement plan({0, 1, 2, 0}, 3, 2), other({0, 1, 0, 2}, 3, 2),
      gpus({0, 1, 2, 0}, 3, 4);
  const std::vector<int32_t> rank = {1, 0, 0, 0};
  const ExpertPlacement ranked({0, 1, 2, 0}, 3, 2, rank);
  EXPECT_EQ(plan.hash(), ExpertPlacement({0, 1, 2, 0}, 3, 2).hash());
  EXPECT_EQ((std::set<uint64_t>{plan.hash(), other.hash(), gpus.hash(), ranked.hash()}).size(), 4u);
}

TEST(Eplb, LoadsAndMoves) {
  const ExpertPlacement plan({0, 1, 2, 0}, 3, 2);
  EXPECT_EQ(gpu_load(plan, Load{4, 1, 3}), (std::vector<double>{3, 5}));
  EXPECT_EQ(balancedness(std::vector<double>{3, 5}), 0.8);
  EXPECT_EQ(balancedness(std::vector<double>{0, 0}), 1);
  EXPECT_EQ(moved_experts(plan, plan), 0);
  EXPECT_EQ(moved_experts(plan, ExpertPlacement({1, 0, 0, 2}, 3, 2)), 0);  // within a GPU
  EXPECT_EQ(moved_experts(plan, ExpertPlacement({0, 1, 2, 1}, 3, 2)), 1);
  EXPECT_EQ(moved_experts(plan, ExpertPlacement({2, 0, 0, 1}, 3, 2)), 2);
  // the second copy is made on the spot
  EXPECT_EQ(moved_experts(plan, ExpertPlacement({2, 2, 0, 1}, 3, 2)), 2);
}

}  // namespace
}  // namespace duet
