// Memory. See machine.h.
//
// Each allocation has pages of its own and ends, but for what 256-byte alignment leaves, where a
// page begins that nobody can touch: what writes past its end faults. Freed memory is never handed
// out again and cannot be touched any more. And as long as all streams belong to one host thread,
// device memory can be touched only from when work runs to the end of a wait (in lazy order of the
// next one, else of one in eight), so that a host that reads or writes it otherwise faults, as it
// would with a GPU. Where several ranks are threads of one process, one may wait while another's
// work runs, and the host's touching it is not noticed.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>

#include "test/emulated/machine.h"

namespace emulated {
namespace {

constexpr size_t kPoisoned = 1 << 20;  // bytes at either end of an allocation

// Says what it was, which the kernel's "Segmentation fault" would not, and lets it end the program.
void on_fault(int, siginfo_t* info, void*) {
  char line[200];
  const int n = snprintf(line, sizeof line,
      "emulated GPU: address %p touched: device memory by the host, memory that was freed, or none "
      "at all\n",
      info->si_addr);
  if (write(2, line, size_t(n)) < 0) _exit(1);
  signal(SIGSEGV, SIG_DFL);
}

void catch_faults() {
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
}

void protect(const Allocation& a, int protection) {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  mprotect(a.mapped + page, a.mapped_bytes - 2 * page, protection);
}

}  // namespace

// Of much memory both ends: a workspace need not become resident.
void Machine::poison(char* p, size_t bytes) {
  memset(p, kPoison, std::min(bytes, kPoisoned));
  memset(p + bytes - std::min(bytes, kPoisoned), kPoison, std::min(bytes, kPoisoned));
}

char* Machine::allocate(size_t bytes, int device) {
  if (allocations_.empty()) catch_faults();
  const size_t page = size_t(sysconf(_SC_PAGESIZE)), all = (bytes + 255) / 256 * 256,
               used = (all + page - 1) / page * page;
  const size_t before = device < 0 ? 0 : gpus[size_t(device)].allocated;
  if (device >= 0 && (bytes > options.memory || before + used > options.memory)) return nullptr;
  void* mapped = mmap(nullptr, used + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  const Allocation a{static_cast<char*>(mapped), used + 2 * page, bytes, device};
  char* p = a.mapped + page + used - all;
  protect(a, PROT_READ | PROT_WRITE);
  poison(p, all);
  if (!open_ && device >= 0) protect(a, PROT_NONE);
  allocations_[p] = a;
  if (device >= 0) gpus[size_t(device)].allocated += used;
  counts.allocations++;
  return p;
}

bool Machine::release(void* p, bool device) {
  const auto found = allocations_.find(static_cast<char*>(p));
  if (found == allocations_.end() || (found->second.device >= 0) != device) return false;
  const Allocation a = found->second;
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  if (device) gpus[size_t(a.device)].allocated -= a.mapped_bytes - 2 * page;
  allocations_.erase(found);
  // Mapped anew: its pages go back to the system, its addresses stay taken.
  mmap(a.mapped, a.mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  return true;
}

const Allocation* Machine::find(const void* p, size_t bytes) const {
  const auto after = allocations_.upper_bound(static_cast<const char*>(p));
  if (after == allocations_.begin()) return nullptr;
  const auto& [begin, a] = *std::prev(after);
  return static_cast<const char*>(p) + bytes <= begin + a.bytes ? &a : nullptr;
}

void Machine::open() {
  if (open_) return;
  open_ = true;
  for (const auto& [p, a] : allocations_)
    if (a.device >= 0) protect(a, PROT_READ | PROT_WRITE);
}

void Machine::close() {
  if (!std::exchange(waited_, false) || !open_ || running_ > 0 || streams.empty()) return;
  const std::thread::id owner = streams.begin()->second->owner;
  for (const auto& [p, q] : streams)
    if (q->owner != owner) return;
  open_ = false;
  for (const auto& [p, a] : allocations_)
    if (a.device >= 0) protect(a, PROT_NONE);
}

}  // namespace emulated
