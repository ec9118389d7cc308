// The machine behind the emulated libraries: streams with queued work, the scheduler that runs it,
// and memory. All of it is guarded by one lock; work runs without it, on the host thread that
// waits. Read next: machine.cpp, memory.cpp, then runtime.cpp.
#pragma once
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include "test/emulated/cuda_runtime.h"
#include "test/emulated/emulated.h"

namespace emulated {

using Lock = std::unique_lock<std::mutex>;
using Queue = std::shared_ptr<CUstream_st>;

// A place in a stream's order: all of its work up to there.
struct Point {
  Queue queue;
  uint64_t position = 0;
  bool reached() const;
};

struct Op {
  std::function<void()> work;
  std::vector<Point> after = {};
  // Asked under the lock, when all before it is done: may it run? If not, whose progress it needs.
  std::function<bool(std::vector<Queue>& needs)> ready = {};
  bool on_host = false;  // a host function: runs on the driver's thread, as all of them do
};

}  // namespace emulated

struct CUstream_st {
  int device;
  bool follows_default;   // made without cudaStreamNonBlocking
  std::thread::id owner;  // who made it
  uint64_t number;        // in the order in which they were made
  int priority = 0;
  std::deque<emulated::Op> ops = {};
  bool busy = false;  // its first operation, taken from ops, is under way
  uint64_t issued = 0, done = 0;
  int messages = 0;  // of NCCL's, not done
};

struct CUmemPool_st {
  int device;
  std::set<int> reached_by;  // GPUs that were let in
};

struct CUevent_st {
  struct Record {
    emulated::Point point;
    double seconds = 0;
  };
  int device;
  bool timed;
  std::shared_ptr<Record> last = {};
};

namespace emulated {

inline bool Point::reached() const { return !queue || queue->done >= position; }

template <class... Parts> std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

struct Allocation {
  char* mapped;  // with a page that cannot be touched on either side
  size_t mapped_bytes, bytes;
  int device;  // -1: pinned memory of the host
};

struct Gpu {
  Queue default_stream;
  CUmemPool_st pool;
  size_t allocated = 0;
  std::vector<Point> frees = {};  // in the order of streams
  std::string failure;            // for good: no call succeeds any more
};

class Machine {
 public:
  static Machine& get();

  // --- streams; the scheduler (machine.cpp)
  Queue make_stream(int device, bool follows_default);
  void drop_stream(cudaStream_t);
  Queue find(cudaStream_t);  // null: the calling thread's device's; throws cudaError_t
  Point enqueue(Lock&, const Queue&, Op);
  void wait(Lock&, const Point&);   // runs work, and waits for that of others, until it is reached
  bool query(Lock&, const Point&);  // reached? Now and then work is run to get there
  Point now(const Queue& q) const { return {q, q->issued}; }
  std::vector<Point> all_of(int device) const;
  bool coin() { return random() & 1; }
  void fail(int device, const std::string& why);
  void complain(const std::string& text) { held_against.push_back(text); }
  // Before a call that may wait for all of a GPU: for ever, where NCCL's kernels wait in it.
  void whole_gpu(const char* call, int device);
  // Of a kernel that is launched: the first time it is loaded, unless all are when CUDA starts.
  void load(const char* kernel, int device);

  // --- memory (memory.cpp)
  char* allocate(size_t bytes, int device);  // null: no memory
  static void poison(char* p, size_t bytes);
  bool release(void* p, bool device);  // false: not an allocation of that kind
  const Allocation* find(const void* p, size_t bytes = 1) const;  // that holds all of it, or null
  void open();                                                    // device memory can be touched
  void close();  // after a wait: it cannot, where all streams are one host thread's

  std::mutex mutex;
  std::condition_variable changed;
  Options options;
  Counts counts;
  std::vector<std::string> held_against;
  std::vector<Gpu> gpus;
  std::mt19937_64 random;
  std::map<cudaStream_t, Queue> streams;
  std::optional<bool> eager;     // read from the environment at the first call after set()
  std::set<std::string> loaded;  // kernels
  std::map<std::pair<int, const void*>, int> shared;  // bytes that a device's kernel may ask for

 private:
  Machine();
  ~Machine();
  bool may_run(const CUstream_st& q, std::vector<Queue>& needs) const;
  Queue needed(const Queue& q, std::set<const CUstream_st*>& seen);
  Queue any();
  Queue pick(const Queue& target);
  void run_first(Lock&, const Queue&);
  void run_ahead(Lock&);
  void drive();

  std::map<const char*, Allocation> allocations_;  // by where they begin
  std::vector<Queue> dropped_;  // streams that were destroyed, perhaps with work queued
  uint64_t made_ = 0;           // streams
  int running_ = 0;
  bool open_ = true, waited_ = false;
  std::deque<std::pair<Queue, std::function<void()>>> host_work_;
  std::condition_variable host_work_changed_;
  std::thread driver_;
  bool ending_ = false;
};

int operations_under_way(int device);  // of NCCL; the lock is held

inline thread_local int current_device = 0;
inline thread_local bool chose_device = false;

// What every function of the libraries begins with.
class Call {
 public:
  Call() : machine(Machine::get()), lock(machine.mutex) {}
  ~Call() { machine.close(); }
  Machine& machine;
  Lock lock;
};

// Dynamic shared memory: what a block has without asking, and the most that all GPUs that compute
// in bf16 can give.
constexpr int kFreelyShared = 48 << 10, kMostShared = 99 << 10;

// Runs a kernel on the calling thread (fibers.cpp). Returns "" or how it went wrong.
std::string run_kernel(const dim3& grid, const dim3& block, int shared, bool descending,
    const std::function<void()>& thread);

// The bytes that a fresh allocation holds: not a number, in every floating type.
constexpr int kPoison = 0xff;

}  // namespace emulated
