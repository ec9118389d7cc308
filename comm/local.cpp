// The local transport: ranks are threads of one process, and a message is one copy from the
// sender's buffer to the receiver's, made by whoever posts second. On GPUs the copy is enqueued
// instead, behind the events that say that both buffers are ready. Every wait that it enqueues is
// for work enqueued earlier by somebody, so streams cannot wait for one another in a circle.
//
// Read next: comm.cpp.
#include <algorithm>
#include <deque>
#include <optional>
#include <unordered_map>

#include "comm/gpu_link.h"
#include "comm/transport.h"

namespace duet {
namespace {

// Where posts wait for their other sides.
class Exchange {
 public:
  explicit Exchange(const RunOptions& options) {
    if (options.link.emulated()) links_.emplace(options.link, options.ranks);
  }
  Links* links() { return links_ ? &*links_ : nullptr; }  // null: not emulated

  // The other side of p if it has been posted, else p is left here and null returned.
  Post* match(Post& p) {
    std::lock_guard lock(mutex_);
    std::deque<Post*>& waiting = waiting_[key(p)];
    if (waiting.empty() || waiting.front()->send == p.send) {
      waiting.push_back(&p);
      return nullptr;
    }
    Post* other = waiting.front();
    DUET_CHECK(other->bytes == p.bytes, p.text(), ": this side expects ", p.bytes,
        " bytes, the other ", other->bytes);
    DUET_CHECK(
        !other->lane == !p.lane, p.text(), ": one side is in a GPU's memory, the other is not");
    waiting.pop_front();
    if (waiting.empty()) waiting_.erase(key(p));
    return other;
  }

  // Takes p back; false if it has been matched.
  bool remove(Post& p) {
    std::lock_guard lock(mutex_);
    const auto entry = waiting_.find(key(p));
    if (entry == waiting_.end()) return false;
    const auto at = std::find(entry->second.begin(), entry->second.end(), &p);
    if (at == entry->second.end()) return false;
    entry->second.erase(at);
    if (entry->second.empty()) waiting_.erase(entry);
    return true;
  }

 private:
  static uint64_t key(const Post& p) {
    const int source = p.send ? p.transport.rank() : p.peer,
              target = p.send ? p.peer : p.transport.rank();
    return uint64_t(source) << 43 | uint64_t(target) << kTagBits | p.tag;
  }
  std::mutex mutex_;
  // all of one entry are sends, or all are receives
  std::unordered_map<uint64_t, std::deque<Post*>> waiting_;
  std::optional<Links> links_;
};

class LocalTransport final : public Transport {
 public:
  LocalTransport(int rank, const RunOptions& options, std::shared_ptr<Exchange> exchange)
      : Transport(rank, options.ranks, options), exchange_(std::move(exchange)) {}

  void post(Post& p) override {
    Post* other = exchange_->match(p);
    p.posted = true;
    if (!other) return;
    Post& send = p.send ? p : *other;
    Post& recv = p.send ? *other : p;
    if (p.lane) {
      enqueue_copy(send, recv, *p.lane);
    } else {
      if (Links* links = exchange_->links()) {
        const Time now = std::chrono::steady_clock::now();
        p.arrival = other->arrival =
            links->send(send.transport.rank(), recv.transport.rank(), p.bytes, now);
      }
      if (p.bytes > 0) memcpy(recv.data, send.data, size_t(p.bytes));
    }
    static_cast<LocalTransport&>(other->transport).finish(*other);
    finish(p);
  }

  void cancel(Post& p) override {
    if (exchange_->remove(p)) return;
    std::unique_lock lock(mutex_);
    cv_.wait(lock, [&] { return p.done; });  // matched: the other side is copying
  }

  bool moves_gpu_memory() const override { return true; }

 private:
  void finish(Post& p) {
    std::lock_guard lock(mutex_);
    complete(p);
  }
  static void enqueue_copy(Post& send, Post& recv, Stream& lane) {
    send.copied = recv.copied = lane.device().make_event();
    lane.wait(*send.ready);
    lane.wait(*recv.ready);
    if (const Transport& from = send.transport, &to = recv.transport; send.gpu_arrival) {
      const LinkModel& model = from.link_model();
      launch<LinkBook>(lane, 1,
          {.x = from.gpu_link->out(),
              .y = to.gpu_link->in(),
              .sent = send.gpu_arrival,
              .received = recv.gpu_arrival,
              .duration = uint64_t(model.duration(from.rank(), to.rank(), send.bytes).count()),
              .latency = uint64_t(model.delay().count())});
    }
    lane.copy(recv.data, send.data, size_t(send.bytes));
    lane.record(*send.copied);
  }

  std::shared_ptr<Exchange> exchange_;
};

}  // namespace

std::vector<std::unique_ptr<Transport>> make_local_ranks(const RunOptions& options) {
  auto exchange = std::make_shared<Exchange>(options);
  std::vector<std::unique_ptr<Transport>> transports;
  for (int r = 0; r < options.ranks; r++)
    transports.push_back(std::make_unique<LocalTransport>(r, options, exchange));
  return transports;
}

}  // namespace duet
