// `duet train` under mpirun: the bits of threads, a killed rank, and what wrong numbers of
// processes are told.
//
// The processes are the duet that `make test` builds beside this program, from the same objects.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <map>
#include <regex>
#include <set>
#include <thread>

#include "test/layouts.h"
#include "test/processes.h"
#include "test/run_testing.h"

namespace duet {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kLook = std::chrono::milliseconds(10);

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

class Started;

class MpiRun : public RunTest {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_mpirun(); !why.empty()) GTEST_SKIP() << why;
    RunTest::SetUp();
    duet_ = program_path();
    duet_.replace(duet_.rfind("test_duet"), 9, "duet");
    ASSERT_TRUE(fs::exists(duet_)) << duet_ << ": make test builds it";
  }

  TrainOptions options(
      const std::string& out, const std::string& schedule, int64_t pp, int64_t steps) const {
    TrainOptions o = RunTest::options(out, steps);
    o.model = parse_sizes("n_layers=8");
    o.microbatches = 8;
    o.schedule = schedule;
    o.pp = pp;
    o.clip = 0.05;
    return o;
  }
  // Experts on four ranks, with replicas, that move after each step.
  TrainOptions moving(
      const std::string& out, const std::string& schedule, int64_t pp, int64_t steps) const {
    TrainOptions o = RunTest::options(out, steps);
    o.schedule = schedule;
    o.pp = pp;
    o.dp = o.ep = o.redundant_experts = 4;
    o.balancer.interval = 1;
    o.balancer.threshold = 1;
    return o;
  }
  // What those options, and no others, are on the command line; dp follows from the processes.
  std::string command_line(const TrainOptions& o) const {
    return cat("'", duet_, "' train --device cpu --threads ", o.threads,
        " --sample 0 --log-every 1 --preset tiny --model ", o.model.text, " --data '", o.data,
        "' --seq-len ", o.seq_len, " --microbatches ", o.microbatches, " --steps ", o.steps,
        " --decay-steps ", o.decay_steps, " --warmup-steps ", o.warmup_steps, " --clip ", o.clip,
        " --val-sequences ", o.val_sequences, " --schedule ", o.schedule, " --pp ", o.pp, " --ep ",
        o.ep, " --redundant-experts ", o.redundant_experts, " --eplb-interval ",
        o.balancer.interval, " --eplb-threshold ", o.balancer.threshold, " --checkpoint-every ",
        o.checkpoint_every, o.resume ? " --resume" : "", " --out '", o.out, "'");
  }
  void kill_rank_2(Started& mpi, const std::string& log);
  void go_on(const TrainOptions& o, TrainOptions rest, TrainOptions whole);
  void kill_and_go_on(TrainOptions o, TrainOptions rest, TrainOptions whole);
  std::string duet_;
};

// Each part goes on from the one before under the next schedule, in another layout.
TEST_F(MpiRun, EveryScheduleInChangingLayoutsHasTheBitsOfOneRank) {
  const uint32_t parts = 2 * uint32_t(schedule_kinds().size());
  TrainOptions batch = options("one", "1f1b", 1, 2 * parts - 1);
  batch.segment_tokens = 6;
  batch.micro_batch_size = 1;
  batch.microbatches = 16;
  run(batch);
  batch.out = path("parts");
  batch.resume = true;
  std::set<std::string> over_mpi;
  for (uint32_t n = 0; n < parts; ++n) {
    batch.steps = 2 * n + 1;  // experts move after a part's first step
    const TrainOptions o = nth_layout(batch, n);
    const int64_t ranks = o.pp * o.dp;
    if (ranks == 1 || n % 7 == 4) {  // by threads
      run(o);
      continue;
    }
    const Ended e = run_command(cat(mpirun(int(ranks)), command_line(o), " --segment-tokens ",
        o.segment_tokens, " --micro-batch-size ", o.micro_batch_size, " --dp ", o.dp, " --overlap ",
        o.overlap ? "on" : "off"));
    ASSERT_EQ(e.status, 0) << text_of(o) << "\n" << e.output;
    EXPECT_NE(e.output.find("MPI processes"), std::string::npos) << e.output;
    over_mpi.insert(o.schedule);
  }
  EXPECT_EQ(over_mpi.size(), schedule_kinds().size());
  EXPECT_EQ(numbers("parts"), numbers("one"));
}

TEST_F(MpiRun, DataParallelRanksFollowFromTheProcessesAndHaveTheBitsOfThreads) {
  TrainOptions o = options("threads", "dualpipe", 2, 3);
  o.dp = 2;
  run(o);
  const Ended e = run_command(mpirun(4) + command_line(options("mpi", "dualpipe", 2, 3)));
  ASSERT_EQ(e.status, 0) << e.output;
  EXPECT_EQ(bits("mpi"), bits("threads"));
}

