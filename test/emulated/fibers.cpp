// Kernels. A thread of a block is a fiber; the fibers of a block run on one host thread, warp by
// warp, and within a warp a lane runs alone until it meets the others: in a shuffle, a vote, a
// __syncwarp, a __syncthreads, or at the end. There the next lane goes on, and after the last one
// the block sees whether all have come to the same place. A lane that leaves early, or meets
// elsewhere than the rest, is an error where a GPU would hang or be wrong. Blocks and lanes run in
// ascending order, or all in descending order, so that what a lane reads from another without a
// meeting between them is seen in one of the two worlds. Not emulated: the memory model (every
// meeting orders memory here), warps that run at once, masks other than of the whole warp.
//
// A fiber is made once, with makecontext, and then entered and left by the compiler's own setjmp
// and longjmp, which only change stacks.
#include <sys/mman.h>
#include <ucontext.h>

#include "test/emulated/machine.h"
#include "test/emulated/ptx.h"

namespace emulated {
namespace {

constexpr size_t kStack = 256 << 10;
constexpr unsigned kMostThreads = 1024;
const char* const kPlaces[] = {"nowhere", "a shuffle", "__syncwarp", "__syncthreads", "the end"};

struct Copy {  // to shared memory: of `size` bytes the first `bytes`, the others zero
  void* to;
  const void* from;
  int bytes, size;
  void run() const {
    if (bytes == 16) {
      memcpy(to, from, 16);
    } else {
      memset(to, 0, size_t(size));
      memcpy(to, from, size_t(bytes));
    }
  }
};
struct Fiber {
  void* point[5];
  At at;
  size_t size;  // of the value it brings
  int met;      // meetings so far
  std::vector<Copy> copies;
  size_t copied;                // of these
  std::vector<size_t> batches;  // where among them batches end
};

class Block {
 public:
  ~Block() { drop(); }
  static Block& of_thread() {
    static thread_local Block block;
    return block;
  }
  std::string run(unsigned threads, bool descending, const std::function<void()>& thread);
  // Each block finds it poisoned.
  char* shared(int bytes) {
    if (shared_.empty()) shared_.resize(kMostShared / sizeof shared_[0]);
    memset(shared_.data(), kPoison, size_t(bytes));
    return reinterpret_cast<char*>(shared_.data());
  }
  Met meet(At where, unsigned mask, const void* value, size_t size);
  void misuse(const char* what) { misuse_ = what; }
  Fiber& running() { return fibers_[current_]; }
  void copy(const Copy& copy);
  void await(size_t under_way);

 private:
  struct Warp {
    Slot slots[2][kWarp];  // a lane may bring its next value while others still read this one's
    At at;
  };
  static void enter() { of_thread().live(); }
  void live();
  void make(unsigned threads);
  void drop();
  __attribute__((noinline)) void first_time(const ucontext_t& context);
  __attribute__((noinline)) void leave();
  [[noreturn]] __attribute__((noinline)) void next_lane();
  __attribute__((noinline)) void round(unsigned warp);
  std::string differ(unsigned warp) const;
  unsigned lanes(unsigned warp) const { return std::min(threads_ - warp * kWarp, 32u); }

