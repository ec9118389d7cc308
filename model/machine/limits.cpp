// See limits.h.
#include "model/machine/limits.h"

#if defined(__linux__)
#include <malloc.h>
#endif
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "model/base/check.h"

namespace duet {
namespace fs = std::filesystem;
namespace {

constexpr double kNone = INFINITY;

// The first number in one of the system's files; where there is none, "max" or -1: no limit.
double limit_in(const fs::path& path) {
  double limit;
  std::ifstream file(path);
  return file >> limit && limit >= 0 ? limit : kNone;
}

// The least limit in this process's control group and those above it. /proc/self/cgroup has a line
// "0::/a/b" for version 2, "4:cpu,cpuacct:/a/b" for a controller of version 1.
double group_limit(const std::string& root, const std::string& controller,
    const std::function<double(const fs::path& group, bool v2)>& limit) {
  double least = kNone;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(":/", first + 1);
    if (second == line.npos) continue;
    const std::string controllers = cat(",", line.substr(first + 1, second - first - 1), ",");
    const bool v2 = controllers == ",,";
    if (!v2 && controllers.find(cat(",", controller, ",")) == controllers.npos) continue;
    const fs::path all = root + "/sys/fs/cgroup/" + (v2 ? "" : controller);
    for (fs::path group = line.substr(second + 2);; group = group.parent_path()) {
      least = std::min(least, limit(all / group, v2));
      if (group.empty()) break;
    }
  }
  return least;
}

double cores_of(const fs::path& group, bool v2) {
  if (!v2) return limit_in(group / "cpu.cfs_quota_us") / limit_in(group / "cpu.cfs_period_us");
  double quota, period;  // "200000 100000", or "max 100000"
  std::ifstream file(group / "cpu.max");
  return file >> quota >> period ? quota / period : kNone;
}

}  // namespace

int usable_cores(const std::string& root) {
  int cores = int(std::thread::hardware_concurrency());
#ifdef CPU_SET
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) cores = CPU_COUNT(&allowed);
#endif
  const double limit = group_limit(root, "cpu", cores_of);
  return std::max(1, limit < cores ? int(std::ceil(limit)) : cores);
}

double usable_memory(const std::string& root) {
  const double installed = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE));
  return std::min(installed, group_limit(root, "memory", [](const fs::path& group, bool v2) {
    return limit_in(group / (v2 ? "memory.max" : "memory.limit_in_bytes"));
  }));
}

double last_cache(const std::string& root) {
  double kilobytes = 1024;
  for (const char* level : {"2", "3"})  // "32768K"
    std::ifstream(root + "/sys/devices/system/cpu/cpu0/cache/index" + level + "/size") >> kilobytes;
  return std::max(kilobytes, 1.0) * 1024;
}

double usable_threads(const std::string& root) {
  rlimit processes;
  const bool limited =
      getrlimit(RLIMIT_NPROC, &processes) == 0 && processes.rlim_cur != RLIM_INFINITY;
  // a thread's stack is two of the pieces that an address space may have
  return std::min({limited ? double(processes.rlim_cur) : kNone,
      limit_in(root + "/proc/sys/kernel/threads-max"),
      limit_in(root + "/proc/sys/vm/max_map_count") / 2,
      group_limit(
          root, "pids", [](const fs::path& group, bool) { return limit_in(group / "pids.max"); })});
}

void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most that all versions take
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

}  // namespace duet
