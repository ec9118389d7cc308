// The local transport: ranks are threads of one process, and a message is one copy from the
// sender's memory to the receiver's, made by whoever posts second. On GPUs the copy is enqueued
// instead, behind the events that say that both memories are ready. Every wait that it enqueues is
// for work enqueued earlier by somebody, so streams cannot wait for one another in a circle.
//
// Over an emulated link (link.h) a message is met and copied as ever, and done when it arrives.
// Read next: link.h.
#include <map>
#include <thread>

#include "comm/link_times.h"
#include "comm/transport.h"

namespace duet {
namespace {

struct LocalMessage : Message {
  using Message::Message;
  // Over an emulated link, in host memory: when it arrives; set before it is met.
  uint64_t arrival = 0;
  // In GPU memory: this side's direction and arrival, for LinkBook, [1, 1]; and, for the host,
  // which knows events alone, one of the arrival.
  Tensor direction, gpu_arrival;
  std::unique_ptr<Event> arrived;

  uint64_t key() const {
    const int source = side.send ? state.rank : side.peer,
              target = side.send ? side.peer : state.rank;
    return uint64_t(source) << 43 | uint64_t(target) << kTagBits | side.tag;
  }
  bool done() override { return Message::done() && arrival <= clock_ns(); }
  void wait() override {
    Message::wait();
    state.sleep_until(arrival);
  }
  void land(Stream& stream) override {
    stream.wait(*gpu->copied);
    if (gpu_arrival) launch<LinkWait>(stream, 1, {.x = gpu_arrival});
  }
  Event* landed() override {
    if (!gpu_arrival) return Message::landed();
    if (!arrived) {
      land(gpu->stream());
      arrived = record(gpu->stream());
    }
    return arrived.get();
  }
};

// What the ranks of a process share: where sides wait for their other sides, and the links.
class Switchboard {
 public:
  explicit Switchboard(const RunOptions& options) : links(options.link, options.ranks) {}
  Links links;

  // The other side of m if it has been posted, else m is left here and null returned.
  LocalMessage* match(LocalMessage& m) {
    std::lock_guard lock(mutex_);
    const auto first = waiting_.lower_bound(m.key());
    if (first == waiting_.end() || first->first != m.key() ||
        first->second->side.send == m.side.send) {
      waiting_.emplace(m.key(), &m);
      return nullptr;
    }
    LocalMessage* other = first->second;
    const size_t mine = m.side.memory.size(), theirs = other->side.memory.size();
    DUET_CHECK(
        mine == theirs, m.side.text(), ": this side expects ", mine, " bytes, the other ", theirs);
    DUET_CHECK(
        !other->gpu == !m.gpu, m.side.text(), ": one side is in a GPU's memory, the other is not");
    waiting_.erase(first);
    return other;
  }

  bool remove(LocalMessage& m) {  // takes m back; false if it has been matched
    std::lock_guard lock(mutex_);
    return std::erase_if(waiting_, [&](const auto& entry) { return entry.second == &m; }) > 0;
  }

 private:
  std::mutex mutex_;
  // by key, in the order of posting; all of one key are sends, or all are receives
  std::multimap<uint64_t, LocalMessage*> waiting_;
};

class LocalTransport final : public Transport {
 public:
  LocalTransport(int rank, const RunOptions& options, std::shared_ptr<Switchboard> switchboard)
      : Transport(std::make_shared<RankState>(rank, options.ranks, options, rank)),
        switchboard_(std::move(switchboard)) {}

  std::unique_ptr<Message> make(const Side& side, Stream* after) override {
    auto m = std::make_unique<LocalMessage>(*this, side, after);
    if (!after || !state->link.emulated()) return m;
    const std::shared_ptr<GpuLink> link = link_.lock();
    DUET_CHECK(
        link, "a message in GPU memory over an emulated link: expected Channels, made before");
    m->direction = side.send ? link->out() : link->in();
    m->gpu_arrival = link->next_arrival();
    return m;
  }

  void post(Message& posted) override {
    auto& m = static_cast<LocalMessage&>(posted);
    LocalMessage* other = switchboard_->match(m);
    m.posted = true;
    if (!other) return;
    LocalMessage &send = m.side.send ? m : *other, &recv = m.side.send ? *other : m;
    m.gpu ? enqueue_copy(send, recv, m.gpu->stream()) : copy(send, recv);
    other->state.set(other->met);
    state->set(m.met);
  }

  void cancel(Message& m) override {
    if (switchboard_->remove(static_cast<LocalMessage&>(m))) return;
    while (!m.met) std::this_thread::yield();  // matched: the other side is copying
  }

  Guard open(Comm&, Device& device, const Pairs&) override {
    if (!state->link.emulated() || !device.is_cuda()) return nullptr;
    const auto link = std::make_shared<GpuLink>(device);
    link_ = link;
    return link;
  }

 private:
  void copy(LocalMessage& send, LocalMessage& recv) {
    const Bytes from = send.side.memory;
    if (state->link.emulated())
      send.arrival = recv.arrival = switchboard_->links.send(
          send.state.rank, recv.state.rank, int64_t(from.size()), clock_ns());
    if (!from.empty()) memcpy(recv.side.memory.data(), from.data(), from.size());
  }

  void enqueue_copy(LocalMessage& send, LocalMessage& recv, Stream& stream) {
    const Bytes from = send.side.memory;
    stream.wait(*send.gpu->ready);
    stream.wait(*recv.gpu->ready);
    if (const LinkModel& link = state->link; link.emulated())
      launch<LinkBook>(stream, 1,
          {send.direction, recv.direction, send.gpu_arrival, recv.gpu_arrival,
              link.duration(send.state.rank, recv.state.rank, int64_t(from.size())), link.delay()});
    stream.copy(recv.side.memory.data(), from.data(), from.size());
    send.gpu->copied = recv.gpu->copied = record(stream);
  }

  const std::shared_ptr<Switchboard> switchboard_;
  std::weak_ptr<GpuLink> link_;  // while there are Channels
};

}  // namespace

std::vector<std::unique_ptr<Transport>> make_local_ranks(const RunOptions& options) {
  const auto switchboard = std::make_shared<Switchboard>(options);
  std::vector<std::unique_ptr<Transport>> ranks;
  for (int r = 0; r < options.ranks; r++)
    ranks.push_back(with_nccl(std::make_unique<LocalTransport>(r, options, switchboard), options));
  return ranks;
}

}  // namespace duet
