// Experts spread over ranks: the exchange plan against a naive one, and whole runs against one rank
// (the exactness ladder's second row: the first step's loss bit for bit, then rounding), under
// every schedule, with overlap on and off (the first row: every bit).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>
#include <tuple>

#include "moe/dispatch_plan.h"
#include "test/run_testing.h"

namespace duet {
namespace {

// of each rank [tokens, topk], ascending within a token
using Choices = std::vector<std::vector<int32_t>>;

Choices random_choices(std::mt19937& random, int ranks, int topk, int experts) {
  Choices choices(static_cast<size_t>(ranks));
  for (auto& of_rank : choices)
    for (int t = int(random() % 6); t > 0; --t) {
      std::vector<int32_t> all(static_cast<size_t>(experts));
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), random);
      std::sort(all.begin(), all.begin() + topk);
      of_rank.insert(of_rank.end(), all.begin(), all.begin() + topk);
    }
  return choices;
}

// What leaves a group of one, either way, is in order: nothing need be moved.
void expect_nothing_moves(const ExchangePlan& plan) {
  for (const std::vector<int32_t>& index : {plan.leave.token, plan.back.token, plan.back.pos}) {
    std::vector<int32_t> in_order(index.size());
    std::iota(in_order.begin(), in_order.end(), 0);
    EXPECT_EQ(index, in_order);
  }
}

// A piece ends just where slot, source or segment of a row change, and none is cut.
void expect_pieces(
    const ExchangePlan& plan, const std::vector<std::tuple<int, int, int64_t>>& rows) {
  std::vector<int64_t> ends = {0};
  for (size_t row = 1; row < rows.size(); ++row)
    if (rows[row] != rows[row - 1]) ends.push_back(int64_t(row));
  if (!rows.empty()) ends.push_back(int64_t(rows.size()));
  EXPECT_EQ(plan.pieces, ends);
  EXPECT_EQ(std::set(rows.begin(), rows.end()).size(), ends.size() - 1);
}

// The plan in the plainest way: a choice (slot, source, token, place among the token's) is a row of
// who has the slot; sorted so, its rows are in expert order.
void expect_plain_plan(
    const ExchangePlan& plan, const Choices& choices, int topk, int slots, int me) {
  std::vector<std::tuple<int, int, int, int>> rows, mine;
  std::set<std::pair<int, int>> received, left;  // (source, token), (target, token)
  for (int r = 0; r < int(choices.size()); ++r)
    for (int i = 0; i < int(choices[size_t(r)].size()); ++i) {
      const int slot = choices[size_t(r)][size_t(i)];
      if (slot / slots == me) rows.emplace_back(slot, r, i / topk, i % topk);
      if (slot / slots == me) received.emplace(r, i / topk);
      if (r == me)
        mine.emplace_back(slot, r, i / topk, i % topk), left.emplace(slot / slots, i / topk);
    }
  std::sort(rows.begin(), rows.end());
  std::sort(mine.begin(), mine.end());
  std::vector<int32_t> local, home(rows.size()), pos(mine.size()), leave;
  std::vector<int64_t> offsets(size_t(slots) + 1), sources(choices.size() + 1),
      back = sources, returned = sources, targets = sources;
  for (const auto& [slot, r, token, k] : rows) {
    local.push_back(int32_t(std::distance(received.begin(), received.find({r, token}))));
    for (int s = slot - me * slots; s < slots; ++s) ++offsets[size_t(s) + 1];
    for (size_t to = size_t(r); to < choices.size(); ++to) ++back[to + 1];
  }
  std::iota(home.begin(), home.end(), 0);
  std::stable_sort(home.begin(), home.end(), [&](int32_t a, int32_t b) {
    return std::get<1>(rows[size_t(a)]) < std::get<1>(rows[size_t(b)]);
  });
  for (size_t i = 0; i < mine.size(); ++i) {
    const auto& [slot, r, token, k] = mine[i];
    pos[size_t(token * topk + k)] = int32_t(i);
    for (size_t from = size_t(slot / slots); from < choices.size(); ++from) ++returned[from + 1];
  }
  for (const auto& [r, token] : received)
    for (size_t from = size_t(r); from < choices.size(); ++from) ++sources[from + 1];
  for (const auto& [to, token] : left) {
    leave.push_back(token);
    for (size_t r = size_t(to); r < choices.size(); ++r) ++targets[r + 1];
  }
  EXPECT_EQ(plan.local.token, local);
  EXPECT_EQ(plan.local.offsets, offsets);
  EXPECT_EQ(plan.received, sources);
  EXPECT_EQ(plan.back.token, home);
  EXPECT_EQ(plan.back.offsets, back);
  EXPECT_EQ(plan.pos, pos);
  EXPECT_EQ(plan.returned, returned);
  EXPECT_EQ(plan.leave.token, leave);
  EXPECT_EQ(plan.leave.offsets, targets);
}

