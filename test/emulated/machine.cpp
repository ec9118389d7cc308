// Streams and the scheduler. See machine.h.
//
// Work waits in its stream until a host thread waits for something, or asks; then that thread runs
// it. An operation may run when it is the first of its stream, all points that it comes after are
// reached, and nothing else holds it (a message without its other side). Which of those that may
// run is next, the order says: lazy takes only what leads to the point awaited, so that whatever
// nobody waits for comes as late as it can; eager takes any; random tosses a coin between the two.
// With one host thread a run is a function of the seed.
#include "test/emulated/machine.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>

namespace emulated {
namespace {

[[noreturn]] void refuse(const char* name, const char* found, const char* allowed) {
  fprintf(stderr, "%s: found '%s', allowed: %s\n", name, found, allowed);
  exit(2);
}

uint64_t number(const char* name, uint64_t otherwise, uint64_t most) {
  const char* text = getenv(name);
  if (!text) return otherwise;
  uint64_t value = 0;
  const char* end = text + strlen(text);
  const auto [rest, error] = std::from_chars(text, end, value);
  if (error != std::errc() || rest != end || value > most)
    refuse(name, text, ("0 to " + std::to_string(most)).c_str());
  return value;
}

Options from_environment() {
  const char* found = getenv("DUET_EMULATED_ORDER");
  const std::string order = found ? found : "random";
  if (order != "lazy" && order != "eager" && order != "random")
    refuse("DUET_EMULATED_ORDER", found, "lazy, eager, random");
  return {.gpus = int(number("DUET_EMULATED_GPUS", 1, 64)),
      .seed = number("DUET_EMULATED_SEED", 1, UINT64_MAX),
      .order = order == "lazy" ? Order::lazy
          : order == "eager"   ? Order::eager
                               : Order::random};
}

std::vector<Gpu> make_gpus(int n) {
  std::vector<Gpu> gpus(size_t(n > 0 ? n : 0));
  for (size_t g = 0; g < gpus.size(); g++)
    gpus[g] = {std::make_shared<CUstream_st>(CUstream_st{int(g), false, {}, g}), {int(g), {}}};
  return gpus;
}

}  // namespace

Machine& Machine::get() {
  static Machine all;
  return all;
}

Machine::Machine()
    : options(from_environment()), gpus(make_gpus(options.gpus)), random(options.seed),
      driver_([this] { drive(); }) {}

Machine::~Machine() {
  {
    Lock lock(mutex);
    ending_ = true;
  }
  host_work_changed_.notify_all();
  driver_.join();
  for (const std::string& t : held_against) fprintf(stderr, "emulated GPU: %s\n", t.c_str());
}

Options options() { return Call().machine.options; }

void set(const Options& o) {
  Call c;
  if (o.gpus != c.machine.options.gpus) c.machine.gpus = make_gpus(o.gpus);
  c.machine.options = o;
  c.machine.random.seed(o.seed);
  c.machine.eager.reset();
  c.machine.loaded.clear();
}

Counts counts() { return Call().machine.counts; }

Counts operator-(const Counts& a, const Counts& b) {
  return {a.launches - b.launches, a.gemms - b.gemms, a.unaligned_gemms - b.unaligned_gemms,
      a.messages - b.messages, a.copies - b.copies, a.fills - b.fills,
      a.copied_bytes - b.copied_bytes, a.synchronisations - b.synchronisations,
      a.queries - b.queries, a.host_functions - b.host_functions, a.streams - b.streams,
      a.timed_events - b.timed_events, a.allocations - b.allocations};
}

std::vector<std::string> complaints() { return std::exchange(Call().machine.held_against, {}); }

// --- streams -------------------------------------------------------------------------------------

Queue Machine::make_stream(int device, bool follows_default) {
  const auto q = std::make_shared<CUstream_st>(
      CUstream_st{device, follows_default, std::this_thread::get_id(), 1000 + made_++});
  streams[q.get()] = q;
  return q;
}

Queue Machine::find(cudaStream_t stream) {
  if (!stream) return gpus[size_t(current_device)].default_stream;
  const auto found = streams.find(stream);
  if (found == streams.end()) throw cudaErrorInvalidResourceHandle;
  return found->second;
}

// Its work goes on.
void Machine::drop_stream(cudaStream_t stream) {
  std::erase_if(dropped_, [](const Queue& q) { return q->ops.empty() && !q->busy; });
  dropped_.push_back(find(stream));
  streams.erase(stream);
}

std::vector<Point> Machine::all_of(int device) const {
  std::vector<Point> all{now(gpus[size_t(device)].default_stream)};
  for (const auto& [p, q] : streams)
    if (q->device == device) all.push_back(now(q));
  for (const Queue& q : dropped_)
    if (q->device == device) all.push_back(now(q));
  return all;
}

Point Machine::enqueue(Lock& lock, const Queue& q, Op op) {
  Queue& plain = gpus[size_t(q->device)].default_stream;
  if (q == plain) {
    for (const auto& [p, other] : streams)
      if (other->device == q->device && other->follows_default) op.after.push_back(now(other));
  } else if (q->follows_default) {
    op.after.push_back(now(plain));
  }
  q->ops.push_back(std::move(op));
  q->issued++;
  changed.notify_all();
  const Point point = now(q);
  run_ahead(lock);
  return point;
}

// --- what may run --------------------------------------------------------------------------------

bool Machine::may_run(const CUstream_st& q, std::vector<Queue>& needs) const {
  if (q.busy || q.ops.empty()) return false;
  for (const Point& p : q.ops.front().after)
    if (!p.reached()) needs.push_back(p.queue);
  return needs.empty() && (!q.ops.front().ready || q.ops.front().ready(needs));
}

// A stream whose first operation may run and leads on towards the next one of q.
Queue Machine::needed(const Queue& q, std::set<const CUstream_st*>& seen) {
  if (!seen.insert(q.get()).second) return nullptr;
  std::vector<Queue> needs;
  if (may_run(*q, needs)) return q;
  std::shuffle(needs.begin(), needs.end(), random);
  for (const Queue& n : needs)
    if (Queue found = needed(n, seen)) return found;
  return nullptr;
}

Queue Machine::any() {
  std::vector<Queue> may;
  std::vector<Queue> needs;
  const auto look = [&](const Queue& q) {
    needs.clear();
    if (may_run(*q, needs)) may.push_back(q);
  };
  for (const auto& [p, q] : streams) look(q);
  for (const Queue& q : dropped_) look(q);
  for (const Gpu& g : gpus) look(g.default_stream);
  // The map is in the order of addresses, which differ from run to run.
  std::sort(
      may.begin(), may.end(), [](const Queue& a, const Queue& b) { return a->number < b->number; });
  return may.empty() ? nullptr : may[random() % may.size()];
}

Queue Machine::pick(const Queue& target) {
  std::set<const CUstream_st*> seen;
  const bool wide = options.order == Order::eager || (options.order == Order::random && coin());
  if (Queue q = wide ? any() : nullptr) return q;
  return needed(target, seen);
}

// --- running it ----------------------------------------------------------------------------------

void Machine::run_first(Lock& lock, const Queue& q) {
  Op op = std::move(q->ops.front());
  q->ops.pop_front();
  q->busy = true;
  const bool dead = !gpus[size_t(q->device)].failure.empty();
  if (op.on_host && !dead) {
    host_work_.push_back({q, std::move(op.work)});
    host_work_changed_.notify_all();
    return;
  }
  open();
  running_++;
  lock.unlock();
  if (!dead) op.work();
  op = {};
  lock.lock();
  running_--;
  q->busy = false;
  q->done++;
  changed.notify_all();
}

// At a call that enqueues: the GPU may be fast.
void Machine::run_ahead(Lock& lock) {
  while (options.order == Order::eager || (options.order == Order::random && random() % 4 == 0)) {
    const Queue q = any();
    if (!q) return;
    run_first(lock, q);
  }
}

void Machine::wait(Lock& lock, const Point& p) {
  while (!p.reached()) {
    if (const Queue q = pick(p.queue))
      run_first(lock, q);
    else
      changed.wait_for(lock, std::chrono::milliseconds(50));
  }
  waited_ = options.order == Order::lazy || random() % 8 == 0;  // it costs two calls an allocation
}

// Where somebody only asks, the answer is of now; but time passes, and the GPU gets on with it.
bool Machine::query(Lock& lock, const Point& p) {
  if (p.reached()) return true;
  if (options.order == Order::eager || coin())
    while (!p.reached()) {
      const Queue q = pick(p.queue);
      if (!q) break;
      run_first(lock, q);
    }
  return false;
}

void Machine::drive() {
  Lock lock(mutex);
  for (;;) {
    host_work_changed_.wait(lock, [&] { return ending_ || !host_work_.empty(); });
    if (ending_) return;
    auto [q, work] = std::move(host_work_.front());
    host_work_.pop_front();
    lock.unlock();
    work();
    work = {};
    lock.lock();
    q->busy = false;
    q->done++;
    changed.notify_all();
  }
}

void Machine::whole_gpu(const char* call, int device) {
  if (operations_under_way(device) > 0)
    complain(text(call, " with NCCL's operations under way on the GPU, for which it may wait"));
}

void Machine::load(const char* kernel, int device) {
  if (!loaded.insert(kernel).second || *eager) return;
  whole_gpu(kernel, device);
}

void Machine::fail(int device, const std::string& why) {
  complain(why);
  if (gpus[size_t(device)].failure.empty()) gpus[size_t(device)].failure = why;
}

}  // namespace emulated
