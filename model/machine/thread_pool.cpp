// See thread_pool.h. Its protocol: the loop and the caller's data are handed over by state_ alone:
// the owner writes the loop and opens it (release); a worker joins by counting itself in (acquire),
// which succeeds only while the loop is open; the owner closes it and waits until the last worker
// has counted itself out.
#include "model/machine/thread_pool.h"

#include <algorithm>
#include <utility>

#include "model/base/check.h"

namespace duet {
namespace {

void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int kSpins = 3000;  // of a waiting worker before it sleeps: some 50 to 100 microseconds

}  // namespace

ThreadPool::ThreadPool(int threads) {
  DUET_CHECK(threads >= 1 && threads < int(kCount), "threads: expected 1 to ", kCount - 1,
      ", found ", threads);
  workers_.reserve(size_t(threads));
  try {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this] { worker(); });
  } catch (const std::exception& e) {
    const int started = size();
    stop();
    throw Error(cat("threads: expected to start ", threads, ", found that only ", started,
        " can be: ", e.what()));
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_ = true;
  state_.fetch_add(kNumber);
  state_.notify_all();
  for (std::thread& w : workers_) w.join();
}

void ThreadPool::run(const Loop& loop) {
  loop_ = loop;
  next_.store(0, std::memory_order_relaxed);
  state_.fetch_add(kNumber + kOpen);
  state_.notify_all();
  work_on_pieces();
  state_.fetch_sub(kOpen);
  // What is left is at most one share per worker: wait awake, but let others have the core if it
  // takes long.
  for (int i = 0; (state_.load(std::memory_order_acquire) & kCount) != 0; i++) {
    if (i < kSpins)
      pause_core();
    else
      std::this_thread::yield();
  }
  if (failed_) {
    failed_ = false;
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void ThreadPool::work_on_pieces() {
  const Loop loop = loop_;
  for (;;) {
    const int64_t begin = next_.fetch_add(loop.grain, std::memory_order_relaxed);
    if (begin >= loop.n) return;
    try {
      loop.call(loop.fn, begin, std::min(begin + loop.grain, loop.n));
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
      next_.store(loop.n, std::memory_order_relaxed);
    }
  }
}

void ThreadPool::worker() {
  uint32_t seen = 0;  // the last loop that this worker took part in, or found closed
  for (;;) {
    uint32_t s = state_.load(std::memory_order_acquire);
    for (int i = 0; s / kNumber == seen; i++) {
      if (i < kSpins)
        pause_core();
      else
        state_.wait(s);
      s = state_.load(std::memory_order_acquire);
    }
    if (stop_) return;
    seen = s / kNumber;
    while ((s & kOpen) && s / kNumber == seen && !state_.compare_exchange_weak(s, s + 1)) {}
    if (!(s & kOpen) || s / kNumber != seen) continue;
    work_on_pieces();
    state_.fetch_sub(1);
  }
}

}  // namespace duet
