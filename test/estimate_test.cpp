// What a job needs at the least: beside what the same run says that it took; and what no machine
// has.
#include "pipeline/train/job.h"

#include "model/machine/limits.h"
#include "run_testing.h"

namespace duet {
namespace {

class Estimate : public RunTest {
 protected:
  // MiB in a row of the table that a run prints.
  static double printed(const std::string& text, const std::string& row) {
    const size_t at = text.find("\n  " + row + " ");
    EXPECT_NE(at, std::string::npos) << text;
    return std::stod(text.substr(at + 3 + row.size()));
  }
};

TEST_F(Estimate, IsWhatTheTableOfTheRunSays) {
  for (const int64_t dp : {1, 2}) {
    TrainOptions o = options("", 1);
    o.dp = o.ep = dp;
    o.model = parse_sizes("n_layers=3,d_model=512");  // the table has one decimal
    const std::string text = run(o);
    const Need need = need_of(make_job(o));
    const auto mib = [&](double bytes) { return bytes / double(dp << 20); };  // of a rank
    EXPECT_NEAR(printed(text, "weights") / mib(need.weights), 1, 0.1) << text;
    EXPECT_NEAR(printed(text, "gradients") / mib(need.gradients), 1, 0.1) << text;
    EXPECT_NEAR(printed(text, "moments") / mib(need.moments), 1, 0.1) << text;
    EXPECT_LT(mib(need.activations), printed(text, "activations")) << text;
    EXPECT_GT(mib(need.activations), 0.02 * printed(text, "activations")) << text;
    EXPECT_EQ(need.threads, dp);
  }
}

TEST_F(Estimate, WhatNoMachineHasIsRefusedByTheOptionsName) {
  const auto refused = [&](auto change, const std::vector<std::string>& words) {
    TrainOptions o = options("", 1);
    change(o);
    expect_refused([&] { make_job(o); }, words);
  };
  const auto sizes = [](const char* text) {
    return [=](TrainOptions& o) { o.model = parse_sizes(text); };
  };
  refused(
      sizes("n_layers=1000000"), {"--preset, --model: found a job", "GiB (weights ", "allowed: "});
  refused(sizes("n_layers=1000,d_model=1000000"),
      {"--preset, --model: found a job", " GiB", "moments"});
  refused(sizes("d_model=1048576,d_expert=1048576,n_routed=1048576,n_layers=1048576"),
      {"n_layers", "parameters"});
  refused(sizes("n_layers=9,n_routed=16384,d_expert=1000000"), {"--model", " GiB"});
  refused(
      [](TrainOptions& o) {
        o.dp = 4096;
        o.pp = 4096;
      },
      {"--dp, --pp, --threads", "4096 x 4096", "threads"});
  refused(
      [](TrainOptions& o) {
        o.threads = 4096;
        o.dp = 4096;
      },
      {"--threads", "threads, allowed: "});
  refused(
      [](TrainOptions& o) {
        o.seq_len = INT32_MAX;
        o.micro_batch_size = 1 << 20;
      },
      {"--seq-len, --micro-batch-size", "activations"});
}

// --- the machine ---------------------------------------------------------------------------------

// Control groups as the system shows them, beside those of this machine.
class Limits : public FolderTest {};

TEST_F(Limits, WithoutControlGroupsAllIsUsable) {
  EXPECT_GE(usable_cores(folder_), usable_cores());
  EXPECT_GE(usable_memory(folder_), usable_memory());
  EXPECT_GE(usable_threads(folder_), usable_threads());
}

TEST_F(Limits, TheLastCacheIsTheHighestLevel) {
  EXPECT_EQ(last_cache(folder_), 1 << 20);
  write("sys/devices/system/cpu/cpu0/cache/index2/size", "2048K\n");
  EXPECT_EQ(last_cache(folder_), 2 << 20);
  write("sys/devices/system/cpu/cpu0/cache/index3/size", "32768K\n");
  EXPECT_EQ(last_cache(folder_), 32 << 20);
}

TEST_F(Limits, OfVersion2TheLeastOfTheGroupAndThoseAboveIt) {
  write("proc/self/cgroup", "0::/user/job\n");
  write("sys/fs/cgroup/user/job/cpu.max", "max 100000\n");
  write("sys/fs/cgroup/user/cpu.max", "50000 100000\n");
  write("sys/fs/cgroup/user/job/memory.max", "1048576\n");
  write("sys/fs/cgroup/user/memory.max", "max\n");
  write("sys/fs/cgroup/memory.max", "2097152\n");
  write("sys/fs/cgroup/user/job/pids.max", "7\n");
  EXPECT_EQ(usable_cores(folder_), 1);
  EXPECT_EQ(usable_memory(folder_), 1 << 20);
  EXPECT_EQ(usable_threads(folder_), 7);
}

TEST_F(Limits, OfVersion1EachControllerHasItsOwnGroup) {
  write("proc/self/cgroup", "4:memory:/a/b\n3:cpu,cpuacct:/c\n2:pids:/\n1:name=systemd:/d\n");
  write("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu/c/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(usable_cores(folder_), usable_cores(path("nothing")));
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "20000\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(usable_cores(folder_), 1);
  write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n");
  EXPECT_EQ(usable_memory(folder_), 1 << 20);
  write("sys/fs/cgroup/pids/pids.max", "9\n");
  EXPECT_EQ(usable_threads(folder_), 9);
}

}  // namespace
}  // namespace duet
