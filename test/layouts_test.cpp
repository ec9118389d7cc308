// The exactness ladder's first row over layouts: data, pipeline and expert parallelism, the
// division into microbatches, replicas that move, segments, and resuming under another layout
// change not one bit of loss, gradient norm, weights and moments. One rank is the reference.
#include <gtest/gtest.h>

#include <random>

#include "pipeline/train/job.h"
#include "test/run_testing.h"

namespace duet {
namespace {

class Layouts : public RunTest {
 protected:
  // 16 sequences a step, 8 layers, so that any layout of up to 8 ranks fits.
  TrainOptions batch(const std::string& out, int64_t steps, int64_t segment = 6) const {
    TrainOptions o = options(out, steps);
    o.model = parse_sizes("n_layers=8");
    o.microbatches = 16;
    o.segment_tokens = segment;  // the sequences of 16 tokens have three
    o.comm_timeout = 60;
    return o;
  }
  static void spread(TrainOptions& o, const char* schedule, int64_t dp, int64_t ep, int64_t pp,
      int64_t micro_batch_size) {
    o.schedule = schedule;
    o.dp = dp;
    o.ep = ep;
    o.pp = pp;
    o.micro_batch_size = micro_batch_size;
    o.microbatches = 16 / dp / micro_batch_size;
  }
  static void replicas_that_move(TrainOptions& o) {
    o.redundant_experts = o.ep == 1 ? 2 : o.ep;
    o.eplb_interval = 2;
    o.eplb_threshold = 1;
  }
  static bool legal(const TrainOptions& o) {
    try {
      TrainOptions copy = o;
      copy.out.clear();
      make_job(copy);
      return true;
    } catch (const UsageError&) {
      return false;
    }
  }
};

TEST_F(Layouts, EveryScheduleInEveryLayoutHasTheBitsOfOneRank) {
  run(batch("one", 3));
  const auto one = numbers("one");
  int tried = 0;
  for (const ScheduleKind& kind : schedule_kinds())
    for (int64_t pp : {1, 2, 4})
      for (int64_t dp : {1, 2, 4})
        for (int64_t ep : {1, 2, 4}) {
          if (ep > dp || pp * dp > 8 || (pp == 1 && std::string(kind.name) != "1f1b")) continue;
          TrainOptions o = batch(cat(kind.name, "-", pp, dp, ep), 3);
          spread(o, kind.name, dp, ep, pp, dp * pp == 8 ? 1 : 2 - tried % 2);
          if (tried % 3 == 0) replicas_that_move(o);
          if (!legal(o)) continue;
          run(o);
          EXPECT_EQ(numbers(cat(kind.name, "-", pp, dp, ep)), one)
              << kind.name << ": pp " << pp << ", dp " << dp << ", ep " << ep;
          ++tried;
        }
  EXPECT_GT(tried, 40);
}

TEST_F(Layouts, SoDoRandomOnesOverFiftySteps) {
  std::mt19937 rng(5);
  const auto pick = [&](std::initializer_list<int64_t> values) {
    return *(values.begin() + rng() % values.size());
  };
  for (int64_t segment : {5, 128}) {
    run(batch(cat("one", segment), 50, segment));
    for (int tried = 0; tried < 3;) {
      TrainOptions o = batch(cat(segment, "-", tried), 50, segment);
      spread(o, schedule_kinds()[rng() % schedule_kinds().size()].name, pick({1, 2, 4}),
          pick({1, 2, 4}), pick({1, 2, 4}), pick({1, 2, 4}));
      if (o.dp * o.pp > 8 || o.dp % o.ep) continue;
      if (rng() % 2) replicas_that_move(o);
      o.overlap = rng() % 2;
      if (!legal(o)) continue;
      run(o);
      EXPECT_EQ(numbers(cat(segment, "-", tried)), numbers(cat("one", segment)))
          << o.schedule << ": pp " << o.pp << ", dp " << o.dp << ", ep " << o.ep << ", "
          << o.micro_batch_size << " sequences, " << o.redundant_experts << " redundant";
      ++tried;
    }
  }
}

TEST_F(Layouts, ResumingUnderOtherLayoutsGoesOnWithTheSameBits) {
  run(batch("whole", 8));
  TrainOptions o = batch("parts", 0);
  o.resume = true;
  const struct {
    const char* schedule;
    int64_t dp, ep, pp, micro_batch_size;
    bool replicas;
  } parts[] = {{"1f1b", 1, 1, 1, 2, false}, {"dualpipe", 2, 2, 2, 1, true},
      {"1f1b", 4, 4, 1, 2, true}, {"zbv", 1, 1, 4, 2, false}};
  for (const auto& p : parts) {
    o.steps += 2;
    spread(o, p.schedule, p.dp, p.ep, p.pp, p.micro_batch_size);
    o.redundant_experts = o.eplb_interval = 0;
    if (p.replicas) replicas_that_move(o);
    run(o);
  }
  EXPECT_EQ(numbers("parts"), numbers("whole"));
}

// The same numerics or not: segments are a part of them, and token by token replicas change them.
TEST_F(Layouts, OtherSegmentsAndSplitsAreOtherNumbers) {
  run(batch("one", 3));
  run(batch("other", 3, 7));
  EXPECT_NE(numbers("other"), numbers("one"));
  // a segment is at most the sequence
  run(batch("sequence", 3, 16));
  run(batch("longer", 3, INT32_MAX));
  EXPECT_EQ(numbers("longer"), numbers("sequence"));
  TrainOptions o = batch("token", 3);
  spread(o, "1f1b", 2, 2, 1, 2);
  o.redundant_experts = 2;
  o.eplb_interval = 1;
  o.eplb_threshold = 1;
  o.replica_split = ReplicaSplit::token;
  run(o);
  EXPECT_NE(numbers("token"), numbers("one"));
}

// Forced balance deals experts by the place in the sequence, so it does not see layouts either.
TEST_F(Layouts, ForcedBalanceToo) {
  TrainOptions one = batch("one", 3), many = batch("many", 3);
  one.force_balanced_routing = many.force_balanced_routing = true;
  run(one);
  spread(many, "dualpipev", 2, 2, 2, 2);
  run(many);
  EXPECT_EQ(numbers("many"), numbers("one"));
}

}  // namespace
}  // namespace duet
