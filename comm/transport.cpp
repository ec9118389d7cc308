// What all transports share: tags and their text, waiting, failing, the order of streams.
// Read next: comm.cpp.
#include "comm/transport.h"

#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <algorithm>

namespace duet {

using Clock = std::chrono::steady_clock;

// --- names ---------------------------------------------------------------------------------------

uint32_t pack(Tag tag) {
  DUET_CHECK(tag.stage >= 0 && tag.stage < Tag::kStages, "tag: expected a stage in 0..",
      Tag::kStages - 1, ", found ", tag.stage);
  DUET_CHECK(tag.microbatch >= 0, "tag: expected a microbatch >= 0, found ", tag.microbatch);
  return uint32_t(tag.kind) << 20 | uint32_t(tag.stage) << 11 | (uint32_t(tag.microbatch) & 2047);
}

std::string action_text(uint32_t tag) {
  return cat(tag >> 11 & 511, "FBW?"[tag >> 20 & 3], tag & 2047);
}

std::string Collective::text() const { return cat(name, " ", number, " of group ", group); }

std::string Side::text() const {
  const std::string action = collective
      ? Collective{collective, tag >> 11 & 2047, tag & 2047, {}}.text()
      : action_text(tag);
  return cat(action, send ? " to be taken by rank " : " from rank ", peer);
}

// --- a rank --------------------------------------------------------------------------------------

RankState::RankState(int rank, int size, const RunOptions& options, int rank_here)
    : rank(rank), size(size), rank_here(rank_here), timeout(options.timeout), link(options.link) {}

// Else a thread sleeps 50 microseconds longer than it asks for.
static void sleep_precisely() {
#ifdef __linux__
  prctl(PR_SET_TIMERSLACK, 1UL);
#endif
}

void RankState::count(int peer, int64_t bytes) {
  (link.same_node(rank, peer) ? traffic.intra : traffic.inter) += bytes;
}

void RankState::wait(const Condition& ended, const std::function<std::string()>& awaited) {
  constexpr double kForever = 1e9;  // what a clock can add
  const auto begin = Clock::now();
  const auto deadline = begin +
      std::chrono::duration_cast<Clock::duration>(
          std::chrono::duration<double>(patient ? kForever : std::min(timeout, kForever)));
  std::unique_lock lock(mutex_);
  for (bool late = false; !ended(); late = Clock::now() >= deadline) {
    if (failure_) std::rethrow_exception(failure_);
    if (late) time_out(awaited());
    if (!progress) {
      changed_.wait_until(lock, deadline);
      continue;
    }
    lock.unlock();
    const bool moved = progress();
    lock.lock();
    if (moved || ended() || Clock::now() - begin < kSpin) continue;
    sleep_precisely();
    changed_.wait_for(lock, kPause);
  }
}

void RankState::set(std::atomic<bool>& flag) {
  std::lock_guard lock(mutex_);
  flag = true;
  changed_.notify_all();
}

// Waking takes about 20 microseconds, so a sleep ends that much early; what is left is spun.
void RankState::sleep_until(uint64_t nanoseconds) {
  const Clock::time_point time{std::chrono::nanoseconds(nanoseconds)};
  if (time <= Clock::now()) return;
  sleep_precisely();
  std::unique_lock lock(mutex_);
  const auto failed = [&] { return failure_ != nullptr; };
  if (changed_.wait_until(lock, time - std::chrono::microseconds(20), failed))
    std::rethrow_exception(failure_);
  lock.unlock();
  while (Clock::now() < time) continue;
}

void RankState::time_out(const std::string& awaited) const {
  throw Error(cat("waited ", timeout, " s for ", awaited, "; it did not come (--comm-timeout)"));
}

void RankState::in_order(Stream& stream, std::function<void()> work) {
  check();
  stream.host([this, work = std::move(work)] {
    try {
      check();
      work();
    } catch (...) {
      fail(std::current_exception());
      throw;
    }
  });
}

void RankState::fail(std::exception_ptr why) {
  std::lock_guard lock(mutex_);
  if (!failure_) failure_ = why;
  changed_.notify_all();
}

bool RankState::failed() {
  std::lock_guard lock(mutex_);
  return failure_ != nullptr;
}

void RankState::check() {
  std::lock_guard lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
}

// --- a message -----------------------------------------------------------------------------------

std::unique_ptr<Event> record(Stream& stream) {
  std::unique_ptr<Event> event = stream.device().make_event();
  stream.record(*event);
  return event;
}

OnGpu::OnGpu(const Side& side, Stream& after)
    : ready(record(after)), device_(after.device()), stream_(side.collective ? &after : nullptr) {}

OnGpu::~OnGpu() {
  if (own_stream_) device_.give_back(std::move(own_stream_));
}

Stream& OnGpu::stream() {
  if (!stream_) stream_ = (own_stream_ = device_.borrow_stream()).get();
  return *stream_;
}

Message::Message(Transport& transport, const Side& side, Stream* after)
    : transport(transport), state(*transport.state), side(side) {
  if (after) gpu.emplace(side, *after);
}

bool Message::done() {
  if (!met) return false;
  const Event* event = landed();
  return !event || event->done();
}

void Message::meet() {
  state.wait([&] { return met.load(); }, [&] { return side.text(); });
}

void Message::wait() {
  meet();
  if (Event* event = landed()) event->synchronize();
}

void Message::land(Stream& stream) {
  if (Event* event = landed()) stream.wait(*event);
}

void Message::wait(Stream& stream) {
  if (!gpu) return state.in_order(stream, [self = shared_from_this()] { self->wait(); });
  meet();
  land(stream);
}

// --- a transport ---------------------------------------------------------------------------------

Guard Transport::unwinding() {
  return {state.get(), [before = std::uncaught_exceptions()](RankState* state) {
            if (std::uncaught_exceptions() > before)
              state->fail(std::make_exception_ptr(Stopped("stopped: the rank failed")));
          }};
}

std::shared_ptr<Message> Transport::begin(const Side& side, Stream* after) {
  state->check();
  const bool on_gpu = after && after->device().is_cuda();
  const std::shared_ptr<Message> message(
      make(side, on_gpu ? after : nullptr).release(), [](Message* m) {
        if (m->posted && !m->met) m->transport.cancel(*m);
        delete m;
      });
  const auto post = [message] { message->transport.post(*message); };
  after && !on_gpu ? state->in_order(*after, post) : post();
  return message;
}

void Transport::exchange(const Collective& c, Stream* stream) {
  DUET_CHECK(c.group < 2048, "a world has at most 2047 groups a rank");
  const uint32_t tag = 1u << 22 | c.group << 11 | c.number;
  std::vector<std::shared_ptr<Message>> sides;
  for (const bool send : {false, true})
    for (const Leg& leg : c.legs)
      sides.push_back(begin(
          {send, c.ranks[size_t(leg.peer)], tag, send ? leg.send : leg.recv, c.name}, stream));
  for (const auto& side : sides) stream ? side->wait(*stream) : side->wait();
}

}  // namespace duet
