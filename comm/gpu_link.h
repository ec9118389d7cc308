// A rank's emulated link where messages lie in GPU memory. When a GPU's buffers are ready only the
// GPU knows, so it keeps the times itself, on its own clock, with two kernels of a warp each:
//
//   LinkBook   on the lane that copies, once both sides are ready: takes the message's time and
//              notes when it arrives
//   LinkWait   on the stream that waits for the message: stands still until then
//
// No copy waits for a message's arrival, and no stream for one that it was not told to wait for;
// the host waits for nothing.
//
// The model is link.h's but for the gaps: a direction serves messages in the order in which they
// are booked, each direction by itself, and a message arrives when the later of its two is through
// with it. So an all-to-all takes its busiest link's time in whatever order its messages are
// booked.
// Read next: local.cpp, which books, and Comm::wait, which waits.
#pragma once
#include <atomic>
#include <chrono>
#include <thread>

#include "model/base/clock.h"
#include "model/machine/group.h"
#include "model/machine/launch.h"

namespace duet {

// Nanoseconds on the GPU's clock, or on the processor's where it stands in for a GPU.
HD uint64_t clock_ns() {
#if defined(__CUDA_ARCH__)
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
#else
  return uint64_t(nanoseconds_now());
#endif
}

// Sets `word` if it is as expected; returns what it was.
HD uint64_t compare_and_set(uint64_t& word, uint64_t expected, uint64_t value) {
#if defined(__CUDA_ARCH__)
  return atomicCAS(reinterpret_cast<unsigned long long*>(&word), expected, value);
#else
  std::atomic_ref(word).compare_exchange_strong(expected, value);
  return expected;
#endif
}

HD void sleep_ns(uint64_t ns) {
#if defined(__CUDA_ARCH__)
  __nanosleep(ns < 2000 ? unsigned(ns / 2) : 1000);  // which may take twice as long
#else
  std::this_thread::sleep_for(std::chrono::nanoseconds(ns));
#endif
}

// A time is an f64's eight bytes, holding an integer.
HD uint64_t& time_in(const Tensor& t) { return *static_cast<uint64_t*>(t.data); }

// Launched with one row. Tensors are [1, 1].
struct LinkBook {
  static constexpr bool acc_only = true;
  struct Args {
    // the sender's outgoing and the receiver's incoming direction: free from; changed
    Tensor x, y;
    Tensor sent, received;       // out: when the message arrives, for either side
    uint64_t duration, latency;  // nanoseconds
  };
  // Other lanes' kernels may be at the same direction.
  HD static uint64_t take(uint64_t& free, uint64_t now, uint64_t duration) {
    for (uint64_t expected = 0;;) {
      const uint64_t end = (expected > now ? expected : now) + duration,
                     found = compare_and_set(free, expected, end);
      if (found == expected) return end;
      expected = found;
    }
  }
  template <class T, class Group> HD static void row(Group g, int64_t, const Args& a) {
    if (g.lane() != 0) return;
    const uint64_t now = clock_ns();
    const uint64_t out = take(time_in(a.x), now, a.duration),
                   in = take(time_in(a.y), now, a.duration);
    time_in(a.sent) = time_in(a.received) = (out > in ? out : in) + a.latency;
  }
};

// Launched with one row.
struct LinkWait {
  static constexpr bool acc_only = true;
  struct Args {
    Tensor x;  // [1, 1] until when
  };
  template <class T, class Group> HD static void row(Group g, int64_t, const Args& a) {
    const uint64_t until = time_in(a.x);
    for (uint64_t now; g.lane() == 0 && (now = clock_ns()) < until;) sleep_ns(until - now);
  }
};

// What a rank keeps in its GPU's memory; the kernels of whoever copies a message reach both ranks'.
// Belongs to Channels.
class GpuLink {
 public:
  explicit GpuLink(Device& device)
      : times_(device.buffer(2 + kMessages, 1, Dtype::f64, Use::messages)) {
    device.compute().zero(times_->data, size_t(times_->bytes()));
    device.compute().synchronize();
  }
  Tensor out() const { return times_->row_slice(0, 1); }
  Tensor in() const { return times_->row_slice(1, 1); }
  Tensor next_arrival() { return times_->row_slice(2 + next_++ % kMessages, 1); }

 private:
  static constexpr int64_t kMessages = 1 << 16;  // more than pass by while one is under way
  Buf times_;                                    // [2 + kMessages, 1] on the GPU's clock
  int64_t next_ = 0;                             // message
};

}  // namespace duet
