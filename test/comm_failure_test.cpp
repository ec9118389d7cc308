// comm/: what happens when something goes wrong, between threads and between processes.
//
// CommMpi starts processes of this program with mpirun. CommChild are those that are meant to fail:
// disabled, and started by name.
#include <csignal>
#include <cstdlib>
#include <optional>
#include <regex>
#include <thread>

#include "test/comm_testing.h"
#include "test/processes.h"

namespace duet {
namespace {

TEST(CommLocal, AFailingRankStopsTheOthersWhereverTheyWait) {
  for (const bool further : {false, true}) {
    const std::string error = error_of({.ranks = 5, .timeout = 60}, [&](Comm& world) {
      auto device = make_cpu_device(1);
      std::vector<double> mine(100), scratch(1000);
      CommStream stream(world, *device);
      Comm pair = world.group(
          world.rank() == 0 || world.rank() == 2 ? std::vector{0, 2} : std::vector{world.rank()});
      Stream& used = further ? static_cast<Stream&>(stream) : device->compute();
      if (world.rank() == 4) return;  // ended already
      if (world.rank() == 3) {        // fails while its own stream waits, too
        world.wait(stream, world.irecv(stream, view(mine, 1, 100), 4, {Tag::F, 0, 0}));
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        throw Error("out of tokens");
      }
      if (world.rank() == 2) pair.all_reduce(used, view(mine, 1, 100), view(scratch, 1, 1000));
      if (world.rank() == 1) world.gather("x");
      if (world.rank() == 0) world.irecv(used, view(mine, 1, 100), 1, {Tag::F, 0, 0}).wait();
      used.synchronize();
      ADD_FAILURE() << "rank " << world.rank() << " went on";
    });
    EXPECT_EQ(error, "rank 3: out of tokens");
  }
}

TEST(CommLocal, AUsageErrorStaysOne) {
  EXPECT_EQ(error_of({.ranks = 3}, [](Comm&) { throw UsageError("--data: nothing there"); }),
      "usage: --data: nothing there");
}

TEST(CommLocal, ATimeoutSaysWhoWaitsForWhomAndForWhat) {
  const auto receive = [](Comm& world) {
    auto device = make_cpu_device(1);
    std::vector<float> v(8);
    if (world.rank() == 1) world.irecv(device->compute(), view(v, 1, 8), 0, {Tag::F, 3, 7}).wait();
  };
  EXPECT_EQ(error_of({.ranks = 2, .timeout = 0.1}, receive),
      "rank 1: waited 0.1 s for 3F7 from rank 0; it did not come (--comm-timeout)");
  const auto send = [](Comm& world) {
    auto device = make_cpu_device(1);
    std::vector<float> v(8);
    CommStream stream(world, *device);
    if (world.rank() == 0)
      world.wait(stream, world.isend(stream, view(v, 1, 8), 1, {Tag::B, 12, 2049}));
    stream->synchronize();
  };
  EXPECT_EQ(error_of({.ranks = 2, .timeout = 0.1}, send),
      "rank 0: waited 0.1 s for 12B1 to be taken by rank 1; it did not come (--comm-timeout)");
  const auto collective = [](Comm& world) {
    Comm group = world.group({1 - world.rank(), world.rank()});
    if (world.rank() == 1) group.barrier();
  };
  EXPECT_EQ(error_of({.ranks = 2, .timeout = 0.1}, collective),
      "rank 1: waited 0.1 s for gather 0 of group 1 from rank 0; it did not come (--comm-timeout)");
}

TEST(CommLocal, SidesThatDisagreeAreRefused) {
  const std::string error = error_of({.ranks = 2}, [](Comm& world) {
    auto device = make_cpu_device(1);
    std::vector<float> v(8);
    const Tensor t = view(v, 1, 4 + world.rank());
    if (world.rank() == 0) world.isend(device->compute(), t, 1, {Tag::F, 0, 1}).wait();
    if (world.rank() == 1) world.irecv(device->compute(), t, 0, {Tag::F, 0, 1}).wait();
  });
  EXPECT_NE(error.find("0F1"), std::string::npos) << error;
  EXPECT_NE(error.find("16"), std::string::npos) << error;
  EXPECT_NE(error.find("20"), std::string::npos) << error;
}

TEST(CommLocal, ADroppedRequestIsTakenBack) {
  run_ranks({.ranks = 2, .timeout = 10}, [](Comm& world) {
    auto device = make_cpu_device(1);
    const Tag tag{Tag::F, 0, 0};
    if (world.rank() == 0) {
      std::vector<float> gone(8, 1.f);
      world.isend(device->compute(), view(gone, 1, 8), 1, tag);  // dropped at once
    }
    world.barrier();
    std::vector<float> v(8, world.rank() ? 0.f : 2.f);
    const Request r = world.rank() ? world.irecv(device->compute(), view(v, 1, 8), 0, tag)
                                   : world.isend(device->compute(), view(v, 1, 8), 1, tag);
    r.wait();
    EXPECT_EQ(v[7], 2.f);
  });
}

TEST(CommLocal, BadCallsAreRefused) {
  run_ranks({.ranks = 2}, [](Comm& world) {
    auto device = make_cpu_device(1);
    Stream& s = device->compute();
    std::vector<float> v(100);
    Tensor strided = view(v, 10, 10).col_slice(0, 5);
    EXPECT_THROW(world.isend(s, view(v, 1, 100), 2, {Tag::F, 0, 0}), Error);
    EXPECT_THROW(world.isend(s, strided, 1 - world.rank(), {Tag::F, 0, 0}), Error);
    EXPECT_THROW(world.isend(s, view(v, 1, 100), 1 - world.rank(), {Tag::F, 512, 0}), Error);
    std::vector<double> sums(50), short_scratch(50), scratch(128);
    EXPECT_THROW(world.all_reduce(s, view(sums, 1, 50), view(short_scratch, 1, 50)), Error);
    EXPECT_THROW(world.all_reduce(s, view(v, 1, 50), view(scratch, 1, 128)), Error);
    EXPECT_THROW(world.all_gather(s, view(v, 1, 50), view(v, 1, 99)), Error);
    const std::vector<int64_t> offsets{0, 50, 100}, beyond{0, 50, 101};
    EXPECT_THROW(world.all_to_all_v(s, view(v, 100, 1), offsets, view(v, 100, 1), beyond), Error);
    EXPECT_THROW(world.group({1 - world.rank()}), Error);
  });
  EXPECT_THROW(run_ranks({.ranks = 0}, [](Comm&) {}), UsageError);
  EXPECT_THROW(run_ranks({.timeout = 0}, [](Comm&) {}), UsageError);
}

TEST(CommLaunch, FindsTheInnermostLauncher) {
  std::vector<std::pair<std::string, const char*>> environment;
  const auto lookup = [&](const char* name) -> const char* {
    for (const auto& [key, value] : environment)
      if (key == name) return value;
    return nullptr;
  };
  EXPECT_EQ(find_launcher(lookup).ranks, 1);
  environment = {{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}};  // a batch script
  EXPECT_EQ(find_launcher(lookup).ranks, 1);
  environment.push_back({"SLURM_STEP_NUM_TASKS", "8"});
  EXPECT_EQ(find_launcher(lookup).ranks, 8);
  EXPECT_EQ(find_launcher(lookup).name, "srun");
  environment.push_back({"OMPI_COMM_WORLD_SIZE", "4"});
  EXPECT_EQ(find_launcher(lookup).ranks, 4);
  EXPECT_EQ(find_launcher(lookup).name, "mpirun");
  EXPECT_EQ(find_launcher(lookup).ranks_here, 4);  // where nobody says
  EXPECT_EQ(find_launcher(lookup).rank, 0);
  environment.push_back({"OMPI_COMM_WORLD_LOCAL_SIZE", "2"});
  environment.push_back({"OMPI_COMM_WORLD_RANK", "3"});
  EXPECT_EQ(find_launcher(lookup).ranks_here, 2);
  EXPECT_EQ(find_launcher(lookup).rank, 3);
  environment = {{"SLURM_STEP_NUM_TASKS", "7"}, {"SLURM_STEP_TASKS_PER_NODE", "3(x2),1"}};
  EXPECT_EQ(find_launcher(lookup).ranks_here, 3);
}

// A rank that writes for longer than the timeout is waited for by those who were told to.
TEST(CommFailure, PatienceOutlastsTheTimeout) {
  const auto late = [](bool patient) {
    run_ranks({.ranks = 2, .timeout = 0.05}, [&](Comm& world) {
      const Guard patience = patient ? world.patience() : nullptr;
      if (world.rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(300));
      world.barrier();
    });
  };
  EXPECT_NO_THROW(late(true));
  EXPECT_THROW(late(false), Error);
}

// --- MPI: processes of this test program ---------------------------------------------------------

class CommMpi : public testing::Test {
  void SetUp() override {
    if (const std::string why = why_no_mpirun(); !why.empty()) GTEST_SKIP() << why;
  }
};

TEST_F(CommMpi, Conformance) {
  const Ended e = under_mpirun(4, "*/CommConformance.*:CommOverlap.ACollective*:CommHost.*");
  EXPECT_EQ(e.status, 0) << e.output;
  EXPECT_NE(e.output.find("[  PASSED  ]"), std::string::npos) << e.output;
}

TEST(CommChild, DISABLED_Throws) {
  std::signal(SIGTERM, SIG_IGN);  // as a run that ends in order
  run_ranks(here(), [](Comm& world) {
    if (world.rank() == 2) throw Error("out of tokens");
    world.gather("x");
  });
}
TEST_F(CommMpi, AFailingRankStopsTheOthers) {
  for (const int patience : {0, 2}) {
    const Ended e = run_command(mpirun(4, patience) + this_program("CommChild.DISABLED_Throws"));
    EXPECT_EQ(e.status, 1);
    EXPECT_NE(e.output.find("duet: rank 2: out of tokens"), std::string::npos) << e.output;
    EXPECT_EQ(e.output.find("was killed"), std::string::npos) << e.output;
    EXPECT_LT(e.seconds, 10);
  }
}

TEST(CommChild, DISABLED_IsKilled) {
  std::signal(SIGTERM, SIG_IGN);  // as a run that ends in order
  run_ranks(here(), [](Comm& world) {
    world.barrier();
    if (world.rank() == 1) raise(SIGKILL);
    world.barrier();
  });
}
TEST_F(CommMpi, AKilledRankStopsTheOthersWhoNameIt) {
  const Ended e = run_command(mpirun(4, 2) + this_program("CommChild.DISABLED_IsKilled"));
  EXPECT_NE(e.status, 0);
  EXPECT_TRUE(std::regex_search(
      e.output, std::regex("duet: rank 0: rank 1, process [0-9]+ on [^ ]+, was killed")))
      << e.output;
  EXPECT_LT(e.seconds, 10);
}

TEST(CommChild, DISABLED_TimesOut) {
  RunOptions options = here();
  options.timeout = 0.3;
  run_ranks(options, [](Comm& world) {
    auto device = make_cpu_device(1);
    std::vector<float> v(8);
    if (world.rank() == 1) world.irecv(device->compute(), view(v, 1, 8), 0, {Tag::F, 3, 7}).wait();
    std::this_thread::sleep_for(std::chrono::seconds(8));
  });
}
TEST_F(CommMpi, ATimeoutSaysWhoWaitsForWhomAndForWhat) {
  const Ended e = under_mpirun(2, "CommChild.DISABLED_TimesOut");
  EXPECT_EQ(e.status, 1);
  EXPECT_NE(e.output.find("duet: rank 1: waited 0.3 s for 3F7 from rank 0"), std::string::npos)
      << e.output;
  EXPECT_LT(e.seconds, 7);
}

TEST(CommChild, DISABLED_WantsMoreRanks) {
  run_ranks({.transport = Wire::mpi, .ranks = 3}, [](Comm&) {});
}
TEST_F(CommMpi, AnotherNumberOfProcessesIsRefused) {
  const Ended e = under_mpirun(2, "CommChild.DISABLED_WantsMoreRanks");
  EXPECT_EQ(e.status, 2);
  EXPECT_NE(e.output.find("expected one process for each of 3 ranks, found 2"), std::string::npos)
      << e.output;
}

// srun whose Slurm lacks PMI starts every task as an MPI world of its own.
TEST(CommChild, DISABLED_RunsHere) {
  run_ranks(here(), [](Comm&) {});
}
TEST_F(CommMpi, TasksThatMpiDoesNotSeeAreRefused) {
  const Ended e =
      run_command("SLURM_STEP_NUM_TASKS=4 " + this_program("CommChild.DISABLED_RunsHere"));
  EXPECT_EQ(e.status, 2);
  EXPECT_NE(e.output.find("srun started 4 tasks, but MPI sees 1"), std::string::npos) << e.output;
  EXPECT_NE(e.output.find("srun --mpi=pmix"), std::string::npos) << e.output;
}

TEST(CommChild, DISABLED_RunsThreads) {
  EXPECT_THROW(run_ranks({.transport = Wire::local, .ranks = 4}, [](Comm&) {}), UsageError);
}
TEST_F(CommMpi, ThreadsUnderALauncherAreRefused) {
  EXPECT_EQ(run_command("OMPI_COMM_WORLD_SIZE=4 " + this_program("CommChild.DISABLED_RunsThreads"))
                .status,
      0);
}

}  // namespace
}  // namespace duet
