// The exactness ladder's first row over layouts: data, pipeline and expert parallelism, the
// division into microbatches, replicas that move, segments, and resuming under another layout
// change not one bit of loss, gradient norm, weights and moments. One rank is the reference.
#include <gtest/gtest.h>

#include "test/layouts.h"
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
    o.micro_batch_size = 1;
    o.segment_tokens = segment;  // the sequences of 16 tokens have three
    o.comm_timeout = 60;
    return o;
  }
};

TEST_F(Layouts, EveryScheduleInEveryLayoutHasTheBitsOfOneRank) {
  run(batch("one", 3));
  const auto one = numbers("one");
  std::mt19937 rng(5);
  int tried = 0;
  for (const ScheduleKind& kind : schedule_kinds())
    for (TrainOptions o : layouts_of(batch("", 3), kind.name, rng)) {
      const std::string out = cat(tried++);
      o.out = path(out);
      run(o);
      EXPECT_EQ(numbers(out), one) << text_of(o);
    }
  EXPECT_EQ(tried, 15 * int(schedule_kinds().size() - 1) + 9) << "DualPipe alone has no pp of 1";
}

// Fifty steps under each schedule, then many short ones.
TEST_F(Layouts, SoDoRandomOnes) {
  const uint32_t kinds = uint32_t(schedule_kinds().size());
  for (int64_t segment : {5, 128}) {
    run(batch(cat("50-", segment), 50, segment));
    run(batch(cat("3-", segment), 3, segment));
  }
  for (uint32_t n = 0; n < 6 * kinds; ++n) {
    const int64_t steps = n < kinds ? 50 : 3, segment = n % 2 ? 5 : 128;
    const std::string out = cat(n);
    TrainOptions o = nth_layout(batch(out, steps, segment), n);
    run(o);
    EXPECT_EQ(numbers(out), numbers(cat(steps, "-", segment))) << n << ": " << text_of(o);
  }
}

TEST_F(Layouts, ResumingUnderOtherLayoutsGoesOnWithTheSameBits) {
  run(batch("whole", 19));
  for (uint32_t n = 0; n < 10; ++n) {
    TrainOptions o = nth_layout(batch("parts", 2 * n + 1), n);
    o.resume = true;
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
  o.dp = o.ep = o.redundant_experts = 2;
  o.microbatches = 8;
  o.balancer.interval = 1;
  o.balancer.threshold = 1;
  o.replica_split = ReplicaSplit::token;
  run(o);
  EXPECT_NE(numbers("token"), numbers("one"));
}

// Forced balance deals experts by the place in the sequence, so it does not see layouts either.
TEST_F(Layouts, ForcedBalanceToo) {
  TrainOptions one = batch("one", 3), many = batch("many", 3);
  one.force_balanced_routing = many.force_balanced_routing = true;
  run(one);
  many.schedule = "dualpipev";
  many.dp = many.ep = many.pp = many.micro_batch_size = 2;
  many.microbatches = 4;
  run(many);
  EXPECT_EQ(numbers("many"), numbers("one"));
}

}  // namespace
}  // namespace duet