// Each token knows the rows it was sent in, one a rank.
void expect_rows_of_tokens(
    const ExchangePlan& plan, const std::vector<int32_t>& mine, int topk, int slots) {
  for (size_t t = 0; t * size_t(topk) < mine.size(); ++t) {
    std::set<int> homes, sent;
    for (size_t i = t * size_t(topk); i < (t + 1) * size_t(topk); ++i) {
      homes.insert(mine[i] / slots);
      const int32_t row = plan.leave.pos[i];
      if (row < 0) continue;
      EXPECT_EQ(plan.leave.token[size_t(row)], int32_t(t));
      EXPECT_GE(row, plan.leave.offsets[size_t(mine[i] / slots)]);
      EXPECT_LT(row, plan.leave.offsets[size_t(mine[i] / slots) + 1]);
      EXPECT_TRUE(sent.insert(mine[i] / slots).second);
    }
    EXPECT_EQ(sent, homes);
  }
}

// What travels is named: a token by (rank, token), a result by (rank, token, expert). The plans of
// all ranks are carried out.
TEST(ExchangePlan, EveryTokenMeetsItsExpertsOnceAndComesBackInOrder) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const int ranks = 1 + int(random() % 4), slots = 1 + int(random() % 4);
    const int topk = 1 + int(random() % std::min(3, ranks * slots));
    const Choices choices = random_choices(random, ranks, topk, ranks * slots);
    std::vector<ExchangePlan> plans;
    const Pieces segments{2, 5, 1 + int64_t(random() % 5)};
    for (int r = 0; r < ranks; ++r) plans.emplace_back(choices, topk, slots, r, segments);

    if (ranks == 1) expect_nothing_moves(plans[0]);
    for (int r = 0; r < ranks; ++r) expect_plain_plan(plans[size_t(r)], choices, topk, slots, r);

    std::vector<std::vector<std::pair<int, int>>> received(plans.size());          // tokens
    std::vector<std::vector<std::tuple<int, int, int>>> returned(plans.size());    // results
    std::vector<std::vector<std::tuple<int, int, int64_t>>> pieces(plans.size());  // of each row
    for (int to = 0; to < ranks; ++to)
      for (int from = 0; from < ranks; ++from) {
        const ExchangePlan& p = plans[size_t(from)];
        ASSERT_EQ(p.leave.offsets[size_t(to) + 1] - p.leave.offsets[size_t(to)],
            plans[size_t(to)].received[size_t(from) + 1] -
                plans[size_t(to)].received[size_t(from)]);
        for (int64_t i = p.leave.offsets[size_t(to)]; i < p.leave.offsets[size_t(to) + 1]; ++i)
          received[size_t(to)].emplace_back(from, p.leave.token[size_t(i)]);
      }
    for (int home = 0; home < ranks; ++home)
      for (int from = 0; from < ranks; ++from) {
        const ExchangePlan& p = plans[size_t(from)];
        for (int64_t i = p.back.offsets[size_t(home)]; i < p.back.offsets[size_t(home) + 1]; ++i) {
          const int32_t row = p.back.token[size_t(i)];
          EXPECT_EQ(p.back.pos[size_t(row)], i);
          const auto [rank, token] = received[size_t(from)][size_t(p.local.token[size_t(row)])];
          EXPECT_EQ(rank, home);
          const auto begin = p.local.offsets.begin();
          const int slot = int(std::upper_bound(begin, p.local.offsets.end(), row) - begin) - 1;
          returned[size_t(home)].emplace_back(rank, token, from * slots + slot);
          pieces[size_t(from)].resize(p.local.token.size());
          pieces[size_t(from)][size_t(row)] = {slot, rank, segments.segments()[size_t(token)]};
        }
      }
    for (int r = 0; r < ranks; ++r) {
      const std::vector<int32_t>& mine = choices[size_t(r)];
      ASSERT_EQ(returned[size_t(r)].size(), mine.size());
      for (size_t j = 0; j < mine.size(); ++j) {  // each choice finds its own result
        const auto expected = std::tuple(r, int(j) / topk, int(mine[j]));
        EXPECT_EQ(returned[size_t(r)][size_t(plans[size_t(r)].pos[j])], expected);
      }
      expect_pieces(plans[size_t(r)], pieces[size_t(r)]);
      expect_rows_of_tokens(plans[size_t(r)], mine, topk, slots);
    }
  }
}

