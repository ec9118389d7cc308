// The simulated lanes themselves: what their collectives give, and that they find lanes that
// diverge.
#include "test/sim_warp.h"

#include <gtest/gtest.h>

#include <set>

namespace duet {
namespace {

TEST(SimWarp, CollectivesGiveEveryLaneTheSame) {
  std::set<float> sums, tops;
  std::set<int> where;
  for (int order = 0; order < 2; ++order) {
    EXPECT_EQ(SimWarp::run([&](SimWarp g) {
      sums.insert(g.sum(1.0f / float(g.lane() + 1)));
      tops.insert(g.max(float(g.lane() * 7 % 32)));
      where.insert(g.best(Best<double>{double(g.lane() % 10), g.lane()}).index);
    }),
        "");
  }
  float halves[32];  // the butterfly's order: lane l adds lane l + 16, then l + 8, ...
  for (int l = 0; l < 32; ++l) halves[l] = 1.0f / float(l + 1);
  for (int d = 16; d > 0; d /= 2)
    for (int l = 0; l < d; ++l) halves[l] += halves[l + d];
  EXPECT_EQ(sums, std::set<float>{halves[0]});
  EXPECT_EQ(tops, std::set<float>{31});
  EXPECT_EQ(where, std::set<int>{9});  // of equal values the first
}

TEST(SimWarp, FindsLanesThatDiverge) {
  EXPECT_EQ(SimWarp::run([](SimWarp g) {
    if (g.lane() == 5) return;
    g.sync();
  }),
      "lanes diverge: lane 0 is at sync, lane 5 at the end");
  EXPECT_EQ(SimWarp::run([](SimWarp g) {
    g.sum(1);
    if (g.lane() < 31)
      g.sum(1.0f);
    else
      g.max(1.0f);
  }),
      "lanes diverge: lane 0 is at sum, lane 31 at max");
  EXPECT_EQ(SimWarp::run([](SimWarp g) { g.sync(); }), "");  // and goes on working
}

// Without a sync a lane sees its neighbour's value in one order of lanes and not in the other; with
// one in both.
TEST(SimWarp, RunsLanesInBothOrders) {
  for (bool sync : {false, true}) {
    int seen = 0;
    for (int order = 0; order < 2; ++order) {
      int written[32] = {};
      EXPECT_EQ(SimWarp::run([&](SimWarp g) {
        written[g.lane()] = 1;
        if (sync) g.sync();
        if (g.lane() == 9) seen += written[8];
      }),
          "");
    }
    EXPECT_EQ(seen, sync ? 2 : 1);
  }
}

// Whatever the arrays' types and places, each element is visited once, and written where it was
// read.
TEST(SimWarp, EachElementIsOneLanes) {
  for (const int count : {0, 1, 7, 8, 64, 255, 513})
    for (const int shift : {0, 1, 8}) {
      alignas(16) bf16 x[600];
      alignas(16) float y[600];
      alignas(16) double z[600];
      for (int i = 0; i < 600; ++i) x[i] = bf16(float(i % 100)), y[i] = 0, z[i] = i;
      EXPECT_EQ(SimWarp::run([&](SimWarp g) {
        const double* from = z + shift;
        each(
            g, count,
            [](int i, bf16& xi, float& yi, double zi) {
              xi = bf16(float(xi) + 1);
              yi += float(zi) + float(i) / 1024;
            },
            x + shift, y, from);
      }),
          "");
      for (int i = 0; i < 600; ++i) {
        const bool in_x = i >= shift && i < shift + count;
        ASSERT_EQ(float(x[i]), float(i % 100 + in_x)) << count << " from " << shift << ": " << i;
        ASSERT_EQ(y[i], i < count ? float(i + shift) + float(i) / 1024 : 0);
      }
    }
}

}  // namespace
}  // namespace duet
