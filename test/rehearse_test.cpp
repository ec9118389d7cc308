// Rehearsal against the simulator: the logical times of every action of every schedule, the real
// time of some, and what is refused.
#include "pipeline/train/rehearse.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <sstream>

#include "model/base/json.h"
#include "pipeline/insight/trace/report.h"
#include "test/testing.h"

namespace duet {
namespace {

class Rehearse : public FolderTest {
 protected:
  TrainOptions options(const std::string& schedule, int64_t pp, int64_t microbatches) const {
    TrainOptions o;
    o.preset = "tiny";
    o.seq_len = 8;
    o.micro_batch_size = 1;
    o.schedule = schedule;
    o.pp = pp;
    o.microbatches = microbatches;
    o.threads = 1;
    o.sample = 0;
    o.rehearse = path("profile.json");
    return o;
  }
  std::optional<Job> job(const TrainOptions& o) const {
    try {
      return make_job(o, false);
    } catch (const UsageError&) {  // a size that the schedule does not exist for
      return std::nullopt;
    }
  }
  // Costs in microseconds around `scale`, another for each stage, and messages.
  CostProfile random_profile(int stages, double scale, std::mt19937& rng) const {
    const auto cost = [&] { return 1e-6 * scale * double(1 + rng() % 100) / 50; };
    CostProfile p;
    for (int s = 0; s < stages; ++s) {
      StageCosts c{cost(), cost(), cost(), 0};
      c.FB = c.F + c.I + c.W - std::min(c.F, c.I) / 2;
      p.stages.push_back(c);
    }
    p.forward_message = cost() / 8;
    p.backward_message = cost() / 8;
    return p;
  }
  // Steps of all ranks, the least of their seconds kept. [world]
  std::vector<RehearsedStep> run(const Job& job, const CostProfile& profile, int steps = 1) const {
    std::vector<RehearsedStep> of_rank(size_t(job.run.ranks));
    run_ranks(job.run, [&](Comm& world) {
      const auto device = make_cpu_device(1);
      Rehearsal rehearsal(job, profile, world, *device);
      RehearsedStep& best = of_rank[size_t(world.rank())];
      best = rehearsal.step();
      for (int i = 1; i < steps; ++i)
        if (RehearsedStep next = rehearsal.step(); next.seconds < best.seconds) best = next;
    });
    return of_rank;
  }
};

void expect_spans(const std::vector<RehearsedStep>& ranks, const Timing& simulated, int dp) {
  for (size_t r = 0; r < ranks.size(); ++r) {
    const std::vector<Span>&mine = ranks[r].spans, &expected = simulated.spans[r / size_t(dp)];
    ASSERT_EQ(mine.size(), expected.size());
    for (size_t i = 0; i < mine.size(); ++i) {
      ASSERT_NEAR(mine[i].start, expected[i].start, 1e-9) << "rank " << r << ", action " << i;
      ASSERT_NEAR(mine[i].end, expected[i].end, 1e-9) << "rank " << r << ", action " << i;
    }
  }
}

TEST_F(Rehearse, EveryActionIsWhereTheSimulatorHasIt) {
  std::mt19937 rng(1);
  int tried = 0;
  for (const ScheduleKind& kind : schedule_kinds())
    for (int64_t pp : {8, 16})
      for (int64_t microbatches : {20, 32, 120}) {
        const auto job = this->job(options(kind.name, pp, microbatches));
        if (!job) continue;
        SCOPED_TRACE(cat(kind.name, ", pp ", pp, ", ", microbatches, " microbatches"));
        const CostProfile profile = random_profile(job->compute.model_stages(), 20, rng);
        expect_spans(run(*job, profile), simulate(job->compute, profile), 1);
        ++tried;
      }
  EXPECT_EQ(tried, 58);  // DualPipe has no 16 x 20, DualPipeV neither
}

TEST_F(Rehearse, DataParallelRanksRehearseSideBySide) {
  std::mt19937 rng(2);
  TrainOptions o = options("zbv", 4, 8);
  o.dp = 2;
  const Job job = make_job(o, false);
  const CostProfile profile = random_profile(job.compute.model_stages(), 20, rng);
  expect_spans(run(job, profile), simulate(job.compute, profile), 2);
}

// Ranks share whatever cores there are with whatever else runs: of a few steps the quickest counts.
TEST_F(Rehearse, TakesTheTimeThatTheSimulatorSays) {
  std::mt19937 rng(3);
  for (const char* name : {"1f1b", "zbv", "dualpipe"}) {
    const Job job = make_job(options(name, 8, 20), false);
    const CostProfile profile = random_profile(job.compute.model_stages(), 2000, rng);
    const double simulated = simulate(job.compute, profile).makespan;
    const RehearsedStep step = run(job, profile, 8)[0];
    EXPECT_GE(step.seconds, simulated) << name;
    EXPECT_LE(step.seconds, 1.01 * simulated) << name;
  }
}

TEST_F(Rehearse, WithoutOverlapAPairIsItsParts) {
  std::mt19937 rng(4);
  TrainOptions o = options("dualpipe", 4, 20);
  o.overlap = false;
  const Job job = make_job(o, false);
  const CostProfile profile = random_profile(job.compute.model_stages(), 20, rng);
  expect_spans(run(job, profile), simulate(rehearsed_schedule(job), profile), 1);
}

TEST_F(Rehearse, MessagesMayTakeLongerThanAnythingElse) {
  const Job job = make_job(options("1f1b", 4, 8), false);
  const CostProfile profile{{{1e-3, 1e-3, 1e-3, 3e-3}}, 0.05, 0.04};
  const double simulated = simulate(job.compute, profile).makespan;
  EXPECT_LE(run(job, profile, 5)[0].seconds, 1.01 * simulated);
}

TEST_F(Rehearse, IsACommand) {
  write("profile.json", write_profile({{{2e-4, 2e-4, 1e-4, 4e-4}}, 1e-5, 2e-5}));
  TrainOptions o = options("dualpipe", 4, 8);
  o.steps = 2;
  o.format = Format::json;
  o.trace = path("trace.json");
  std::ostringstream out;
  rehearse_command(o, out);
  const Json json = Json::parse(out.str(), "stdout");
  EXPECT_EQ(json.at("step_s").items().size(), 2u);
  EXPECT_EQ(json.at("schedule").string(), "dualpipe");
  EXPECT_GE(json.at("step_s").items()[1].number(), json.at("simulated_step_s").number());
  EXPECT_NE(contents(path("trace.json")).find("\"pair\""), std::string::npos);
}

TEST_F(Rehearse, ItsTraceIsAProfile) {
  const StageCosts costs{0.01, 0.012, 0.006, 0.02};
  for (const char* schedule : {"dualpipe", "1f1b"}) {
    write("profile.json", write_profile({{costs}}));
    TrainOptions o = options(schedule, 2, 4);
    o.steps = 2;
    o.trace = path("trace.json");
    std::ostringstream out;
    rehearse_command(o, out);
    write("again.json", profile_json(analyze({.traces = {o.trace}})));
    const CostProfile again = read_profile(path("again.json"));
    ASSERT_EQ(again.stages.size(), 1u);
    const StageCosts& a = again.stages[0];
    EXPECT_NEAR(a.F / costs.F, 1, 0.3);
    EXPECT_NEAR(a.B() / costs.B(), 1, 0.3);
    EXPECT_NEAR(a.FB / (o.schedule == "1f1b" ? a.F + a.B() : costs.FB), 1, 0.3);
  }
}

TEST_F(Rehearse, RefusesWhatItCannotDo) {
  const auto refusal = [&](const TrainOptions& o) {
    std::ostringstream out;
    const std::string error = error_of([&] { rehearse_command(o, out); });
    EXPECT_EQ(out.str(), "");
    return error;
  };
  TrainOptions o = options("1f1b", 4, 8);
  EXPECT_EQ(refusal(o).find(path("profile.json")), 0u);  // not there
  write("profile.json", write_profile({{{1, 1, 1, 3}, {1, 1, 1, 3}}, 0, 0}));
  EXPECT_NE(refusal(o).find("found 2 stages in "), std::string::npos);
  write("profile.json", write_profile({{{1e-9, 1e-9, 0, 2e-9}}, 0, 0}));
  EXPECT_NE(refusal(o).find("by which a step takes 2.2e-08 s"), std::string::npos);
  write("profile.json", write_profile({{{500, 500, 0, 1000}}, 0, 0}));
  EXPECT_NE(refusal(o).find("by which a step takes 11000 s"), std::string::npos);
  o.seq_len = 1;
  o.model = parse_sizes("d_model=1");
  EXPECT_NE(refusal(o).find("found messages of 4 bytes"), std::string::npos);
}

}  // namespace
}  // namespace duet
