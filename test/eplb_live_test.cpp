// Experts in parallel, replicated and moving while training goes on: against one rank, against
// other schedules, across resumes, under mpirun, and when a rank fails.
#include <gtest/gtest.h>

#include <signal.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <map>
#include <numeric>
#include <random>
#include <regex>
#include <thread>

#include "moe/eplb_quota.h"
#include "moe/migration.h"
#include "pipeline/train/trainer.h"
#include "test/processes.h"
#include "test/run_testing.h"

namespace duet {
namespace {

constexpr int kDp = 4;

// Every expert somewhere, the rest of the slots anyhow, two of one expert on a rank included.
ExpertPlacement any_placement(const EplbShape& shape, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> slots(size_t(shape.replicas));
  for (size_t s = 0; s < slots.size(); ++s)
    slots[s] = int32_t(s < size_t(shape.experts) ? s : random() % uint64_t(shape.experts));
  std::shuffle(slots.begin(), slots.end(), random);
  return ExpertPlacement(slots, shape.experts, shape.gpus);
}

struct History {
  std::vector<double> loss, norm, balance;              // [steps]
  std::vector<std::vector<std::vector<int64_t>>> load;  // [steps][MoE layers][experts]
  uint64_t fingerprint = 0;
  int moves = 0;  // by the balancer
};

void one_step(Trainer& trainer, int64_t step, History& run) {
  const StepResult r = train_step(trainer, step);
  run.loss.push_back(r.loss);
  run.norm.push_back(r.grad_norm);
  run.balance.push_back(r.balancedness);
  run.load.emplace_back();
  for (const LayerLoad& l : r.loads) {
    run.load.back().push_back(l.tokens_per_expert);
    run.moves += l.replan ? l.replan->moves : 0;
  }
  EXPECT_NO_THROW(fingerprint(trainer)) << "copies differ after step " << step;
}

void shuffle_experts(Trainer& trainer, const Job& job, uint64_t seed) {
  std::map<int64_t, ExpertPlacement> placements;
  for (int64_t l = job.config.first_k_dense; l < job.config.n_layers; ++l)
    placements[l] = any_placement(job.options.balancer.shape, seed * 100 + uint64_t(l));
  place_experts(trainer, placements);
}

// As rank 0 saw it. shuffle: experts go elsewhere every 2 steps, whatever the loads.
History train(const TrainOptions& o, int64_t steps, bool shuffle = false) {
  const Job job = make_job(o);
  History out;
  run_ranks(job.run, [&](Comm& world) {
    const std::unique_ptr<Device> device = make_device(job, world);
    Trainer trainer(job, world, *device);
    History run;
    for (int64_t step = 1; step <= steps; ++step) {
      one_step(trainer, step, run);
      if (!shuffle || step % 2) continue;
      const uint64_t before = fingerprint(trainer);
      shuffle_experts(trainer, job, uint64_t(step));
      EXPECT_EQ(fingerprint(trainer), before) << "migration changed a value after step " << step;
    }
    run.fingerprint = fingerprint(trainer);
    if (world.rank() == 0) out = run;
  });
  return out;
}

void expect_equal(const History& a, const History& b, const std::string& what) {
  EXPECT_EQ(a.loss, b.loss) << what;
  EXPECT_EQ(a.norm, b.norm) << what;
  EXPECT_EQ(a.load, b.load) << what;
  EXPECT_EQ(a.fingerprint, b.fingerprint) << what;
}

class EplbLive : public RunTest {
 protected:
  TrainOptions options(int64_t dp, int64_t ep, int64_t redundant,
      const std::string& schedule = "1f1b", int64_t pp = 1) const {
    TrainOptions o;
    o.preset = "tiny";
    o.data = words_;
    o.model = parse_sizes("n_layers=3");
    o.seq_len = 16;
    o.micro_batch_size = 1;
    o.microbatches = 4 * kDp / dp;  // the same global batch
    o.warmup_steps = 2;
    o.decay_steps = 60;
    o.device = DeviceKind::cpu;
    o.threads = 1;
    o.dp = dp;
    o.pp = pp;
    o.ep = ep;
    o.schedule = schedule;
    o.redundant_experts = redundant;
    o.comm_timeout = 60;
    return o;
  }
  TrainOptions moving() const {
    TrainOptions o = options(kDp, 4, 4);
    o.balancer.interval = 1;
    o.balancer.threshold = 1;
    return o;
  }
  // Steps first .. last, from the checkpoint `from` if there is one, to the checkpoint `to`.
  History part(
      const TrainOptions& o, int64_t last, const std::string& from, const std::string& to) const {
    const Job job = make_job(o);
    History out;
    run_ranks(job.run, [&](Comm& world) {
      const std::unique_ptr<Device> device = make_device(job, world);
      Trainer trainer(job, world, *device);
      History run;
      const int64_t done = from.empty() ? 0 : load_checkpoint(trainer, folder_ + "/" + from);
      for (int64_t step = done + 1; step <= last; ++step) one_step(trainer, step, run);
      if (!to.empty()) save_checkpoint(trainer, folder_ + "/" + to, last);
      run.fingerprint = fingerprint(trainer);
      if (world.rank() == 0) out = run;
    });
    return out;
  }
  // From the checkpoint at2, as if nothing had happened.
  void expect_goes_on(const TrainOptions& o) const {
    const History whole = part(o, 4, "", ""), rest = part(o, 4, "at2", "");
    EXPECT_EQ(rest.loss, std::vector<double>(whole.loss.begin() + 2, whole.loss.end()));
    EXPECT_EQ(rest.fingerprint, whole.fingerprint);
  }
};

// --- the ladder ----------------------------------------------------------------------------------

TEST_F(EplbLive, AgainstOneRank) {
  const History one = train(options(1, 1, 0), 5);
  for (int64_t ep : {1, 2, 4})
    for (int64_t redundant : {0, 4})
      expect_equal(train(options(kDp, ep, redundant), 5, true), one,
          cat("ep ", ep, ", ", redundant, " redundant"));
  for (const char* schedule : {"1f1b", "dualpipe"})
    expect_equal(train(options(kDp, 4, 4, schedule, 2), 5, true), one, schedule);
}

TEST_F(EplbLive, FiftySteps) {
  // with seed 3 a token changes its experts in step 45, on the machine where this was written
  for (uint64_t seed : {0, 3}) {
    TrainOptions o = options(kDp, 4, 4), one = options(1, 1, 0);
    o.balancer.interval = 2;
    o.balancer.threshold = 1;
    o.seed = one.seed = seed;
    const History live = train(o, 50);
    expect_equal(live, train(one, 50), cat("ep 4, 4 redundant, seed ", seed));
    EXPECT_GT(live.moves, 20);
  }
}

TEST_F(EplbLive, SameBitsUnderEverySchedule) {
  for (const EplbPolicy policy : {EplbPolicy::deepseek, EplbPolicy::balanced}) {
    const auto with = [&](const char* schedule, int64_t pp) {
      TrainOptions o = options(kDp, 4, 4, schedule, pp);
      o.balancer.interval = 2;
      o.balancer.threshold = 1;
      o.balancer.plan.policy = policy;
      return train(o, 5);
    };
    const History flat = with("1f1b", 1);
    EXPECT_GT(flat.moves, 0);
    expect_equal(with("1f1b", 2), flat, "1f1b");
    expect_equal(with("dualpipe", 2), flat, "dualpipe");
  }
}

// --- replicas and quotas -------------------------------------------------------------------------

TEST_F(EplbLive, ChoicesBecomeSlotsByQuota) {
  const ExpertPlacement p({0, 1, 1, 2}, 3, 2);  // expert 1 on both ranks
  std::vector<std::vector<int32_t>> choices = {{0, 1, 0, 1, 0, 1}, {1, 2, 0, 1}};
  const std::vector<std::vector<int32_t>> experts = choices;
  choose_slots(choices, p, 2);
  std::vector<int> tokens(4, 0);
  for (size_t rank = 0; rank < choices.size(); ++rank)
    for (size_t i = 0; i < choices[rank].size(); ++i) {
      EXPECT_EQ(p.phy2log[size_t(choices[rank][i])], experts[rank][i]);
      ++tokens[size_t(choices[rank][i])];
    }
  EXPECT_EQ(tokens, (std::vector<int>{4, 1, 4, 1}));  // level: 5 and 5
}

TEST_F(EplbLive, SkewIsLevelled) {
  TrainOptions o = options(kDp, 4, 0);
  o.bias_update_speed = o.balance_loss = 0;
  const auto mean_of_last = [](const History& run) {
    return std::accumulate(run.balance.end() - 20, run.balance.end(), 0.0) / 20;
  };
  const double without = mean_of_last(train(o, 60));
  o.redundant_experts = 8;
  o.balancer.interval = 5;
  o.balancer.plan.policy = EplbPolicy::balanced;
  const double with = mean_of_last(train(o, 60));
  EXPECT_LT(without, 0.85);
  EXPECT_GE(with, 0.92);
  std::cout << "    utilisation over steps 41 to 60: " << without << " without, " << with
            << " with\n";
}

// --- checkpoints ---------------------------------------------------------------------------------

TEST_F(EplbLive, ResumeIsExactAndFreeOfLayout) {
  TrainOptions o = options(kDp, 4, 4);
  o.balancer.interval = 2;
  o.balancer.threshold = 1;
  const History whole = part(o, 7, "", "");
  part(o, 3, "", "at3");
  const History rest = part(o, 7, "at3", "");
  EXPECT_EQ(rest.loss, std::vector<double>(whole.loss.begin() + 3, whole.loss.end()));
  EXPECT_EQ(rest.norm, std::vector<double>(whole.norm.begin() + 3, whole.norm.end()));
  EXPECT_EQ(rest.fingerprint, whole.fingerprint);
  for (const auto& [ep, redundant] : {std::pair<int64_t, int64_t>{2, 2}, {4, 0}, {4, 8}, {1, 0}}) {
    TrainOptions other = o;
    other.ep = ep;
    other.redundant_experts = redundant;
    const History resumed = part(other, 5, "at3", "");
    EXPECT_EQ(resumed.loss, std::vector<double>(&whole.loss[3], &whole.loss[5])) << "ep " << ep;
    EXPECT_EQ(resumed.norm, std::vector<double>(&whole.norm[3], &whole.norm[5])) << "ep " << ep;
  }
}

TEST_F(EplbLive, AFailureWhileExpertsMoveLeavesTheCheckpoint) {
  const TrainOptions o = options(kDp, 4, 4);
  const Job job = make_job(o);
  try {
    run_ranks(job.run, [&](Comm& world) {
      const std::unique_ptr<Device> device = make_device(job, world);
      Trainer trainer(job, world, *device);
      History run;
      for (int64_t step = 1; step <= 2; ++step) one_step(trainer, step, run);
      save_checkpoint(trainer, folder_ + "/at2", 2);
      // the others are in the middle of sending
      if (world.rank() == 2) throw Error("out of power");
      shuffle_experts(trainer, job, 1);
    });
    FAIL() << "a failed rank went unnoticed";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("rank 2: out of power"), std::string::npos)
        << error.what();
  }
  expect_goes_on(o);
}

// --- processes under mpirun ----------------------------------------------------------------------
// mpi_run_test.cpp has what `duet train` itself can show.

// One of them, in the folder of the test that started it.
class EplbChild : public EplbLive {
  void SetUp() override {
    const char* folder = std::getenv("DUET_TEST_FOLDER");
    if (!folder) GTEST_SKIP() << "a child of EplbLiveMpi's";
    folder_ = folder;
    words_ = folder_ + "/words.txt";
  }
};
class EplbLiveMpi : public EplbLive {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_mpirun(); !why.empty()) GTEST_SKIP() << why;
    EplbLive::SetUp();
  }
  Ended four(const std::string& child) const {
    return run_command(cat("DUET_TEST_FOLDER='", folder_, "' ", mpirun(4),
        this_program("EplbChild.DISABLED_" + child)));
  }
};

