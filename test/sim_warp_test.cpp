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

}  // namespace
}  // namespace duet
