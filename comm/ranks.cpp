// run_ranks: starting ranks, and stopping all when one fails. And what a rank can know before it
// has spoken to another: who started it, and which build on which processor it is.
// Read next: process.h.
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "comm/transport.h"
#include "model/base/hash.h"
#include "model/base/memory_short.h"
#include "model/base/text.h"
#include "model/machine/gemm_cpu.h"

namespace duet {
namespace {

// after the first failure, before the process is ended
constexpr auto kTimeToStop = std::chrono::seconds(9);

// The first failure of a run, and who is still running.
struct Outcome {
  std::mutex mutex;
  std::condition_variable changed;
  int running;
  int failed_rank = -1;
  std::exception_ptr why;
};

// Where links are emulated it is time that is looked at: each rank, with all threads that it
// starts, keeps to cores of its own, if there are enough, so that no two stand on one while another
// idles.
void keep_to_own_cores([[maybe_unused]] int rank, [[maybe_unused]] int ranks) {
#ifdef CPU_SET
  cpu_set_t allowed, own;
  CPU_ZERO(&own);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < ranks) return;
  const int each = CPU_COUNT(&allowed) / ranks;
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &allowed) && seen++ / each == rank) CPU_SET(cpu, &own);
  sched_setaffinity(0, sizeof own, &own);
#endif
}

using Transports = std::vector<std::unique_ptr<Transport>>;

// `ranks` ranks from r on have ended, or never begun. The first failure stops the others.
void note_end(
    int r, int ranks, std::exception_ptr why, const Transports& transports, Outcome& outcome) {
  std::lock_guard lock(outcome.mutex);
  outcome.running -= ranks;
  if (why && outcome.failed_rank < 0) {
    outcome.failed_rank = r;
    outcome.why = why;
    for (const auto& t : transports)
      t->state->fail(std::make_exception_ptr(Stopped(cat("stopped: rank ", r, " failed"))));
  }
  outcome.changed.notify_all();
}

void run_one(
    int r, const Transports& transports, Outcome& outcome, const std::function<void(Comm&)>& rank) {
  std::exception_ptr why;
  try {
    Comm world(*transports[size_t(r)]);
    rank(world);
    transports[size_t(r)]->state->check();
  } catch (...) {
    why = std::current_exception();
  }
  note_end(r, 1, why, transports, outcome);
}

[[noreturn]] void rethrow_named(int rank, std::exception_ptr why) {
  try {
    std::rethrow_exception(why);
  } catch (const UsageError&) {
    throw;
  } catch (const std::exception& e) {
    throw Error(cat("rank ", rank, ": ", what_of(e)));
  }
}

void run_local(const RunOptions& options, const std::function<void(Comm&)>& rank) {
  const auto transports = make_local_ranks(options);
  Outcome outcome;
  outcome.running = options.ranks;
  std::vector<std::thread> threads;
  threads.reserve(size_t(options.ranks));
  try {
    for (int r = 0; r < options.ranks; r++)
      threads.emplace_back([&, r] {
        if (options.link.emulated()) keep_to_own_cores(r, options.ranks);
        run_one(r, transports, outcome, rank);
      });
  } catch (const std::exception& e) {
    const int started = int(threads.size());
    const Error why(cat("expected a thread for each of ", options.ranks, " ranks, found that only ",
        started, " can be started: ", e.what()));
    note_end(started, options.ranks - started, std::make_exception_ptr(why), transports, outcome);
  }

  std::unique_lock lock(outcome.mutex);
  outcome.changed.wait(lock, [&] { return outcome.running == 0 || outcome.why; });
  if (!outcome.changed.wait_for(lock, kTimeToStop, [&] { return outcome.running == 0; })) {
    try {
      rethrow_named(outcome.failed_rank, outcome.why);
    } catch (const std::exception& e) {
      fprintf(stderr, "duet: %sduet: %d ranks did not stop; ending the process\n",
          for_terminal(e.what()).c_str(), outcome.running);
    }
    std::_Exit(1);
  }
  lock.unlock();
  for (std::thread& t : threads) t.join();
  if (outcome.why) rethrow_named(outcome.failed_rank, outcome.why);
}

}  // namespace

void run_ranks(const RunOptions& options, const std::function<void(Comm& world)>& rank) {
  require(options.ranks >= 1, "ranks: expected at least 1, found ", options.ranks);
  require(
      options.timeout > 0, "--comm-timeout: expected more than 0 seconds, found ", options.timeout);
  require(options.transport == Wire::local || !options.link.emulated(),
      "--link: found --transport ", wire_name(options.transport),
      ", allowed: local (elsewhere messages take what they take)");
  const Launcher launcher = find_launcher();
  const bool nccl = options.transport == Wire::nccl;
  require(!nccl || have_nccl(), "--transport nccl: this duet was built without NCCL");
  if (options.transport == Wire::mpi || (nccl && launcher.ranks > 1))
    return run_mpi(options, launcher, rank);
  require(launcher.ranks == 1, "--transport local: ", launcher.name, " started ", launcher.ranks,
      " processes, and each would run all ranks by itself; use --transport mpi, or start duet "
      "without ",
      launcher.name);
  run_local(options, rank);
}

// --- before anything is said ---------------------------------------------------------------------

// The innermost launcher comes first: mpirun inside a Slurm job starts its processes through srun.
// SLURM_STEP_NUM_TASKS is srun's; SLURM_NTASKS would also be there in a batch script, which is one
// process.
Launcher find_launcher(const std::function<const char*(const char*)>& getenv) {
  struct Variables {
    const char *launcher, *ranks, *ranks_here, *rank;
  };
  constexpr Variables variables[] = {
      {"mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_RANK"},
      {"mpiexec", "PMI_SIZE", "MPI_LOCALNRANKS", "PMI_RANK"},
      {"srun", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_PROCID"}};
  const auto number = [&](const char* variable, int otherwise) {
    const char* value = getenv(variable);
    return value ? std::max(0, atoi(value)) : otherwise;
  };
  for (const Variables& v : variables) {
    const int ranks = std::max(1, number(v.ranks, 0));
    if (getenv(v.ranks))
      return {v.launcher, ranks, std::max(1, number(v.ranks_here, ranks)), number(v.rank, 0)};
  }
  return {};
}

namespace {

std::string processor_features() {
#if defined(__x86_64__)
  return cat(__builtin_cpu_supports("avx2") ? " avx2" : "",
      __builtin_cpu_supports("fma") ? " fma" : "",
      __builtin_cpu_supports("avx512f") ? " avx512f" : "");
#else
  return "";
#endif
}

// Of the program's file; the same for all where the system does not show it.
uint64_t program_hash() {
  std::ostringstream program;
  program << std::ifstream("/proc/self/exe", std::ios::binary).rdbuf();
  return checksum(program.str());
}

}  // namespace

std::string build_text() {
  return cat("compiler ", __VERSION__, ", built for ", cpu_instruction_set(),
      ", processor:", processor_features(), ", program ", std::hex, program_hash());
}

}  // namespace duet
