// What all transports share: tags and their text, waiting, failing. Read next: local.cpp.
#include "comm/transport.h"

#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <chrono>

#include "comm/gpu_link.h"
#include "comm/nccl.h"

namespace duet {

uint32_t pack(Tag tag) {
  DUET_CHECK(
      tag.stage >= 0 && tag.stage < 512, "tag: expected a stage in 0..511, found ", tag.stage);
  DUET_CHECK(tag.microbatch >= 0, "tag: expected a microbatch >= 0, found ", tag.microbatch);
  return uint32_t(tag.kind) << 20 | uint32_t(tag.stage) << 11 | (uint32_t(tag.microbatch) & 2047);
}

std::string action_text(uint32_t tag) {
  return cat(tag >> 11 & 511, "FBW?"[tag >> 20 & 3], tag & 2047);
}

uint32_t pack_collective(uint32_t group, uint32_t number) {
  DUET_CHECK(group < 1024, "a world has at most 1023 groups a rank");
  return 1u << 22 | group << 12 | (number & 4095);
}

std::string Post::text() const {
  const std::string action = collective
      ? cat(collective, " ", tag & 4095, " of group ", tag >> 12 & 1023)
      : action_text(tag);
  return cat(action, send ? " to be taken by rank " : " from rank ", peer);
}

Post::~Post() {
  if (posted && !transport.done(*this)) link ? link->cancel(*this) : transport.cancel(*this);
  if (!staging || !copied) return;
  try {
    copied->synchronize();  // staging serves another message next
  } catch (const std::exception&) {
    // the stream's failure is reported where it is waited for
  }
}

void Post::deliver() {
  if (!staging || send || copied) return;
  copied = lane->device().make_event();
  lane->wait(*ready);
  lane->copy(gpu_data, data, size_t(bytes));
  lane->record(*copied);
}

Transport::Transport(int rank, int size, const RunOptions& options)
    : rank_(rank), size_(size), timeout_(options.timeout), link_(options.link) {}
Transport::~Transport() = default;

void Transport::count(int peer, int64_t bytes) {
  (link_.same_node(rank_, peer) ? traffic.intra : traffic.inter) += bytes;
}

// Waking takes about 20 microseconds, so a sleep ends that much early; what is left is spun.
void Transport::sleep_until_arrival(std::unique_lock<std::mutex>& lock, const Post& p) {
  if (p.arrival <= std::chrono::steady_clock::now()) return;
#ifdef __linux__
  prctl(PR_SET_TIMERSLACK, 1UL);  // else the thread sleeps 50 microseconds longer than it asks for
#endif
  if (cv_.wait_until(
          lock, p.arrival - std::chrono::microseconds(20), [&] { return failure_ != nullptr; }))
    std::rethrow_exception(failure_);
  lock.unlock();
  while (std::chrono::steady_clock::now() < p.arrival) continue;
}

void Transport::wait(Post& p) {
  std::unique_lock lock(mutex_);
  cv_.wait_for(lock, std::chrono::duration<double>(timeout_), [&] { return p.done || failure_; });
  if (p.done && p.arrival != Time()) return sleep_until_arrival(lock, p);
  if (p.done) return;
  if (failure_) std::rethrow_exception(failure_);
  time_out(p.text());
}

void Transport::time_out(const std::string& awaited) const {
  throw Error(cat("waited ", timeout_, " s for ", awaited, "; it did not come (--comm-timeout)"));
}

bool Transport::done(Post& p) {
  std::lock_guard lock(mutex_);
  return p.done && (p.arrival == Time() || p.arrival <= std::chrono::steady_clock::now());
}

void Transport::fail(std::exception_ptr why) {
  std::lock_guard lock(mutex_);
  if (!failure_) failure_ = why;
  cv_.notify_all();
}

bool Transport::failed() {
  std::lock_guard lock(mutex_);
  return failure_ != nullptr;
}

void Transport::check() {
  std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
}

void Transport::complete(Post& p) {
  p.done = true;
  cv_.notify_all();
}

}  // namespace duet
