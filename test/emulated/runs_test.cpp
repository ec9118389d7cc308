// Whole runs on emulated GPUs: the first row of the exactness ladder (schedules, layouts,
// transports, resuming, running again), whatever the order in which the GPU does its work; and
// saving, text, traces, experts that move. Read next: counts_test.cpp.
#include <set>

#include "pipeline/train/compare_command.h"
#include "pipeline/train/generate.h"
#include "pipeline/train/trainer.h"
#include "test/emulated/testing.h"
#include "test/layouts.h"
#include "test/processes.h"
#include "test/run_testing.h"

namespace duet {
namespace {

using emulated::Order;

// Loss and gradient norm of every step, and what is left at the end, in all their bits.
std::vector<std::string> train(const TrainOptions& options) {
  const Job job = make_job(options);
  std::vector<std::string> bits;
  run_ranks(job.run, [&](Comm& world) {
    const std::unique_ptr<Device> device = make_device(job, world);
    Trainer trainer(job, world, *device);
    for (int64_t step = 1; step <= options.steps; ++step) {
      const StepResult r = train_step(trainer, step);
      if (world.rank() == 0) bits.push_back(cat(std::hexfloat, r.loss, " ", r.grad_norm));
    }
    const uint64_t hash = fingerprint(trainer);
    const double loss = validation_loss(trainer);
    if (world.rank() == 0) bits.push_back(cat(hash, " ", std::hexfloat, loss));
  });
  return bits;
}

// Where a GPU does its work as late as it can, as early as it can, and in between.
emulated::Options nth(int n, int gpus = 1) {
  return {.gpus = gpus,
      .seed = uint64_t(n + 1),
      .order = n % 3 == 0 ? Order::lazy
          : n % 3 == 1    ? Order::random
                          : Order::eager};
}

class EmulatedRuns : public RunTest {
 protected:
  TrainOptions options(const std::string& schedule, int64_t pp, int64_t steps = 2) const {
    TrainOptions o = RunTest::options("", steps);
    o.device = DeviceKind::cuda;
    o.dtype = Dtype::f32;
    o.model = parse_sizes("n_layers=4");
    o.seq_len = 8;
    o.val_sequences = 1;
    o.schedule = schedule;
    o.pp = pp;
    return o;
  }
  TrainOptions moving() const {
    TrainOptions o = options("dualpipe", 2);
    o.dp = o.ep = 2;
    o.redundant_experts = 2;
    o.balancer.interval = 1;
    o.balancer.threshold = 1;
    return o;
  }
};

TEST_F(EmulatedRuns, SchedulesAndPipelineRanksHaveTheBitsOfOneRank) {
  int n = 0;
  std::vector<std::string> one;
  for (; n < 2; n++) {
    const Behaviour behaviour(nth(n));
    const auto again = train(options("1f1b", 1));
    if (n == 0) one = again;
    EXPECT_EQ(again, one) << "seed " << n + 1;
  }
  for (const ScheduleKind& kind : schedule_kinds()) {
    const Behaviour behaviour(nth(n++, 2));
    EXPECT_EQ(train(options(kind.name, 2)), one) << kind.name << ", seed " << n;
  }
}

// Where the shapes of products are equal, as they are with the same microbatches on more ranks.
TEST_F(EmulatedRuns, SoDoDataParallelRanks) {
  std::vector<std::string> one;
  for (const auto& [dp, pp] : {std::pair(1, 1), {2, 1}, {4, 1}, {2, 2}}) {
    TrainOptions o = options(pp == 1 ? "1f1b" : "zbv", pp);
    o.dp = dp;
    o.microbatches = 4 / dp;
    const Behaviour behaviour(nth(dp, dp));
    const auto bits = train(o);
    if (dp == 1) one = bits;
    EXPECT_EQ(bits, one) << "dp " << dp << ", pp " << pp;
  }
}

TEST_F(EmulatedRuns, SoDoFourPipelineRanksThatShareAGpuOrHaveTheirOwn) {
  TrainOptions o = options("1f1b", 1, 1);
  o.model = parse_sizes("n_layers=8");
  o.microbatches = 8;
  std::vector<std::string> one;
  {
    const Behaviour behaviour(nth(1));
    one = train(o);
  }
  o.pp = 4;
  for (const char* schedule : {"dualpipe", "zbv"}) {
    o.schedule = schedule;
    const Behaviour behaviour(nth(2, schedule[0] == 'd' ? 1 : 4));
    EXPECT_EQ(train(o), one) << schedule;
  }
}

// In fp32, whose products are duet's own, also where their shapes differ.
TEST_F(EmulatedRuns, SoDoLayouts) {
  const auto with = [&](int64_t dp, int64_t ep, int64_t micro_batch_size, int gpus) {
    TrainOptions o = options("1f1b", 1);
    o.dp = dp;
    o.ep = ep;
    o.micro_batch_size = micro_batch_size;
    o.microbatches = 4 / dp / micro_batch_size;
    o.segment_tokens = 4;
    const Behaviour behaviour(nth(1, gpus));
    return train(o);
  };
  const auto one = with(1, 1, 1, 1);
  EXPECT_EQ(with(1, 1, 4, 1), one) << "a larger microbatch";
  EXPECT_EQ(with(2, 1, 1, 1), one) << "replicas of the model";
  EXPECT_EQ(with(2, 2, 2, 2), one) << "experts on two ranks";
  EXPECT_EQ(with(4, 4, 1, 2), one) << "experts on four ranks";
}

// Of `compare` all that nothing is said of: schedules, layouts, and what it computes in.
TEST_F(EmulatedRuns, CompareFindsTheBitsOfOneRankInAllItsRows) {
  const TrainOptions small = options("", 1);
  CompareOptions o;
  o.train.device = DeviceKind::cuda;
  o.train.data = small.data;
  o.train.model = parse_sizes("first_k_dense=6,d_model=16,vocab_size=257");
  o.train.seq_len = 4;
  o.train.microbatches = 8;
  o.train.steps = o.train.threads = 1;
  const Behaviour behaviour(nth(1));
  std::ostringstream out;
  EXPECT_TRUE(compare_command(o, out)) << out.str();
  EXPECT_EQ(out.str().find("device cuda, dtype fp32\n"), 0u) << out.str();
  o.train.dtype = Dtype::bf16;
  o.layouts = {"pp=4 schedule=zbv micro-batch-size=2"};
  out.str("");
  EXPECT_FALSE(compare_command(o, out)) << "what cuBLAS may do";
  EXPECT_EQ(out.str().find("device cuda, dtype bf16\n"), 0u) << out.str();
}

// Tokens to experts, replicas, and experts that move after the first step.
TEST_F(EmulatedRuns, TransportsHaveTheSameBitsAlsoWhereExpertsMove) {
  std::vector<std::string> shared;
  for (int n = 0; n < 3; n++) {
    const Behaviour behaviour(nth(n, n == 2 ? 4 : 1));
    const auto again = train(moving());
    if (n == 0) shared = again;
    EXPECT_EQ(again, shared) << "threads, run " << n;
  }
  TrainOptions o = moving();
  o.transport = Wire::nccl;
  for (int n = 0; n < 3; n++) {
    const Behaviour behaviour(nth(n, 4));
    EXPECT_EQ(train(o), shared) << "NCCL, seed " << n + 1;
    EXPECT_EQ(emulated::live_communicators(), 0);
  }
}

// What lies in a GPU's memory goes by way of the host's. A rank is a process, started by the next
// test, with its words.
TEST_F(EmulatedRuns, DISABLED_IsARankOfFour) {
  for (const std::string& b : train(moving())) std::cout << "bits: " << b << std::endl;
}
TEST_F(EmulatedRuns, ProcessesHaveTheBitsOfThreads) {
  if (const std::string why = why_no_mpirun(); !why.empty()) GTEST_SKIP() << why;
  std::vector<std::string> threads;
  {
    const Behaviour behaviour(nth(0));
    threads = train(moving());
  }
  const Ended e = run_command(mpirun(4) + this_program("EmulatedRuns.DISABLED_IsARankOfFour"));
  EXPECT_EQ(e.status, 0) << e.output;
  for (const std::string& b : threads)
    EXPECT_NE(e.output.find("bits: " + b), std::string::npos) << b << "\n" << e.output;
}

// Each part under another schedule, in another layout, over NCCL or not.
TEST_F(EmulatedRuns, AResumedRunGoesOnWithTheSameBitsInAnyLayout) {
  const uint32_t kinds = uint32_t(schedule_kinds().size());
  TrainOptions o = options("1f1b", 1, kinds);
  o.model = parse_sizes("n_layers=4,vocab_size=257");
  o.segment_tokens = 3;
  o.micro_batch_size = 1;
  o.microbatches = 8;
  o.out = path("whole");
  {
    const Behaviour behaviour(nth(1));
    run(o);
  }
  o.out = path("parts");
  o.resume = true;
  for (uint32_t n = 0; n < kinds; n += 3) {
    o.steps = n + 1;                            // experts move after a part's first step
    TrainOptions part = nth_layout(o, n + 10);  // experts on 2 and 4 ranks
    const bool nccl = n != 3;
    part.transport = nccl ? Wire::nccl : Wire::local;
    const Behaviour behaviour(nth(int(n), nccl ? int(part.dp * part.pp) : 2));
    run(part);
  }
  EXPECT_EQ(numbers("parts"), numbers("whole"));
}

TEST_F(EmulatedRuns, Bf16HasTheSameBitsEveryTime) {
  TrainOptions o = options("1f1b", 1);
  o.dtype = Dtype::bf16;
  std::vector<std::string> one;
  for (int n = 0; n < 3; n++) {
    const Behaviour behaviour(nth(n));
    const auto again = train(o);
    if (n == 0) one = again;
    EXPECT_EQ(again, one) << "seed " << n + 1;
  }
  o.schedule = "zbv";
  o.pp = 2;
  EXPECT_EQ(train(o), one);
}

// With a vocabulary that is padded on a GPU.
TEST_F(EmulatedRuns, TheLossIsNearTheCpus) {
  TrainOptions o = options("1f1b", 1, 4);
  o.model = parse_sizes("n_layers=4,vocab_size=257");
  const auto loss = [](const std::vector<std::string>& bits) { return std::stod(bits[3]); };
  const double gpu = loss(train(o));
  o.device = DeviceKind::cpu;
  EXPECT_NEAR(gpu, loss(train(o)), 1e-4 * gpu);
}

TEST_F(EmulatedRuns, WriteTextAndTraces) {
  TrainOptions o = options("1f1b", 2, 2);
  o.out = folder_ + "/run";
  o.trace = folder_ + "/trace.json";
  {
    const Behaviour behaviour(nth(1));
    run(o);
  }
  const std::string trace = contents(o.trace);
  for (const char* name : {"attention F", "experts I", "comm", "compute"})
    EXPECT_NE(trace.find(name), std::string::npos) << name;
  EXPECT_LT(trace.find("shared F"), trace.find("dispatch F")) << "the GPU idles: the host plans";
  GenerateOptions g;
  g.from = o.out;
  g.device = DeviceKind::cuda;
  g.threads = 1;
  g.sample.tokens = 6;
  g.sample.prompt = "ab";
  std::set<std::string> texts;
  for (int n = 0; n < 3; n++) {
    const Behaviour behaviour(nth(n));
    std::ostringstream text;
    generate_command(g, text);
    texts.insert(text.str());
  }
  EXPECT_EQ(texts.size(), 1u);
  EXPECT_GT(texts.begin()->size(), 6u);
}

TEST_F(EmulatedRuns, HeadsTooWideForTheKernelAreRefused) {
  TrainOptions o = options("1f1b", 1);
  o.model = parse_sizes("v_head_dim=129");
  try {
    train(o);
    FAIL() << "values of 129 dims";
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("v_head_dim: found 24, 129, allowed with --device cuda: "
                                         "at most 192, 128"),
        std::string::npos)
        << e.what();
  }
}

TEST_F(EmulatedRuns, TooLittleMemoryIsAnErrorThatSaysSo) {
  const Behaviour behaviour({.memory = 34 << 20});
  try {
    train(options("1f1b", 1));
    FAIL() << "34 MiB were enough";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("no memory: asked for"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace duet
