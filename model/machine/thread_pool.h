// ThreadPool: the cores of one rank. It runs one loop at a time, cut into shares, for the thread
// that owns the pool.
//
// The calling thread takes part, and workers that come late (asleep, or the system has put
// something else on their core) are not waited for: the loop ends when its shares are done. A
// region of a few microseconds is therefore never much slower than without the pool. Workers spin
// for up to 0.1 ms after a loop, then sleep. Several pools coexist, one per rank. What it is not: a
// task system. There are no futures, no nesting, and no order between shares.
// Read next: device_cpu.cpp.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace duet {

class ThreadPool {
 public:
  // threads >= 1, the calling thread included: threads - 1 workers are started.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;

  int size() const { return int(workers_.size()) + 1; }

  // Calls fn(begin, end) for disjoint shares of 0 .. n-1, of `grain` (>= 1) indices each save the
  // last, on all threads (where there is one thread, in one share); returns when all are done. The
  // first exception that a share throws stops the handing out of shares and is rethrown here. To be
  // called by one thread at a time, and not from within fn.
  template <class Fn> void parallel_for(int64_t n, int64_t grain, const Fn& fn) {
    if (workers_.empty() || n <= grain) {
      if (n > 0) fn(int64_t(0), n);
      return;
    }
    run({n, grain, &fn, [](const void* f, int64_t begin, int64_t end) {
           (*static_cast<const Fn*>(f))(begin, end);
         }});
  }

 private:
  struct Loop {
    int64_t n, grain;
    const void* fn;
    void (*call)(const void* fn, int64_t begin, int64_t end);
  };
  void run(const Loop& loop);
  void work_on_pieces();
  void worker();
  void stop();  // ends the workers

  // state_: how many workers are inside the loop (low 16 bits), kOpen while it may be joined, above
  // them the loop's number.
  static constexpr uint32_t kOpen = 1u << 16, kNumber = 1u << 17, kCount = kOpen - 1;
  // written only while no loop is open and no worker is inside
  Loop loop_ = {};
  alignas(64) std::atomic<uint32_t> state_{0};
  alignas(64) std::atomic<int64_t> next_{0};  // the first index not yet handed out
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // by the one who set failed_
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace duet