  char* stacks_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  const std::function<void()>* thread_ = nullptr;
  unsigned threads_ = 0, warp_ = 0, turn_ = 0, current_ = 0;
  bool descending_ = false;
  const char* misuse_ = nullptr;
  struct alignas(128) Line {
    char bytes[128];
  };
  std::vector<Line> shared_;
  void* scheduler_[5];
};

// What a fiber does all its life: a kernel's thread, again and again.
void Block::live() {
  for (;;) {
    leave();
    (*thread_)();
    if (running().copied < running().copies.size())
      misuse_ = "copies to shared memory that nobody waited for";
    fibers_[current_].at = At::the_end;
  }
}

void Block::make(unsigned threads) {
  if (!stacks_)
    stacks_ = static_cast<char*>(mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  fibers_.reserve(kMostThreads);
  warps_.resize(kMostThreads / kWarp);
  while (fibers_.size() < threads) {
    current_ = unsigned(fibers_.size());
    fibers_.emplace_back();
    ucontext_t context;
    getcontext(&context);
    context.uc_stack = {.ss_sp = stacks_ + current_ * kStack, .ss_flags = 0, .ss_size = kStack};
    context.uc_link = nullptr;
    makecontext(&context, &Block::enter, 0);
    turn_ = kWarp;  // its first leave comes back here
    warp_ = current_ / kWarp;
    threads_ = current_ + 1;
    first_time(context);
  }
}

void Block::drop() {
  if (stacks_) munmap(stacks_, kStack * kMostThreads);
  stacks_ = nullptr;
  fibers_.clear();
}

void Block::first_time(const ucontext_t& context) {
  if (__builtin_setjmp(scheduler_) == 0) setcontext(&context);
}

// The running lane stops here until its turn comes again.
void Block::leave() {
  if (__builtin_setjmp(fibers_[current_].point) == 0) next_lane();
}

void Block::next_lane() {
  const unsigned n = lanes(warp_);
  if (turn_ >= n) __builtin_longjmp(scheduler_, 1);
  current_ = warp_ * kWarp + (descending_ ? n - 1 - turn_ : turn_);
  turn_++;
  threadIdx = {current_ % blockDim.x, current_ / blockDim.x % blockDim.y,
      current_ / (blockDim.x * blockDim.y)};
  __builtin_longjmp(fibers_[current_].point, 1);
}

// Each lane of a warp goes on to where it meets the others next.
void Block::round(unsigned warp) {
  warp_ = warp;
  turn_ = 0;
  if (__builtin_setjmp(scheduler_) == 0) next_lane();
}

Met Block::meet(At where, unsigned mask, const void* value, size_t size) {
  Fiber& f = fibers_[current_];
  Warp& w = warps_[warp_];
  const unsigned lane = current_ % kWarp, n = lanes(warp_);
  if (mask != ~0u && mask != (n < 32 ? (1u << n) - 1 : ~0u)) misuse_ = "a mask of part of a warp";
  Slot* slots = w.slots[f.met++ % 2];
  memcpy(slots[lane].bytes, value ? value : "", size);
  f.at = where;
  f.size = size;
  leave();
  return {slots, int(lane), int(n)};
}

// A copy happens as late as it may; or, where blocks run in descending order, at once.
void Block::copy(const Copy& copy) {
  if (descending_) copy.run();
  running().copies.push_back(copy);
}

// All but the last `under_way` batches of what the running lane copies.
void Block::await(size_t under_way) {
  Fiber& f = running();
  if (f.batches.size() <= under_way) return;
  const size_t end = f.batches[f.batches.size() - under_way - 1];
  for (; f.copied < end; f.copied++) f.copies[f.copied].run();
  if (f.copied == f.copies.size()) f.copies.clear(), f.batches.clear(), f.copied = 0;
}

std::string Block::differ(unsigned warp) const {
  const Fiber* f = &fibers_[warp * kWarp];
  for (unsigned l = 1; l < lanes(warp); l++)
    if (f[l].at != f[0].at || f[l].size != f[0].size)
      return text("block ", blockIdx.x, ", warp ", warp, ": lanes diverge: lane 0 is at ",
          kPlaces[int(f[0].at)], ", lane ", l, " at ", kPlaces[int(f[l].at)],
          f[l].at == f[0].at ? " of another size" : "");
  return misuse_ ? text("block ", blockIdx.x, ", warp ", warp, ": ", misuse_) : "";
}

std::string Block::run(unsigned threads, bool descending, const std::function<void()>& thread) {
  make(threads);
  threads_ = threads;
  misuse_ = nullptr;
  descending_ = descending;
  thread_ = &thread;
  const unsigned n = (threads + kWarp - 1) / kWarp;
  for (unsigned i = 0; i < threads; i++) {
    fibers_[i].met = 0;
    fibers_[i].copies.clear();
    fibers_[i].copied = 0;
    fibers_[i].batches.clear();
  }
  for (;;) {
    for (unsigned i = 0; i < n; i++) {
      const unsigned w = descending ? n - 1 - i : i;
      do {
        round(w);
        if (const std::string error = differ(w); !error.empty()) return drop(), error;
        warps_[w].at = fibers_[w * kWarp].at;
      } while (warps_[w].at < At::syncthreads);
    }
    for (unsigned w = 1; w < n; w++)
      if (warps_[w].at != warps_[0].at) {
        const std::string error = text("block ", blockIdx.x, ": warps diverge: warp 0 is at ",
            kPlaces[int(warps_[0].at)], ", warp ", w, " at ", kPlaces[int(warps_[w].at)]);
        return drop(), error;
      }
    if (warps_[0].at == At::the_end) return "";
  }
}

}  // namespace

Met meet(At where, unsigned mask, const void* value, size_t size) {
  return Block::of_thread().meet(where, mask, value, size);
}

void misuse(const char* what) { Block::of_thread().misuse(what); }

void copy_async(void* to, const void* from, int bytes, int size) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % uintptr_t(size) != 0)
    misuse("a copy to shared memory is not aligned to its size");
  Block::of_thread().copy({to, from, bytes, size});
}

void end_copies() {
  Fiber& f = Block::of_thread().running();
  f.batches.push_back(f.copies.size());
}

void await_copies(int under_way) { Block::of_thread().await(size_t(under_way)); }

std::string run_kernel(const dim3& grid, const dim3& block, int shared, bool descending,
    const std::function<void()>& thread) {
  gridDim = grid;
  blockDim = block;
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; i++) {
    const unsigned b = unsigned(descending ? blocks - 1 - i : i);
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
    Block::of_thread().shared(shared);
    const std::string error =
        Block::of_thread().run(block.x * block.y * block.z, descending, thread);
    if (!error.empty()) return error;
  }
  return "";
}

}  // namespace emulated

char* dynamic_shared() { return emulated::Block::of_thread().shared(0); }
