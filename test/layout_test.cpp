// Who is who among the ranks, which layers a stage has, and the numbers of a step that all ranks
// agree on.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <set>

#include "comm/gather_named.h"
#include "pipeline/schedule/layout.h"
#include "test/data_files.h"
#include "test/processor_clock.h"

namespace duet {
namespace {

using Bounds = std::vector<int64_t>;

// --- layout --------------------------------------------------------------------------------------

TEST(Layout, EveryRankHasOnePlaceAndKnowsItsNeighbours) {
  const Layout layout{.dp = 3, .pp = 4};
  ASSERT_EQ(layout.world(), 12);
  std::set<std::pair<int, int>> places;
  for (int rank = 0; rank < 12; ++rank) {
    const int p = layout.pp_rank(rank), d = layout.dp_rank(rank);
    EXPECT_TRUE(p >= 0 && p < 4 && d >= 0 && d < 3);
    EXPECT_EQ(layout.rank(p, d), rank);
    places.emplace(p, d);
    ASSERT_EQ(layout.pipeline_of(rank).size(), 4u);
    ASSERT_EQ(layout.copies_of({p}).size(), 3u);
    for (int q = 0; q < 4; ++q) EXPECT_EQ(layout.pipeline_of(rank)[size_t(q)], layout.rank(q, d));
    for (int e = 0; e < 3; ++e) EXPECT_EQ(layout.copies_of({p})[size_t(e)], layout.rank(p, e));
  }
  EXPECT_EQ(places.size(), 12u);
  EXPECT_EQ(layout.copies_of({1}), (std::vector<int>{3, 4, 5}));  // of one stage: neighbours
  EXPECT_EQ(layout.copies_of({1, 3}), (std::vector<int>{3, 4, 5, 9, 10, 11}));
  const Layout sharded{.dp = 4, .pp = 2, .ep = 2};
  EXPECT_EQ(sharded.expert_parallel_of(7), (std::vector<int>{6, 7}));
  EXPECT_EQ(sharded.expert_copies_of(7, {0, 1}), (std::vector<int>{1, 3, 5, 7}));
}

// --- split ---------------------------------------------------------------------------------------

double part_cost(const ModelConfig& c, int64_t seq_len, int64_t begin, int64_t end) {
  double sum = end == c.n_layers ? c.head_flops_per_token() : 0;
  for (int64_t l = begin; l < end; ++l) sum += c.layer_flops_per_token(l, seq_len);
  return sum;
}

// What a split is judged by, the more important first: the largest part, then how late the last
// part begins; and so on for the layers before it. Smaller is better.
std::vector<double> judged(const ModelConfig& c, int64_t seq_len, const Bounds& bounds) {
  std::vector<double> by;
  for (size_t parts = bounds.size() - 1; parts > 0; --parts) {
    double largest = 0;
    for (size_t i = 0; i < parts; ++i)
      largest = std::max(largest, part_cost(c, seq_len, bounds[i], bounds[i + 1]));
    by.push_back(largest);
    by.push_back(-double(bounds[parts - 1]));
  }
  return by;
}

// Every way to cut layers begin .. n-1 into `parts`, after `bounds`.
void all_splits(
    int64_t n, int parts, const Bounds& bounds, const std::function<void(const Bounds&)>& visit) {
  const int64_t begin = bounds.back();
  for (int64_t end = begin + 1; end <= n - (parts - 1); ++end) {
    if (parts == 1 && end < n) continue;
    Bounds longer = bounds;
    longer.push_back(end);
    if (parts == 1)
      visit(longer);
    else
      all_splits(n, parts - 1, longer, visit);
  }
}

TEST(SplitLayers, IsTheBestOfAllSplits) {
  std::mt19937 rng(5);
  for (int i = 0; i < 60; ++i) {
    ModelConfig c;
    c.n_layers = 1 + rng() % 9;
    c.first_k_dense = rng() % (c.n_layers + 1);
    c.d_ff = 32 << rng() % 6;
    c.vocab_size = 64 << rng() % 7;
    const int stages = int(1 + rng() % c.n_layers);
    Bounds best;
    all_splits(c.n_layers, stages, {0}, [&](const Bounds& bounds) {
      if (best.empty() || judged(c, 64, bounds) < judged(c, 64, best)) best = bounds;
    });
    EXPECT_EQ(split_layers(c, 64, stages, {}), best)
        << c.n_layers << " layers, " << stages << " stages";
  }
}

TEST(SplitLayers, EqualLayersGiveTheEarlierPartsMore) {
  ModelConfig c;
  c.n_layers = 7;
  c.first_k_dense = 0;
  c.vocab_size = 2;
  EXPECT_EQ(split_layers(c, 64, 3, {}), (Bounds{0, 3, 6, 7}));
  EXPECT_EQ(split_layers(c, 64, 2, {}), (Bounds{0, 4, 7}));
  c.vocab_size = 1 << 16;  // a head that outweighs all layers: the last part has one
  EXPECT_EQ(split_layers(c, 64, 2, {}), (Bounds{0, 6, 7}));
}

// Cuts tried one by one, of equal ones the last: the definition, cubic in the layers.
Bounds naive_split(const ModelConfig& c, int stages) {
  std::vector<double> up_to = {0};
  for (int64_t l = 0; l < c.n_layers; ++l)
    up_to.push_back(up_to.back() + c.layer_flops_per_token(l, 64));
  up_to.back() += c.head_flops_per_token();
  const size_t n = size_t(c.n_layers);
  std::vector<std::vector<double>> largest(
      size_t(stages) + 1, std::vector<double>(n + 1, HUGE_VAL));
  std::vector<std::vector<size_t>> cut(size_t(stages) + 1, std::vector<size_t>(n + 1));
  largest[0][0] = 0;
  for (size_t s = 1; s <= size_t(stages); ++s)
    for (size_t l = s; l <= n; ++l)
      for (size_t k = s - 1; k < l; ++k)
        if (const double part = std::max(largest[s - 1][k], up_to[l] - up_to[k]);
            part <= largest[s][l])
          largest[s][l] = part, cut[s][l] = k;
  Bounds bounds = {int64_t(n)};
  for (size_t s = size_t(stages), l = n; s > 0; --s)
    bounds.insert(bounds.begin(), int64_t(l = cut[s][l]));
  return bounds;
}

TEST(SplitLayers, IsTheDefinitionsForManyLayers) {
  std::mt19937 rng(6);
  for (int i = 0; i < 60; ++i) {
    ModelConfig c;
    c.n_layers = 1 + rng() % 90;
    c.first_k_dense = rng() % (c.n_layers + 1);
    c.d_ff = 32 << rng() % 6;
    c.vocab_size = 64 << rng() % 9;
    const int stages = int(1 + rng() % c.n_layers);
    EXPECT_EQ(split_layers(c, 64, stages, {}), naive_split(c, stages))
        << c.n_layers << " layers, " << stages << " stages";
  }
}

TEST(SplitLayers, AMillionLayersAreCutAtOnce) {
  ModelConfig c;
  c.n_layers = 1'000'000;
  const double begin = processor_seconds();
  const Bounds bounds = split_layers(c, 64, 2, {});
  EXPECT_LT(processor_seconds() - begin, 5);
  EXPECT_EQ(bounds.back(), 1'000'000);
}

TEST(SplitLayers, TakesAndRefusesWhatTheUserSays) {
  ModelConfig c;
  c.n_layers = 14;
  const auto refused = [&](const std::string& split, int stages = 4) {
    return usage_error([&] { split_layers(c, 64, stages, parse_split(split)); });
  };
  EXPECT_EQ(split_layers(c, 64, 4, parse_split("3,4,4,3")), (Bounds{0, 3, 7, 11, 14}));
  expect_contains(refused("3,4,4,4"), {"--split", "4 parts of 15 layers", "4 parts of 14 layers"});
  expect_contains(refused("7,7"), {"--split", "2 parts", "4 parts"});
  expect_contains(refused("3,4,4,2,1"), {"--split", "5 parts", "4 parts"});
  expect_contains(refused("3,8,0,3"), {"--split", "'0'", "1 to 14"});
  expect_contains(refused("3,x,4,3"), {"--split", "'x'"});
  expect_contains(refused("3,4.5,4,3"), {"--split", "'4.5'"});
  expect_contains(refused("3,-4,4,11"), {"--split", "'-4'"});
  expect_contains(refused("3,,8,3"), {"--split", "''"});
  // wraps to 14
  expect_contains(
      refused("3,9223372036854775807,9223372036854775807,13"), {"--split", "9223372036854775807"});
  expect_contains(refused("", 15), {"--pp", "15", "14"});
}

// --- values by name ------------------------------------------------------------------------------

using Values = std::map<std::string, std::vector<double>>;

TEST(GatherNamed, NamesComeInOrderWithEveryRanksValues) {
  run_ranks({.ranks = 3}, [&](Comm& world) {
    for (double step : {0, 1000}) {
      const std::vector<Values> of_ranks = {
          {{"load 2", {step + 1}}, {"square b", {step + 2}}, {"load 1", {step + 3, step}}}, {},
          {{"load 1", {step + 10, 7}}, {"square a", {step + 20}}, {"square b", {step + 30}},
              {"load 2", {step + 40}}, {"", {}}}};
      const Gathered<std::vector<double>> all = gather_named(world, of_ranks[size_t(world.rank())]);
      const Gathered<std::vector<double>> expected = {{"", {{2, {}}}},
          {"load 1", {{0, {step + 3, step}}, {2, {step + 10, 7}}}},
          {"load 2", {{0, {step + 1}}, {2, {step + 40}}}}, {"square a", {{2, {step + 20}}}},
          {"square b", {{0, {step + 2}}, {2, {step + 30}}}}};
      EXPECT_EQ(all, expected);
      EXPECT_EQ(sum_over_ranks(all.at("load 1")), (std::vector<double>{2 * step + 13, step + 7}));
      EXPECT_EQ(sum_over_ranks(all.at("load 2")), (std::vector<double>{2 * step + 41}));
      EXPECT_EQ(sum_over_ranks(all.at("square a")), (std::vector<double>{step + 20}));
      EXPECT_TRUE(sum_over_ranks(all.at("")).empty());
    }
  });
}

TEST(GatherNamed, TakesStringsAndIntegers) {
  run_ranks({.ranks = 2}, [](Comm& world) {
    const std::string zero("a\0b", 3);
    const std::map<std::string, std::string> text = {{zero, zero}, {"mine", cat(world.rank())}};
    const Gathered<std::string> texts = gather_named(world, text);
    EXPECT_EQ(texts,
        (Gathered<std::string>{{zero, {{0, zero}, {1, zero}}}, {"mine", {{0, "0"}, {1, "1"}}}}));
    const std::map<std::string, std::vector<int64_t>> shape = {{"x", {world.rank(), -1}}};
    EXPECT_EQ(gather_named(world, shape).at("x"),
        (ByRank<std::vector<int64_t>>{{0, {0, -1}}, {1, {1, -1}}}));
  });
}

// Values so different in size that another order would give another sum.
TEST(GatherNamed, AddsInTheOrderOfRanks) {
  const double parts[4] = {1e16, 1, -1e16, 1};
  run_ranks({.ranks = 4}, [&](Comm& world) {
    const auto all = gather_named(world, Values{{"x", {parts[world.rank()]}}});
    const double sum = sum_over_ranks(all.at("x")).at(0);
    EXPECT_EQ(sum, ((parts[0] + parts[1]) + parts[2]) + parts[3]);
    EXPECT_NE(sum, ((parts[0] + parts[2]) + parts[1]) + parts[3]);
  });
}

TEST(GatherNamed, AMissingValueIsAnError) {
  EXPECT_THROW(run_ranks({.ranks = 2},
                   [](Comm& world) {
                     const size_t n = world.rank() == 1 ? 1 : 2;
                     const Values mine = {{"a", std::vector<double>(n)}};
                     sum_over_ranks(gather_named(world, mine).at("a"));
                   }),
      Error);
}

}  // namespace
}  // namespace duet