// Experts move without a pause until it is killed.
TEST_F(EplbChild, DISABLED_IsKilledWhileExpertsMove) {
  const Job job = make_job(options(kDp, 4, 4));
  run_ranks(job.run, [&](Comm& world) {
    const std::unique_ptr<Device> device = make_device(job, world);
    Trainer trainer(job, world, *device);
    History run;
    for (int64_t step = 1; step <= 2; ++step) one_step(trainer, step, run);
    save_checkpoint(trainer, folder_ + "/at2", 2);
    if (world.rank() == 2)
      std::thread([] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        kill(getpid(), SIGKILL);
      }).detach();
    for (uint64_t seed = 1;; ++seed) shuffle_experts(trainer, job, seed);
  });
}
TEST_F(EplbLiveMpi, AKilledProcessWhileExpertsMoveLeavesTheCheckpoint) {
  const Ended e = four("IsKilledWhileExpertsMove");
  EXPECT_NE(e.status, 0);
  // and not of an error of its own
  EXPECT_NE(e.output.find("signal 9"), std::string::npos) << e.output;
  EXPECT_LT(e.seconds, 10);
  expect_goes_on(options(kDp, 4, 4));
}

// --- agreement -----------------------------------------------------------------------------------

TEST(EplbPlans, DifferentPlansAreNamed) {
  try {
    run_ranks({.ranks = 3},
        [](Comm& world) { check_same_plans(world, 20, world.rank() == 2 ? 0xabcu : 0x123u); });
    FAIL() << "two plans were taken for one";
  } catch (const Error& error) {
    for (const char* word : {"step 20", "0000000000000123 on rank 0", "0000000000000abc on rank 2"})
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
  }
}

