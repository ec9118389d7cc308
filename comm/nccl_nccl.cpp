// NCCL: how messages in GPU memory go from GPU to GPU. A transport on top of the one that started
// the ranks, threads or MPI, which carries host values, barriers and what it takes to match tags.
//
// How it keeps to tags, which NCCL does not know, why each direction between two ranks, an edge,
// has a communicator and a stream of its own, and how it fails: README.md. A receive that waits
// while the sender's next message is one that nobody has asked for is an error that names both. Two
// ranks that disagree about a collective would hang in it, or take one thing for another, so each
// first tells the others on the host what it is about to do.
//
// Threads: the rank's own; another looks at all communicators (communicators.h).
// Read next: nccl_nonccl.cpp.
#include <algorithm>
#include <map>
#include <set>

#include "comm/communicators.h"

namespace duet {
namespace {

// all edges of a rank must fit on its GPU at once, beside computation
constexpr int kEdgeBlocks = 4, kGroupBlocks = 16;

template <class T> Bytes bytes_of(T& value) { return std::as_writable_bytes(std::span(&value, 1)); }

struct Edge;

struct NcclMessage : Message {
  NcclMessage(Transport& transport, const Side& side, Stream* after, Edge& edge)
      : Message(transport, side, after), edge(edge) {}
  bool done() override;
  void wait() override {
    meet();
    state.wait([&] { return gpu->copied->done(); }, [&] { return side.text(); });
    state.check();  // an aborted message is done, too
  }
  void meet() override;
  Edge& edge;
};

struct Header {
  uint32_t tag = 0;
  int64_t bytes = 0;
};

struct Announced {
  Header header;
  std::shared_ptr<Message> message;  // of the header, on the transport underneath
};

struct Edge {  // one direction between this rank and another
  bool send;
  int peer;
  ncclComm_t comm;
  std::unique_ptr<Stream> stream;
  // sending: headers that the peer has not taken yet; receiving: the header of the next message,
  // being received while any are expected
  std::list<Announced> announced = {};
  std::list<NcclMessage*> expected = {};  // receives for which NCCL has not been called

  const Header* next() const {  // receiving: what was announced, if anything
    const bool known = !announced.empty() && announced.front().message->met;
    return known ? &announced.front().header : nullptr;
  }
  NcclMessage* claimant() const {  // the receive that it names, if any
    const Header* header = next();
    for (NcclMessage* m : expected)
      if (header && m->side.tag == header->tag) return m;
    return nullptr;
  }
};

void NcclMessage::meet() {
  const auto ended = [&] {
    const Header* next = edge.send || met ? nullptr : edge.next();
    DUET_CHECK(!next || edge.claimant(), side.text(), ": the next message from there is ",
        action_text(next->tag),
        ", which this rank has not asked for; they come in the order they are sent");
    return met.load();
  };
  state.wait(ended, [&] { return side.text(); });
}

bool NcclMessage::done() {
  state.check();
  if (state.progress) state.progress();
  return Message::done();
}

class NcclTransport final : public Transport {
 public:
  explicit NcclTransport(std::unique_ptr<Transport> under)
      : Transport(under->state), under_(std::move(under)) {}

  std::unique_ptr<Message> make(const Side& side, Stream* after) override {
    if (!after) return under_->make(side, nullptr);
    check_open();
    const auto found = edges_.find({side.send, side.peer});
    DUET_CHECK(
        found != edges_.end(), side.text(), ": expected its pair of ranks among those of Channels");
    return std::make_unique<NcclMessage>(*this, side, after, found->second);
  }

  void post(Message& posted) override {
    auto& m = static_cast<NcclMessage&>(posted);
    m.posted = true;
    if (m.side.send) {
      announce(m.edge, {m.side.tag, int64_t(m.side.memory.size())});
      launch(m);
    } else {
      m.edge.expected.push_back(&m);
    }
    advance();
  }

  void cancel(Message& m) override {
    static_cast<NcclMessage&>(m).edge.expected.remove(static_cast<NcclMessage*>(&m));
  }

  void exchange(const Collective& c, Stream* stream) override {
    if (!stream || !stream->device().is_cuda()) return Transport::exchange(c, stream);
    if (c.legs.empty()) return;
    check_open();
    const auto group = groups_.find(c.group);
    DUET_CHECK(group != groups_.end(), c.text(),
        ": expected a group made after its Channels, to carry tensors");
    compare(c);
    communicators_->launch(*stream, group->second, c.legs, c.text());
  }

  Guard open(Comm& world, Device& device, const Pairs& pairs) override {
    DUET_CHECK(!communicators_, "expected one Channels at a time");
    if (!device.is_cuda() || world.size() == 1) return nullptr;
    communicators_ = std::make_unique<Communicators>(*state, device);
    Guard opened(nullptr, [this](void*) { close(); });
    const Guard failing = unwinding();
    refuse_shared_gpus(world);
    state->progress = [this, mine = std::this_thread::get_id()] {
      return std::this_thread::get_id() == mine && advance();
    };
    connect(world, device, pairs);
    return opened;
  }

  void add_group(Comm& group, uint32_t id) override {
    if (!communicators_ || group.size() == 1) return;
    const ncclUniqueId made = group.rank() == 0 ? communicators_->make_id() : ncclUniqueId{};
    groups_[id] = communicators_->make(
        group.gather_values(made)[0], {group.size(), group.rank(), true, true, kGroupBlocks});
  }

 private:
  void check_open() const {
    DUET_CHECK(communicators_,
        "a message in GPU memory under --transport nccl: expected Channels, made before");
  }

