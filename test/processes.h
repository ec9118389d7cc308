// Programs that tests start: a command's output, status and time, and ranks under mpirun, which may
// be this very program.
#pragma once
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>

#include "comm/comm.h"

namespace duet {

struct Ended {
  int status;  // of the command; -1: ended by a signal
  std::string output;
  double seconds;
};

inline Ended run_command(const std::string& command) {
  const auto begin = std::chrono::steady_clock::now();
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  std::string output;
  char buffer[4096];
  while (const size_t n = fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, n);
  const int status = pclose(pipe);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output, seconds};
}

inline std::string program_path() {
  char path[4096];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path);
  return std::string(path, n > 0 ? size_t(n) : 0);
}

// Ranks that are to end because another has failed are asked, and after `patience` seconds killed:
// 0 saves a second or two.
inline std::string mpirun(int processes, int patience = 0) {
  return cat("OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_odls_base_sigkill_timeout=",
      patience, " mpirun --allow-run-as-root --oversubscribe -np ", processes, " ");
}

// Ranks that run tests of this program, disabled ones too.
inline std::string this_program(const std::string& filter) {
  return cat("'", program_path(), "' --gtest_also_run_disabled_tests --gtest_filter=", filter);
}
inline Ended under_mpirun(int processes, const std::string& filter) {
  return run_command(mpirun(processes) + this_program(filter));
}

// Why this test program cannot start ranks under mpirun, or empty.
inline std::string why_no_mpirun() {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  return "MPI's own code is not clean under sanitizers";
#else
  if (find_launcher().ranks > 1) return "itself under a launcher";
  if (!have_mpi()) return "built without MPI";
  return run_command("mpirun --version").status == 0 ? "" : "no mpirun on this machine";
#endif
}

}  // namespace duet