TEST(LoadMonitor, AsksForNothingAboveTheThresholdAndForgetsOldSteps) {
  BalancerOptions o{
      .shape = {4, 6, 1, 1, 2}, .plan = {EplbPolicy::balanced}, .interval = 2, .threshold = 0.95};
  LoadMonitor monitor(o, {1});
  EXPECT_TRUE(monitor.propose(1).skipped);  // nothing is known yet
  monitor.set_placement(1, ExpertPlacement({0, 1, 1, 2, 3, 3}, 4, 2));
  monitor.add(1, {50, 50, 50, 50});
  monitor.add(1, {50, 50, 50, 50});
  const Replan level = monitor.propose(1);
  EXPECT_TRUE(level.skipped);
  EXPECT_EQ(level.before, 1);
  EXPECT_EQ(level.moves, 0);
  monitor.add(1, {90, 90, 10, 10});
  monitor.add(1, {90, 90, 10, 10});
  const Replan skewed = monitor.propose(1);
  EXPECT_FALSE(skewed.skipped);
  EXPECT_NEAR(skewed.before, 100. / 180, 1e-9);  // of the last two steps only
  EXPECT_GT(skewed.predicted, 0.99);
  EXPECT_GT(skewed.moves, 0);

  LoadMonitor restored(o, {1});
  ASSERT_TRUE(restored.restore(Json::parse(monitor.state().dump(), "state")));
  EXPECT_EQ(restored.propose(1).placement, skewed.placement);
  std::string absurd = monitor.state().dump();  // loads whose sums would overflow
  absurd = std::regex_replace(
      absurd, std::regex(R"("window":\[\d+)"), R"("window":[9223372036854775807)");
  EXPECT_THROW(restored.restore(Json::parse(absurd, "state")), UsageError);
  o.shape.replicas = 4;
  EXPECT_FALSE(LoadMonitor(o, {1}).restore(monitor.state()));
  o.shape.replicas = 6;
  EXPECT_FALSE(LoadMonitor(o, {1, 2}).restore(monitor.state()));
}

}  // namespace
}  // namespace duet