  void refuse_shared_gpus(Comm& world) {
    const std::vector<std::string> gpus = world.gather(communicators_->gpu_name());
    for (size_t r = 0; r < gpus.size(); r++)
      for (size_t s = 0; s < r; s++)
        require(gpus[r] != gpus[s], "--transport: found nccl with ranks ", s, " and ", r,
            " on one GPU (", gpus[r],
            "), allowed: nccl with at most one rank on each GPU; local, whose ranks share GPUs");
  }

  // All ranks walk through the directions in one order and each takes part in its own, so no two
  // can wait for one another.
  void connect(Comm& world, Device& device, const Pairs& pairs) {
    std::set<std::pair<int, int>> directions;  // source, target
    for (const auto& [a, b] : pairs) {
      DUET_CHECK(a != b && std::min(a, b) >= 0 && std::max(a, b) < world.size(),
          "channels: expected pairs of ranks, found ", a, " and ", b);
      directions.insert({a, b});
      directions.insert({b, a});
    }
    std::vector<ncclUniqueId> made;  // a source makes the id
    for (const auto& [source, target] : directions)
      if (source == world.rank()) made.push_back(communicators_->make_id());
    const std::vector<std::vector<ncclUniqueId>> ids = world.gather_vectors(made);
    std::vector<size_t> used(ids.size());
    for (const auto& [source, target] : directions) {
      const size_t next = used[size_t(source)]++;
      DUET_CHECK(
          next < ids[size_t(source)].size(), "channels: expected the same pairs on all ranks");
      const bool send = source == world.rank();
      if (!send && target != world.rank()) continue;
      const int peer = send ? target : source;
      ncclComm_t comm = communicators_->make(
          ids[size_t(source)][next], {2, send ? 0 : 1, send, !send, kEdgeBlocks});
      edges_.emplace(std::pair(send, peer), Edge{send, peer, comm, device.make_stream()});
    }
  }

  void announce(Edge& edge, const Header& header) {
    Announced& a = edge.announced.emplace_back(Announced{header, nullptr});
    a.message = under_->begin({edge.send, edge.peer, kHeaderTag, bytes_of(a.header)}, nullptr);
  }

  void launch(NcclMessage& m) {
    const Edge& edge = m.edge;
    const Leg leg =
        edge.send ? Leg{.peer = 1, .send = m.side.memory} : Leg{.peer = 0, .recv = m.side.memory};
    edge.stream->wait(*m.gpu->ready);
    m.gpu->copied = communicators_->launch(*edge.stream, edge.comm, {leg}, m.side.text());
    state->set(m.met);
  }

  // For the next message of a receiving edge; false if it cannot be yet.
  bool advance(Edge& edge) {
    if (edge.expected.empty()) return false;
    if (edge.announced.empty()) announce(edge, {});
    NcclMessage* m = edge.claimant();
    if (!m) return false;
    const int64_t mine = int64_t(m->side.memory.size()), theirs = edge.next()->bytes;
    DUET_CHECK(
        mine == theirs, m->side.text(), ": this side expects ", mine, " bytes, the other ", theirs);
    edge.expected.remove(m);
    edge.announced.clear();
    launch(*m);
    return true;
  }

  bool advance() {  // calls NCCL for what it can be called for by now
    bool moved = false;
    for (auto& [key, edge] : edges_) {
      if (edge.send) edge.announced.remove_if([](const auto& a) { return a.message->met.load(); });
      while (!edge.send && advance(edge)) moved = true;
    }
    return moved;
  }

  // Each rank tells the others on the host what it is about to do.
  void compare(const Collective& c) {
    struct Claim {
      char name[24];
      int64_t bytes;
    };
    const size_t n = c.legs.size();
    std::vector<Claim> mine(n), theirs(n);
    Collective claims = c;
    for (size_t i = 0; i < n; i++) {
      snprintf(mine[i].name, sizeof mine[i].name, "%s", c.name);
      mine[i].bytes = int64_t(c.legs[i].send.size());
      claims.legs[i] = {c.legs[i].peer, bytes_of(mine[i]), bytes_of(theirs[i])};
      state->count(c.ranks[size_t(c.legs[i].peer)], sizeof(Claim));
    }
    Transport::exchange(claims, nullptr);
    for (size_t i = 0; i < n; i++) {
      const int64_t expected = int64_t(c.legs[i].recv.size());
      DUET_CHECK(strcmp(theirs[i].name, c.name) == 0 && theirs[i].bytes == expected, c.text(),
          ": this side expects ", expected, " bytes from rank ", c.ranks[size_t(c.legs[i].peer)],
          ", which sends ", theirs[i].bytes, " in its ", theirs[i].name);
    }
  }

  // Waits until all messages are done, unless the rank has failed.
  void close() {
    const auto taken = [&] {
      return std::all_of(edges_.begin(), edges_.end(),
          [](const auto& e) { return !e.second.send || e.second.announced.empty(); });
    };
    try {
      if (!state->failed()) {
        state->wait(taken, [] { return "the last messages"; });
        communicators_->finish();
      }
    } catch (...) {
      state->fail(std::current_exception());
    }
    state->progress = nullptr;
    communicators_.reset();  // aborts those that are left: streams may wait for them
    edges_.clear();
    groups_.clear();
  }

  const std::unique_ptr<Transport> under_;
  // While there are Channels:
  std::unique_ptr<Communicators> communicators_;
  std::map<std::pair<bool, int>, Edge> edges_;  // by send, peer
  std::map<uint32_t, ncclComm_t> groups_;       // by id
};

}  // namespace

bool have_nccl() { return true; }

std::unique_ptr<Transport> with_nccl(std::unique_ptr<Transport> under, const RunOptions& options) {
  if (options.transport != Wire::nccl) return under;
  return std::make_unique<NcclTransport>(std::move(under));
}

}  // namespace duet