TEST_F(MpiRun, ExpertsThatMoveHaveTheBitsOfThreads) {
  run(moving("threads", "1f1b", 1, 4));
  const std::string metrics = contents(folder_ + "/threads/metrics.jsonl");
  EXPECT_TRUE(std::regex_search(metrics, std::regex("\"moves\": ?[1-9]"))) << metrics;
  for (const auto& [schedule, pp] : {std::pair("1f1b", 1), {"dualpipe", 2}}) {
    const Ended e = run_command(mpirun(4 * pp) + command_line(moving(schedule, schedule, pp, 4)));
    ASSERT_EQ(e.status, 0) << e.output;
    EXPECT_EQ(bits(schedule), bits("threads")) << schedule;
  }
}

// One of four processes was told something else. What else makes plans differ is in
// EplbLive: check_same_plans.
TEST_F(MpiRun, ARankThatWasToldSomethingElseIsNamed) {
  const TrainOptions o = moving("run", "1f1b", 1, 4);
  const auto refused = [&](const std::string& other, const std::vector<std::string>& words) {
    const Ended e = run_command(cat(mpirun(3), command_line(o), " : -np 1 ", other));
    EXPECT_EQ(e.status, 2) << e.output;
    for (const std::string& word : words)
      EXPECT_NE(e.output.find(word), std::string::npos) << word << " in " << e.output;
    EXPECT_FALSE(fs::exists(o.out));
  };
  refused(command_line(o) + " --eplb-policy balanced",
      {"--eplb-policy: rank 0 has '\"deepseek\"', rank 3 has '\"balanced\"'"});
  refused(command_line(o) + " --seed 5", {"--seed: rank 0 has '0', rank 3 has '5'"});
  refused(command_line(o) + " --segment-tokens 7", {"--segment-tokens: rank 0 has", "'7'"});
  refused(command_line(o) + " --lr 0.5", {"--lr: rank 0 has '0.002', rank 3 has '0.5'"});
  TrainOptions other = o;
  other.data = write("other.txt", contents(o.data) + "x");
  refused(command_line(other), {"--data: rank 0 has", "rank 3 has", "tokens of hash"});
}

// --- a killed rank -------------------------------------------------------------------------------

// mpirun's processes on this machine, by rank.
std::map<int, pid_t> ranks_of(pid_t mpirun) {
  std::map<int, pid_t> ranks;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream stat(entry.path() / "stat"), environ(entry.path() / "environ");
    std::string text;
    std::getline(stat, text);
    const size_t after_name = text.rfind(')');
    if (after_name == std::string::npos || std::atol(text.c_str() + after_name + 4) != mpirun)
      continue;
    const std::string rank = "OMPI_COMM_WORLD_RANK=";
    for (std::string variable; std::getline(environ, variable, '\0');)
      if (variable.starts_with(rank))
        ranks[std::stoi(variable.substr(rank.size()))] = pid_t(std::stol(name));
  }
  return ranks;
}

// A command whose output goes to a file; the process is the command itself, not a shell. Ended at
// the latest with this object.
class Started {
 public:
  Started(const std::string& command, const std::string& output) : pid_(fork()) {
    if (pid_ != 0) return;
    const int file = open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(file, STDOUT_FILENO);
    dup2(file, STDERR_FILENO);
    execl("/bin/sh", "sh", "-c", ("exec env " + command).c_str(), nullptr);
    _exit(127);
  }
  Started(const Started&) = delete;
  ~Started() {
    if (running()) kill(pid_, SIGTERM), waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }
  bool running() {
    if (!ended_) ended_ = waitpid(pid_, &status_, WNOHANG) != 0;
    return !ended_;
  }
  int status() const { return status_; }  // as waitpid's, once it is not running

 private:
  pid_t pid_;
  bool ended_ = false;
  int status_ = 0;
};

// Rank 2 of four is killed: all end, and say so.
void MpiRun::kill_rank_2(Started& mpi, const std::string& log) {
  const std::map<int, pid_t> ranks = ranks_of(mpi.pid());
  ASSERT_EQ(ranks.size(), 4u) << contents(log);
  ASSERT_EQ(kill(ranks.at(2), SIGKILL), 0);
  const auto killed = Clock::now();
  const auto alive = [&] {
    return mpi.running() || std::any_of(ranks.begin(), ranks.end(), [](const auto& rank) {
      return kill(rank.second, 0) == 0;
    });
  };
  while (alive() && seconds_since(killed) < 30) std::this_thread::sleep_for(kLook);
  EXPECT_LT(seconds_since(killed), 10);
  ASSERT_FALSE(mpi.running());
  EXPECT_NE(mpi.status(), 0);
  const std::string line = cat("rank 2, process ", ranks.at(2), " on ");
  EXPECT_NE(contents(log).find(line), std::string::npos) << line << " in " << contents(log);
}