class ExpertParallel : public RunTest {
 protected:
  TrainOptions spread(const std::string& out, int64_t dp, int64_t ep, int64_t steps) const {
    TrainOptions o = options(out, steps);
    o.model = parse_sizes("n_layers=4");
    o.dp = dp;
    o.ep = ep;
    o.microbatches = 8 / dp;
    o.comm_timeout = 60;
    return o;
  }
};

TEST_F(ExpertParallel, HasTheBitsOfOneRank) {
  run(spread("one", 1, 1, 6));
  for (const auto& [dp, ep] :
      {std::pair(2, 1), std::pair(2, 2), std::pair(4, 2), std::pair(4, 4)}) {
    const std::string name = cat("dp", dp, "ep", ep);
    run(spread(name, dp, ep, 6));
    EXPECT_EQ(numbers(name), numbers("one")) << name;
  }
}

TEST_F(ExpertParallel, EveryScheduleAndOverlapHasTheSameBits) {
  run(spread("reference", 2, 2, 3));
  for (const char* schedule : {"1f1b", "zbv", "dualpipe", "dualpipev"})
    for (const bool overlap : {true, false}) {
      TrainOptions o = spread(cat(schedule, overlap), 2, 2, 3);
      o.pp = 2;
      o.schedule = schedule;
      o.overlap = overlap;
      run(o);
      EXPECT_EQ(bits(cat(schedule, overlap)), bits("reference"))
          << schedule << ", overlap " << overlap;
    }
}

TEST_F(ExpertParallel, ResumesWithTheSameBitsAndWithAnotherSpread) {
  run(spread("whole", 2, 2, 4));
  for (const int64_t ep : {2, 1}) {
    TrainOptions o = spread(cat("parts", ep), 2, 2, 2);
    run(o);
    o.steps = 4;
    o.ep = ep;
    o.resume = true;
    run(o);
    EXPECT_EQ(numbers(cat("parts", ep)), numbers("whole"));
    if (ep == 2) {
      EXPECT_EQ(bits("parts2"), bits("whole"));
    }
  }
}

TEST_F(ExpertParallel, RefusesSizesThatDoNotDivide) {
  TrainOptions o = spread("run", 2, 2, 1);
  o.ep = 3;
  expect_refused([&] { run(o); }, {"--ep", "3", "dp = 2"});
  o = spread("run", 4, 4, 1);
  o.model = parse_sizes("n_layers=4,n_routed=6,n_group=1,topk_group=1");
  expect_refused([&] { run(o); }, {"--ep", "4", "6 routed experts"});
}

}  // namespace
}  // namespace duet
