// The simulator against the papers' formulas, over a grid of sizes and costs, and against a slow
// one.
#include "pipeline/schedule/simulator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>

#include "pipeline/schedule/checker.h"
#include "test/random_schedule.h"

namespace duet {
namespace {

// Costs in eighths, so that all sums are exact.
double random_cost(std::mt19937& rng) { return int(1 + rng() % 24) / 8.0; }

// Random F, I, W and an FB between max(F, B) and F + B, both ends included at times.
StageCosts random_costs(std::mt19937& rng) {
  StageCosts c{random_cost(rng), random_cost(rng), random_cost(rng), 0};
  const double least = std::max(c.F, c.B()), most = c.F + c.B();
  c.FB = least + (most - least) * int(rng() % 5) / 4.0;
  return c;
}

// Starts all at 0 and moves each to the latest end it has to wait for, until nothing moves any
// more.
std::vector<std::vector<Span>> slow_simulation(const Schedule& s, const StageCosts& costs) {
  std::vector<std::vector<Span>> spans(s.pp);
  for (int rank = 0; rank < s.pp; ++rank) spans[rank].resize(s.ranks[rank].size(), {0, 0});
  for (bool moved = true; moved;) {
    moved = false;
    std::map<Thing, double> made;
    const auto parts_of = [](const Action& a) {
      std::vector<Action> parts = {{a.kind, a.stage, a.microbatch}};
      if (a.b_stage >= 0) parts.push_back({Kind::B, a.b_stage, a.b_microbatch});
      return parts;
    };
    for (int rank = 0; rank < s.pp; ++rank) {
      for (size_t i = 0; i < s.ranks[rank].size(); ++i) {
        for (const Action& a : parts_of(s.ranks[rank][i])) {
          if (a.kind != Kind::W)
            made[{a.kind == Kind::F ? Kind::F : Kind::I, a.stage, a.microbatch}] =
                spans[rank][i].end;
        }
      }
    }
    for (int rank = 0; rank < s.pp; ++rank) {
      for (size_t i = 0; i < s.ranks[rank].size(); ++i) {
        const Action& action = s.ranks[rank][i];
        double start = i ? spans[rank][i - 1].end : 0;
        for (const Action& a : parts_of(action)) {
          for (const Thing& need : needs_of(s, a)) start = std::max(start, made.at(need));
        }
        const double cost = action.b_stage >= 0 ? costs.FB
            : action.kind == Kind::F            ? costs.F
            : action.kind == Kind::I            ? costs.I
            : action.kind == Kind::W            ? costs.W
                                                : costs.I + costs.W;
        moved |= spans[rank][i].start != start || spans[rank][i].end != start + cost;
        spans[rank][i] = {start, start + cost};
      }
    }
  }
  return spans;
}

void expect_as_slow_one(const Schedule& s, const StageCosts& costs) {
  const Timing timing = simulate(s, {{costs}});
  const auto slow = slow_simulation(s, costs);
  double makespan = 0;
  for (int rank = 0; rank < s.pp; ++rank) {
    double busy = 0;
    ASSERT_EQ(timing.spans[rank].size(), slow[rank].size());
    for (size_t i = 0; i < slow[rank].size(); ++i) {
      ASSERT_DOUBLE_EQ(timing.spans[rank][i].start, slow[rank][i].start);
      ASSERT_DOUBLE_EQ(timing.spans[rank][i].end, slow[rank][i].end);
      busy += slow[rank][i].end - slow[rank][i].start;
      makespan = std::max(makespan, slow[rank][i].end);
    }
    EXPECT_NEAR(timing.makespan * timing.bubble_fraction[rank], timing.makespan - busy, 1e-9);
  }
  EXPECT_DOUBLE_EQ(timing.makespan, makespan);
}

TEST(Simulator, AgreesWithASlowOne) {
  std::mt19937 rng(7);
  for (int i = 0; i < 200; ++i)
    expect_as_slow_one(random_schedule(random_shape(rng), rng), random_costs(rng));
  for (const ScheduleKind& kind : schedule_kinds()) {
    for (const ScheduleSize size : {ScheduleSize{2, 4, 2}, {4, 8, 3}, {4, 12, 2}}) {
      expect_as_slow_one(kind.make(size), random_costs(rng));
    }
  }
}

TEST(Simulator, BubblesOfTheOlderSchedules) {
  std::mt19937 rng(8);
  for_all_sizes([&](int P, int M) {
    const int v = 2 + rng() % 3;
    const StageCosts c = random_costs(rng), equal = {c.F, c.F, c.F, 3 * c.F};
    SCOPED_TRACE(cat("v ", v, " F ", c.F, " I ", c.I, " W ", c.W));
    const auto bubble = [&](const char* name, int stages, const StageCosts& costs) {
      const Timing timing = simulate(make_schedule(name, {P, M, v}), {{costs}});
      return timing.makespan - M * stages * (costs.F + costs.B());
    };
    EXPECT_NEAR(bubble("gpipe", 1, c), (P - 1) * (c.F + c.B()), 1e-9);
    EXPECT_NEAR(bubble("1f1b", 1, c), (P - 1) * (c.F + c.B()), 1e-9);
    EXPECT_NEAR(bubble("zbv", 2, equal), std::max(P - 1, 4 * P - 2 - 2 * M) * c.F, 1e-9);
    if (M < P) return;
    EXPECT_NEAR(bubble("interleaved", v, c), (P - 1) * (c.F + c.B()), 1e-9);
    EXPECT_NEAR(bubble("zb1p", 1, c), (P - 1) * (c.F + c.I - std::min({c.F, c.I, c.W})), 1e-9);
  });
}

// half, m: DualPipe's P/2 and M/2, DualPipeV's P and M. The innermost rank is where the two
// directions (the two arms) meet.
void expect_dualpipe_formula(
    const Schedule& s, int innermost, int half, int m, const StageCosts& c) {
  const double H = half, FB = c.FB, B = c.B();
  const double bubble =
      (H - 1) * (FB - B + std::max(0.0, c.I - c.W)) + std::max((H - 1) * c.F, (H - 1) * c.I - c.F);
  const double makespan = bubble + (2 * m - 2 * H - 1) * FB + (2 * H + 1) * (c.F + B);
  const Timing timing = simulate(s, {{c}});
  EXPECT_NEAR(timing.makespan, makespan, 1e-9);
  EXPECT_NEAR(timing.makespan * timing.bubble_fraction[innermost], bubble, 1e-9);
  if (c.F == c.I && c.W <= c.I) {  // where the published formula is exact
    EXPECT_NEAR(bubble, (H - 1) * (FB + B - 3 * c.W), 1e-9);
  }
}

TEST(Simulator, BubblesOfDualPipeAndDualPipeV) {
  std::mt19937 rng(9);
  for (int i = 0; i < 800; ++i) {
    const int half = 1 + rng() % 6, m = 2 * half + rng() % 12;
    StageCosts c = random_costs(rng);
    if (i % 4 == 0) {  // so that the last lines above have their cases
      c.I = c.F, c.W = std::min(c.W, c.I);
      c.FB = c.F + c.B();
    }
    SCOPED_TRACE(cat("H ", half, " m ", m, " F ", c.F, " I ", c.I, " W ", c.W, " FB ", c.FB));
    const Schedule dual = make_schedule("dualpipe", {2 * half, 2 * m});
    expect_dualpipe_formula(dual, half - 1, half, m, c);
    expect_dualpipe_formula(dual, half, half, m, c);
    expect_dualpipe_formula(make_schedule("dualpipev", {half, m}), half - 1, half, m, c);
  }
}

TEST(Simulator, ZBH2IsIdleBeforeAndAfterAlone) {
  std::mt19937 rng(10);
  for_all_sizes([&](int P, int M) {
    if (M < 2 * P - 1) return;
    const double W = 0.1 + 0.01 * (rng() % 90);  // no more than F and I, which are 1
    const Schedule s = make_schedule("zb-h2", {P, M});
    for (const StageCosts& c : {StageCosts(), StageCosts{1, 1, W, 2 + W}}) {
      const double span = longest_span(simulate(s, {{c}}));
      EXPECT_NEAR(span, M * c.FB + (P - 1) * (c.F + c.I - 2 * c.W), 1e-9) << W;  // table 1
    }
  });
}

// "Pipeline Parallelism with Controllable Memory": V-Half keeps (P + 2) / 2 activations of a P-th
// of the model and idles for about 3P actions, V-Min (P + 4) / 3 and 4P.
TEST(Simulator, VHalfAndVMinKeepTheirPromises) {
  for_all_sizes([](int P, int M) {
    if (M < 2 * P) return;
    for (const bool half : {false, true}) {
      const Schedule s = make_schedule(half ? "v-half" : "v-min", {P, M});
      EXPECT_EQ(check(s).peak(), half ? (P + 2) / 2 * 2 : (P + 4) / 3 * 2) << s.name;
      const double idle = simulate(s, {{StageCosts()}}).makespan - 6 * M;
      EXPECT_LE(idle, P == 1 ? 0 : half ? 3.5 * P - 3 : 4 * P - 3) << s.name;
    }
  });
}

TEST(Simulator, ZBVHasNoIdleTimeInsideWithEqualCosts) {
  for_all_sizes([](int P, int M) {
    if (M < 2 * P - 1) return;
    const Timing timing = simulate(make_schedule("zbv", {P, M}), {{StageCosts()}});
    for (const std::vector<Span>& spans : timing.spans)
      EXPECT_DOUBLE_EQ(spans.back().end - spans.front().start, 6 * M);
  });
}

TEST(Simulator, AMillionActionsInAboutASecond) {
  const Schedule s = make_schedule("1f1b", {64, 8192});  // 2 * 64 * 8192 = 1,048,576
  const auto start = std::chrono::steady_clock::now();
  const Timing timing = simulate(s, {{StageCosts()}});
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_DOUBLE_EQ(timing.makespan, 3.0 * (8192 + 63));
  EXPECT_LT(seconds, 5);  // a loaded machine, a sanitizer
  RecordProperty("milliseconds", int(seconds * 1000));
}

TEST(Costs, Text) {
  const StageCosts costs = parse_costs("W=0.5,FB=2.25,F=1.25");
  EXPECT_EQ(costs.F, 1.25);
  EXPECT_EQ(costs.I, 1);
  EXPECT_EQ(costs.W, 0.5);
  EXPECT_EQ(costs.FB, 2.25);
  EXPECT_EQ(parse_costs("").FB, 3);
  EXPECT_EQ(parse_costs("F=2,W=3").FB, 6);
  EXPECT_EQ(parse_costs("F=1e9,I=1e-12").F, 1e9);
  for (const char* text : {"F", "F=", "F=x", "F=1x", "F=0", "F=-1", "F=nan", "F=inf", "B=2", "=1",
           "F=1,,I=1", "F=1,F=2", "F 1", "F=1e308,I=1e308", "W=1.1e9", "FB=1e-13"}) {
    EXPECT_THROW(parse_costs(text), UsageError) << text;
  }
}

}  // namespace
}  // namespace duet