// What a killed run left goes on as `rest` says to where `whole` goes without a stop.
void MpiRun::go_on(const TrainOptions& o, TrainOptions rest, TrainOptions whole) {
  const std::string last = newest_checkpoint(o.out);
  EXPECT_NO_THROW(verify(last));
  rest.steps = whole.steps = std::stoll(last.substr(last.rfind('-') + 1)) + 2;
  rest.resume = true;
  run(rest);
  run(whole);
  EXPECT_EQ(bits("killed"), bits("whole"));
}

// Of four processes that train as o says, one is killed after a checkpoint.
void MpiRun::kill_and_go_on(TrainOptions o, TrainOptions rest, TrainOptions whole) {
  o.steps = 100000;
  o.checkpoint_every = 2;
  const std::string log = folder_ + "/log";
  Started mpi(mpirun(4, 2) + command_line(o), log);
  const auto started = Clock::now();
  while (newest_checkpoint(o.out).empty() && seconds_since(started) < 60 && mpi.running())
    std::this_thread::sleep_for(kLook);
  ASSERT_FALSE(newest_checkpoint(o.out).empty()) << contents(log);
  kill_rank_2(mpi, log);
  go_on(o, rest, whole);
}

TEST_F(MpiRun, AKilledRankEndsAllAndTheLastCheckpointGoesOnWithTheSameBits) {
  kill_and_go_on(options("killed", "dualpipe", 4, 0), options("killed", "zbv", 2, 0),
      options("whole", "1f1b", 1, 0));
}

// When it is killed while they move: EplbLiveMpi.AKilledProcessWhileExpertsMoveLeavesTheCheckpoint.
TEST_F(MpiRun, AKilledRankOfThoseWhoseExpertsMove) {
  kill_and_go_on(moving("killed", "1f1b", 1, 0), moving("killed", "dualpipe", 2, 0),
      moving("whole", "1f1b", 1, 0));
}

// The others end the job while rank 0 is in the middle of a checkpoint.
TEST_F(MpiRun, AnAbortWhileACheckpointIsWrittenLeavesTheOneBefore) {
  const fs::path shim = fs::path(program_path()).parent_path() / "faults.so";
  if (!fs::exists(shim)) GTEST_SKIP() << "no " << shim;
  TrainOptions o = options("killed", "dualpipe", 4, 100000);
  o.checkpoint_every = 2;
  const std::string log = folder_ + "/log", writing = o.out + "/step-000004.duet-writing";
  Started mpi(cat(mpirun(1, 2), "env LD_PRELOAD=", shim, " 'DUET_FAULT=stall 9' 'DUET_FAULT_ROOT=",
                  writing, "' ", command_line(o), " : -np 3 ", command_line(o)),
      log);
  const auto started = Clock::now();
  while (
      !fs::exists(writing + "/model.safetensors") && seconds_since(started) < 60 && mpi.running())
    std::this_thread::sleep_for(kLook);
  ASSERT_TRUE(fs::exists(writing + "/model.safetensors")) << contents(log);
  kill_rank_2(mpi, log);
  EXPECT_TRUE(fs::exists(writing));
  EXPECT_EQ(newest_checkpoint(o.out), checkpoint_dir(o.out, 2));
  go_on(o, options("killed", "zbv", 2, 0), options("whole", "1f1b", 1, 0));
  EXPECT_FALSE(fs::exists(writing));
}

// --- wrong input ---------------------------------------------------------------------------------

TEST_F(MpiRun, RefusesRanksThatAreNotTheProcesses) {
  const auto refused = [&](const std::string& more, const std::vector<std::string>& words) {
    const TrainOptions o = options("run", "1f1b", 1, 3);
    const Ended e = run_command(mpirun(4) + command_line(o) + " " + more);
    EXPECT_EQ(e.status, 2) << e.output;
    for (const std::string& word : words)
      EXPECT_NE(e.output.find(word), std::string::npos) << e.output;
    EXPECT_EQ(e.output.find("duet: "), e.output.rfind("duet: ")) << "said twice: " << e.output;
    EXPECT_FALSE(fs::exists(o.out)) << words[0];
  };
  refused("--dp 3", {"--dp, --pp", "3 x 1", "4"});
  refused("--transport local", {"--transport", "local", "mpirun", "mpi"});
}

}  // namespace
}  // namespace duet
