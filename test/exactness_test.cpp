// The first rung of the exactness ladder: the schedule, the number of pipeline ranks and of
// threads, resuming, and the transport (mpi_run_test.cpp) do not change one bit of loss, gradient
// norm, weights and moments.
//
// Every run here is a real one: ranks are threads that train a small model and exchange what the
// schedule says.
#include <gtest/gtest.h>

#include "pipeline/train/trainer.h"
#include "test/random_schedule.h"
#include "test/run_testing.h"

namespace duet {
namespace {

// What a run computed, in all its bits, and what it took.
struct Trace {
  std::vector<std::string> steps;  // loss and gradient norm, %a
  uint64_t state = 0;              // weights and moments
  std::string validation;
  bool clipped = false;                   // in every step
  std::vector<int64_t> activation_bytes;  // [ranks]
  Usage usage;

  bool operator==(const Trace& o) const {
    return steps == o.steps && state == o.state && validation == o.validation;
  }
};
void PrintTo(const Trace& t, std::ostream* out) {
  for (const std::string& step : t.steps) *out << step << "\n";
  *out << "state " << t.state << ", validation " << t.validation;
}

std::string hex(double x) {
  char text[64];
  std::snprintf(text, sizeof text, "%a", x);
  return text;
}

Trace train(const TrainOptions& options) {
  const Job job = make_job(options);
  Trace of_rank_0;
  run_ranks(job.run, [&](Comm& world) {
    const std::unique_ptr<Device> device = make_device(job, world);
    Trainer trainer(job, world, *device);
    Trace t{.clipped = true, .usage = job.usage};
    for (int64_t step = 1; step <= options.steps; ++step) {
      const StepResult r = train_step(trainer, step);
      t.steps.push_back(hex(r.loss) + " " + hex(r.grad_norm));
      t.clipped &= r.grad_norm > options.clip;
    }
    t.activation_bytes = world.gather_values(device->memory(Use::activations).peak);
    t.validation = hex(validation_loss(trainer));
    t.state = fingerprint(trainer);
    if (world.rank() == 0) of_rank_0 = t;
  });
  return of_rank_0;
}

class Exactness : public RunTest {
 protected:
  // Eight layers, so that four ranks can hold two stages each; and gradients that are clipped.
  TrainOptions options(
      const std::string& schedule, int64_t pp, int64_t microbatches = 12, int64_t steps = 3) const {
    TrainOptions o = RunTest::options("", steps);
    o.model = parse_sizes("n_layers=8");
    o.microbatches = microbatches;
    o.schedule = schedule;
    o.pp = pp;
    o.clip = 0.05;
    return o;
  }
};

TEST_F(Exactness, EveryScheduleHasTheBitsOfOneRank) {
  const Trace one = train(options("1f1b", 1));
  EXPECT_TRUE(one.clipped);
  EXPECT_EQ(one.steps.size(), 3u);
  for (const ScheduleKind& kind : schedule_kinds()) {
    for (int pp : {2, 4}) {
      const Trace t = train(options(kind.name, pp));
      EXPECT_EQ(t, one) << kind.name << ", pp " << pp;
    }
  }
}

TEST_F(Exactness, SoDoesAnyNumberOfMicrobatches) {
  for (int64_t microbatches : {10, 13}) {
    const Trace one = train(options("gpipe", 1, microbatches, 2));
    for (const ScheduleKind& kind : schedule_kinds()) {
      if (std::string(kind.name) == "dualpipe" && microbatches % 2) continue;
      EXPECT_EQ(train(options(kind.name, 4, microbatches, 2)), one)
          << kind.name << ", " << microbatches << " microbatches";
    }
  }
  const Trace one = train(options("zbv", 1, 3, 2));  // fewer than the pipeline is long
  for (const char* schedule : {"gpipe", "1f1b", "interleaved", "zb1p", "zbv"})
    EXPECT_EQ(train(options(schedule, 4, 3, 2)), one) << schedule;
}

TEST_F(Exactness, SoDoTwentySteps) {
  const Trace one = train(options("1f1b", 1, 12, 20));
  EXPECT_EQ(train(options("dualpipe", 4, 12, 20)), one);
  EXPECT_EQ(train(options("dualpipev", 4, 12, 20)), one);
}

TEST_F(Exactness, SoDoAnySplitAndNumberOfThreads) {
  const Trace one = train(options("1f1b", 1));
  TrainOptions o = options("interleaved", 2);
  o.virtual_stages = 4;
  EXPECT_EQ(train(o), one);
  o = options("dualpipe", 4);
  o.split = {1, 4, 1, 2};
  o.threads = 2;
  EXPECT_EQ(train(o), one);
  o = options("1f1b", 3);
  EXPECT_EQ(train(o), one);
}

// It can tell one run from another: a bit of a difference is seen.
TEST_F(Exactness, AnotherRunHasOtherBits) {
  const Trace one = train(options("1f1b", 2));
  TrainOptions o = options("1f1b", 2);
  o.adamw.lr *= 1 + 1e-6;
  const Trace other = train(o);
  EXPECT_EQ(other.steps[0], one.steps[0]);
  EXPECT_NE(other.state, one.state);
  EXPECT_NE(other.validation, one.validation);
}

// --- data parallelism ----------------------------------------------------------------------------

TEST_F(Exactness, SchedulesAgreeOverDataParallelRanksToo) {
  const auto with_dp = [&](const char* schedule, int64_t pp) {
    TrainOptions o = options(schedule, pp, 8);
    o.dp = 2;
    return train(o);
  };
  const Trace two = with_dp("1f1b", 1);
  for (const char* schedule : {"zb1p", "dualpipe"}) {
    const Trace t = with_dp(schedule, 2);
    EXPECT_EQ(t, two) << schedule;
  }
  EXPECT_EQ(with_dp("dualpipev", 4), two);
  EXPECT_EQ(train(options("1f1b", 1, 16)), two);  // the same global batch on one rank
}

// A fingerprint says that copies agree, too: those of ranks that load different checkpoints do not.
TEST_F(Exactness, CopiesThatDifferAreSeen) {
  for (const char* name : {"a", "b"}) {
    TrainOptions o = options("1f1b", 1, 8, name[0] == 'a' ? 1 : 2);
    o.out = folder_ + "/" + name;
    run(o);
  }
  TrainOptions o = options("dualpipe", 2, 8);
  for (const int64_t dp : {1, 2}) {
    o.dp = dp;
    const Job job = make_job(o);
    run_ranks(job.run, [&](Comm& world) {
      const std::unique_ptr<Device> device = make_device(job, world);
      Trainer trainer(job, world, *device);
      const std::string a = newest_checkpoint(folder_ + "/a"),
                        b = newest_checkpoint(folder_ + "/b");
      load_checkpoint(trainer, a);
      fingerprint(trainer);
      load_checkpoint(
          trainer, world.rank() == 1 ? b : a);  // of dp 1 a mirrored rank, of dp 2 a replica
      EXPECT_THROW(fingerprint(trainer), Error);
    });
  }
}

// --- resuming ------------------------------------------------------------------------------------

TEST_F(Exactness, ResumingUnderAnotherScheduleGoesOnWithTheSameBits) {
  const struct {
    const char* schedule;
    int64_t pp;
  } parts[] = {{"1f1b", 1}, {"dualpipe", 4}, {"1f1b", 4}, {"zbv", 2}, {"dualpipev", 4},
      {"dualpipe", 2}, {"gpipe", 1}};
  TrainOptions whole = options("1f1b", 1, 8, std::size(parts));
  whole.out = folder_ + "/whole";
  run(whole);
  TrainOptions o = options("", 1, 8, 0);
  o.out = folder_ + "/parts";
  for (const auto& part : parts) {
    o.schedule = part.schedule;
    o.pp = part.pp;
    ++o.steps;
    o.resume = true;
    run(o);
  }
  EXPECT_EQ(bits("whole"), bits("parts"));
  EXPECT_EQ(bits("parts").size(), std::size(parts) + 2);
}

// A start from another run's weights takes no moments and no step along.
TEST_F(Exactness, WeightsAloneCanBeLoaded) {
  TrainOptions o = options("1f1b", 2, 8, 2);
  o.out = folder_ + "/run";
  run(o);
  const Job job = make_job(o);
  run_ranks(job.run, [&](Comm& world) {
    const std::unique_ptr<Device> device = make_device(job, world);
    const std::string dir = newest_checkpoint(o.out);
    Trainer weights(job, world, *device), everything(job, world, *device);
    const double untrained = validation_loss(weights);
    EXPECT_EQ(load_checkpoint(weights, dir, Restore::weights), 0);
    EXPECT_EQ(load_checkpoint(everything, dir), 2);
    const double loss = validation_loss(everything);
    EXPECT_EQ(validation_loss(weights), loss);
    EXPECT_NE(untrained, loss);
    EXPECT_NE(fingerprint(weights), fingerprint(everything));  // moments are zero
  });
}

// --- schedules from files ------------------------------------------------------------------------

// Ws of a stage that come before one of a lower microbatch.
int unordered_ws(const Schedule& s) {
  int count = 0;
  for (const auto& actions : s.ranks) {
    std::map<int, int> last;  // by stage
    for (const Action& action : actions)
      for_parts(action, [&](const Action& a) {
        if (a.kind != Kind::W && a.kind != Kind::B) return;
        if (last.count(a.stage) && a.microbatch < last[a.stage]) ++count;
        last[a.stage] = a.microbatch;
      });
  }
  return count;
}

TEST_F(Exactness, AnyLegalScheduleFromAFileHasTheSameBits) {
  std::mt19937 rng(11);
  const Trace one[2] = {train(options("1f1b", 1, 6, 2)), train(options("1f1b", 1, 7, 2))};
  int unordered = 0;
  for (int i = 0; i < 12; ++i) {
    const bool two_directions = i % 3 == 0;
    const RandomShape shape{.pp = int(1 + rng() % 4),
        .stages_per_rank = two_directions ? 2 : int(1 + rng() % 2),
        .microbatches = 6 + i % 2,
        .two_directions = two_directions};
    const Schedule schedule = random_schedule(shape, rng);
    TrainOptions o = options(cat(folder_, "/", i, ".csv"), shape.pp, shape.microbatches, 2);
    std::ofstream file(o.schedule);
    write_csv(file, schedule);
    file.close();
    const Trace t = train(o);
    std::ostringstream text;
    write_csv(text, schedule);
    EXPECT_EQ(t, one[i % 2]) << text.str();
    unordered += unordered_ws(schedule);
  }
  EXPECT_GT(unordered, 20) << "hardly a W out of order: the test tests little";
}

// --- memory --------------------------------------------------------------------------------------

// The pool's peak on rank 1 of 4, whose stages are all alike (neither embedding nor head), follows
// the checker's count. More by up to one and a half: what one backward makes on its way, the
// gradients kept between an I and its W, results on their way.
TEST_F(Exactness, PeakActivationsFollowTheCheckersCount) {
  const auto peak = [&](const std::string& schedule) {
    TrainOptions o = options(schedule, 4, 12, 1);
    o.model = parse_sizes("n_layers=8,first_k_dense=0");
    const int stages = make_schedule(schedule, {.pp = 4, .microbatches = 12}).model_stages();
    o.split.assign(size_t(stages), 8 / stages);
    const Trace t = train(o);
    return std::pair(double(t.usage.peak_activations[1]), double(t.activation_bytes[1]) * stages);
  };
  const double of_one = peak("gpipe").second / 12;
  for (const ScheduleKind& kind : schedule_kinds()) {
    const auto [counted, bytes] = peak(kind.name);
    EXPECT_GT(bytes / of_one, counted - 0.5) << kind.name;
    EXPECT_LT(bytes / of_one, counted + 1.5) << kind.name;
  }
  EXPECT_EQ(peak("gpipe").first, 12);
  EXPECT_EQ(peak("dualpipe").first, 4 + 1);
}

// --- wrong input ---------------------------------------------------------------------------------

TEST_F(Exactness, RefusesWhatDoesNotFitTogetherAndWritesNothing) {
  const auto refused = [&](TrainOptions o, const std::vector<std::string>& words,
                           bool one_line = true) {
    o.out = folder_ + "/run";
    expect_refused([&] { run(o); }, words, one_line);
    EXPECT_FALSE(fs::exists(o.out)) << words[0];
  };
  refused(options("dualpipe", 3), {"--pp", "dualpipe", "even", "3"});
  refused(options("dualpipe", 4, 6), {"--microbatches", "8", "6"});
  refused(options("dualpipe", 4, 13), {"--microbatches", "even", "13"});
  refused(options("dualpipev", 4, 7), {"--microbatches", "8", "7"});
  refused(options("interleaved", 8), {"--pp", "16 stages", "8 layers"});
  refused(options("2f2b", 2), {"--schedule", "2f2b", "dualpipe"});
  refused(options(folder_ + "/none.csv", 2), {"none.csv", "cannot be opened"});
  TrainOptions o = options("dualpipe", 4);
  o.split = {3, 2, 2, 2};
  refused(o, {"--split", "9 layers", "8 layers"});
}

TEST_F(Exactness, RefusesAWrongScheduleFromAFileWithTheCellMarked) {
  std::ostringstream text;
  write_csv(text, make_schedule("1f1b", {.pp = 2, .microbatches = 4}));
  const std::string good = text.str();
  const auto refused = [&](const std::string& csv, const std::vector<std::string>& words,
                           bool one_line) {
    std::ofstream(folder_ + "/wrong.csv") << csv;
    TrainOptions o = options(folder_ + "/wrong.csv", 2, 4);
    o.out = folder_ + "/run";
    expect_refused([&] { run(o); }, words, one_line);
    EXPECT_FALSE(fs::exists(o.out)) << words[0];
  };
  const auto with = [&](const std::string& cell, const std::string& other) {
    std::string csv = good;
    return csv.replace(csv.find(cell), cell.size(), other);
  };
  refused(with("0B2", "0B1"), {"wrong.csv", "0B1 comes a second time", ">0B1<", "rank 0", "rank 1"},
      false);
  refused(with("1B0", "1I0"), {"wrong.csv", "microbatch 0 lacks a W at stage 1", ">1I0<"}, false);
  // swapped
  refused(with("0F0", "0B0").replace(good.find("0B0"), 3, "0F0"), {"no rank can go on", ">0B0<"},
      false);
  refused(with("0F1", "0G1"), {"wrong.csv:1, cell 2", "0G1"}, true);
  refused("", {"wrong.csv", "found none"}, true);
  TrainOptions o = options(folder_ + "/good.csv", 4, 4);
  std::ofstream(o.schedule) << good;
  expect_refused([&] { run(o); }, {"--pp", "2 ranks", "4"});
}

}  // namespace
}  // namespace duet
