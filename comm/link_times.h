// When a message arrives over an emulated link (the model: link.h). One rule, on whichever clock
// knows when the message is ready:
//
//   Links     CPU memory, on the host's clock: whoever posts second books the message
//   LinkBook  GPU memory, on the GPU's clock: a kernel of a warp books it on the stream that
//             copies, once both sides are ready, which only the GPU knows
//   LinkWait  another, on the stream that waits for the message: stands still until it arrives
//
// No copy waits for a message's arrival, and no stream for one that it was not told to wait for;
// the host waits for nothing that only the GPU knows.
// Read next: mpi_mpi.cpp.
#pragma once
#include <atomic>
#include <thread>

#include "comm/link.h"
#include "model/base/clock.h"
#include "model/machine/group.h"
#include "model/machine/launch.h"

namespace duet {

// --- the rule; times in nanoseconds --------------------------------------------------------------

// Sets `word` if it is as expected; returns what it was.
HD uint64_t compare_and_set(uint64_t& word, uint64_t expected, uint64_t value) {
#if defined(__CUDA_ARCH__)
  return atomicCAS(reinterpret_cast<unsigned long long*>(&word), expected, value);
#else
  std::atomic_ref(word).compare_exchange_strong(expected, value);
  return expected;
#endif
}

// Takes `duration` of a direction that is free from `free`, others doing so at the same time;
// returns when it is through.
HD uint64_t take(uint64_t& free, uint64_t now, uint64_t duration) {
  for (uint64_t expected = 0;;) {
    const uint64_t end = (expected > now ? expected : now) + duration,
                   found = compare_and_set(free, expected, end);
    if (found == expected) return end;
    expected = found;
  }
}

// Books a message that may leave `now`; returns when it arrives.
HD uint64_t book(uint64_t& out, uint64_t& in, uint64_t now, uint64_t duration, uint64_t latency) {
  if (duration == 0) return now + latency;
  const uint64_t sent = take(out, now, duration), received = take(in, now, duration);
  return (sent > received ? sent : received) + latency;
}

// --- on the host's clock -------------------------------------------------------------------------

// The links of all ranks of a process. Any thread may call it.
class Links {
 public:
  Links(const LinkModel& model, int ranks)
      : model_(model), out_(size_t(ranks)), in_(size_t(ranks)) {}
  uint64_t send(int from, int to, int64_t bytes, uint64_t now) {
    return book(
        out_[size_t(from)], in_[size_t(to)], now, model_.duration(from, to, bytes), model_.delay());
  }

 private:
  const LinkModel model_;
  std::vector<uint64_t> out_, in_;  // [ranks] free from
};

// --- on the GPU's --------------------------------------------------------------------------------

// Of the GPU, or of the host.
HD uint64_t clock_ns() {
#if defined(__CUDA_ARCH__)
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
#else
  return uint64_t(nanoseconds_now());
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
  template <class T, class Group> HD static void row(Group g, int64_t, const Args& a) {
    if (g.lane() != 0) return;
    time_in(a.sent) = time_in(a.received) =
        book(time_in(a.x), time_in(a.y), clock_ns(), a.duration, a.latency);
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
