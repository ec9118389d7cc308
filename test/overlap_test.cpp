// Sets of times and the overlap measured on them, against an oracle that looks at every nanosecond
// by itself.
#include <gtest/gtest.h>

#include <random>

#include "pipeline/insight/trace/intervals.h"

namespace duet {
namespace {

constexpr int kEnd = 120;
using Ticks = std::vector<bool>;  // [kEnd]

Ticks ticks_of(const std::vector<Interval>& intervals) {
  Ticks ticks(kEnd);
  for (const Interval& i : intervals)
    for (int64_t t = i.begin; t < i.end; ++t) ticks[size_t(t)] = true;
  return ticks;
}

std::vector<Interval> random_intervals(std::mt19937& rng) {
  std::vector<Interval> all(rng() % 9);
  for (Interval& i : all) {
    i.begin = rng() % kEnd;
    i.end = i.begin + rng() % std::min<int64_t>(20, kEnd - i.begin + 1);  // empty ones too
  }
  return all;
}

int64_t count(const Ticks& a, const Ticks& b, bool in_b = true) {
  int64_t n = 0;
  for (size_t t = 0; t < kEnd; ++t) n += a[t] && b[t] == in_b;
  return n;
}

TEST(Overlap, SetsAreThoseOfTheOracle) {
  std::mt19937 rng(1);
  for (int round = 0; round < 2000; ++round) {
    const auto a = random_intervals(rng), b = random_intervals(rng);
    const Times x = merged(a), y = merged(b);
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_LT(x[i].begin, x[i].end);
      EXPECT_TRUE(i == 0 || x[i - 1].end < x[i].begin);
    }
    const Ticks in_a = ticks_of(a), in_b = ticks_of(b);
    ASSERT_EQ(ticks_of(x), in_a);
    const Ticks both = ticks_of(common(x, y)), rest = ticks_of(without(x, y));
    for (size_t t = 0; t < kEnd; ++t) {
      ASSERT_EQ(both[t], in_a[t] && in_b[t]);
      ASSERT_EQ(rest[t], in_a[t] && !in_b[t]);
    }
    ASSERT_EQ(length(x), count(in_a, in_a));
    ASSERT_EQ(length(without(x, y)), count(in_a, in_b, false));
  }
}

TEST(Overlap, MeasuredIsThatOfTheOracle) {
  std::mt19937 rng(2);
  for (int round = 0; round < 2000; ++round) {
    const auto window = random_intervals(rng), compute = random_intervals(rng);
    const auto comm = random_intervals(rng), wait = random_intervals(rng);
    const Overlap o =
        overlap_within(merged(window), without(merged(compute), merged(wait)), merged(comm));
    Overlap expected;
    const Ticks w = ticks_of(window), c = ticks_of(compute), m = ticks_of(comm), s = ticks_of(wait);
    for (size_t t = 0; t < kEnd; ++t) {
      if (!w[t]) continue;
      const bool computes = c[t] && !s[t];
      ++expected.span;
      expected.compute += computes;
      expected.comm += m[t];
      expected.covered += computes && m[t];
    }
    ASSERT_EQ(o.span, expected.span);
    ASSERT_EQ(o.compute, expected.compute);
    ASSERT_EQ(o.comm, expected.comm);
    ASSERT_EQ(o.covered, expected.covered);
  }
}

TEST(Overlap, OfSeveralRanksAddsUp) {
  Overlap a{.span = 100, .compute = 60, .comm = 40, .covered = 30};
  a += {.span = 100, .compute = 50, .comm = 20, .covered = 15};
  EXPECT_EQ(a.span, 200);
  EXPECT_EQ(a.compute, 110);
  EXPECT_EQ(a.exposed(), 15);
  EXPECT_DOUBLE_EQ(a.fraction(), 0.75);
  EXPECT_EQ(Overlap().fraction(), 1);  // nothing to cover
}

}  // namespace
}  // namespace duet
