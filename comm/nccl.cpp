// Messages and collectives over NCCL. See nccl.h.
#include "comm/nccl.h"

#include <algorithm>
#include <set>

namespace duet {

constexpr auto kPause = std::chrono::microseconds(20);  // between looks of the rank's thread
constexpr auto kLook = std::chrono::milliseconds(20);   // between those of the thread that watches
// all edges of a rank must fit on its GPU at once, beside computation
constexpr int kEdgeBlocks = 4, kGroupBlocks = 16;

// One NCCL group: all of a collective, or one message.
struct NcclLink::Operation {
  NcclLink& link;
  ncclComm* comm;
  std::span<const Leg> sends, recvs;
  std::string text;
};

// --- communicators -------------------------------------------------------------------------------

NcclLink::NcclLink(Transport& transport, const NcclApi& api, Device& device)
    : transport_(transport), api_(api), device_(device), gpu_(api.gpu()),
      exceptions_(std::uncaught_exceptions()), watcher_([this] { watch(); }) {}

void NcclLink::open(Transport& transport, Comm& world, Device& device,
    const std::vector<std::pair<int, int>>& pairs) {
  std::unique_ptr<NcclLink> link(new NcclLink(transport, *transport.nccl, device));
  link->refuse_shared_gpus(world);
  link->connect(world, pairs);
  link->add_group(world, 0);
  transport.link = std::move(link);
}

void NcclLink::refuse_shared_gpus(Comm& world) {
  const std::vector<std::string> gpus = world.gather(api_.gpu_name(gpu_));
  for (size_t r = 0; r < gpus.size(); r++)
    for (size_t s = 0; s < r; s++)
      require(gpus[r] != gpus[s], "--transport: found nccl with ranks ", s, " and ", r,
          " on one GPU (", gpus[r],
          "), allowed: nccl with at most one rank on each GPU; local, whose ranks share GPUs");
}

// All ranks walk through the directions in one order and each takes part in its own, so no two can
// wait for one another.
void NcclLink::connect(Comm& world, const std::vector<std::pair<int, int>>& pairs) {
  std::set<std::pair<int, int>> directions;  // source, target
  for (const auto& [a, b] : pairs) {
    DUET_CHECK(a != b && std::min(a, b) >= 0 && std::max(a, b) < world.size(),
        "channels: expected pairs of ranks, found ", a, " and ", b);
    directions.insert({a, b});
    directions.insert({b, a});
  }
  std::string mine;  // a source makes the id
  for (const auto& [source, target] : directions) {
    if (source != world.rank()) continue;
    NcclId id;
    check(api_.get_id(&id), "an id");
    mine.append(id.bytes, sizeof id.bytes);
  }
  std::vector<std::string> ids = world.gather(mine);
  for (const auto& [source, target] : directions) {
    NcclId id;
    DUET_CHECK(
        ids[size_t(source)].size() >= sizeof id, "channels: expected the same pairs on all ranks");
    memcpy(&id, ids[size_t(source)].data(), sizeof id);
    ids[size_t(source)].erase(0, sizeof id);
    const bool send = source == world.rank();
    if (!send && target != world.rank()) continue;
    Edge& edge = send ? out_[target] : in_[source];
    edge.peer = send ? target : source;
    edge.lane = device_.make_stream();
    edge.comm = make(2, id, send ? 0 : 1, kEdgeBlocks);
    send ? greet(*edge.lane, edge.comm, {1}, {}) : greet(*edge.lane, edge.comm, {}, {0});
  }
}

void NcclLink::add_group(Comm& group, uint32_t id) {
  if (group.size() == 1) return;
  NcclId made = {};
  if (group.rank() == 0) check(api_.get_id(&made), "an id");
  groups_[id] = make(group.size(), group.gather_values(made)[0], group.rank(), kGroupBlocks);
  std::vector<int> others;
  for (int r = 0; r < group.size(); r++)
    if (r != group.rank()) others.push_back(r);
  greet(device_.compute(), groups_[id], others, others);
}

ncclComm* NcclLink::make(int ranks, const NcclId& id, int rank, int max_blocks) {
  std::unique_lock lock(mutex_);
  ncclComm* comm = nullptr;
  const int code = api_.init(&comm, ranks, id, rank, max_blocks);
  if (comm) comms_.push_back(comm);
  check(code, "a communicator");
  settle(lock, comm, "the other ranks of an NCCL communicator");
  return comm;
}

// NCCL makes the connection between two ranks at their first message, for which both must be there:
// now.
void NcclLink::greet(
    Stream& stream, ncclComm* comm, const std::vector<int>& to, const std::vector<int>& from) {
  const Buf words = device_.buffer(1, int64_t(to.size() + from.size()), Dtype::i32, Use::messages);
  std::vector<Leg> sends, recvs;
  for (int peer : to)
    sends.push_back({peer, words->row<int32_t>(0) + sends.size(), sizeof(int32_t)});
  for (int peer : from)
    recvs.push_back({peer, words->row<int32_t>(0) + to.size() + recvs.size(), sizeof(int32_t)});
  const std::string text = "the first message of an NCCL communicator";
  const auto landed = launch(stream, {*this, comm, sends, recvs, text});
  wait_until([&] { return landed->done(); }, text);
  transport_.check();
}

void NcclLink::check(int code, const std::string& text) const {
  DUET_CHECK(code == kNcclSuccess || code == kNcclInProgress, text,
      ": NCCL says: ", api_.error_text(code));
}

bool NcclLink::late(Clock::time_point since) const {
  return Clock::now() - since > std::chrono::duration<double>(transport_.timeout());
}

// Until what was asked of a communicator has been done on the host.
void NcclLink::settle(std::unique_lock<std::mutex>& lock, ncclComm* comm, const std::string& text) {
  const auto begin = Clock::now();
  for (;;) {
    transport_.check();  // from then on the communicator may be gone
    const int code = api_.async_error(comm);
    check(code, text);
    if (code == kNcclSuccess) return;
    if (late(begin)) transport_.time_out(text);
    lock.unlock();
    std::this_thread::sleep_for(kPause);
    lock.lock();
  }
}

// --- calling NCCL --------------------------------------------------------------------------------

// The stream hands its CUDA stream to whatever it launches, and so to NCCL.
std::shared_ptr<Event> NcclLink::launch(Stream& stream, const Operation& op) {
  stream.launch({"NCCL", nullptr, &NcclLink::enqueue}, 1, &op, sizeof op, 0);
  std::shared_ptr<Event> landed = device_.make_event();
  stream.record(*landed);
  std::lock_guard lock(mutex_);
  flights_.push_back({landed, op.text, Clock::now()});
  return landed;
}

void NcclLink::enqueue(void* cuda_stream, int64_t, const void* p) {
  const Operation& op = *static_cast<const Operation*>(p);
  const NcclApi& api = op.link.api_;
  std::unique_lock lock(op.link.mutex_);
  op.link.transport_.check();
  int failure = kNcclSuccess;  // a group that was begun is ended in any case
  const auto note = [&](int code) {
    failure = code == kNcclInProgress || failure ? failure : code;
  };
  note(api.group_start());
  for (const Leg& leg : op.sends)
    if (leg.bytes > 0) note(api.send(leg.data, size_t(leg.bytes), leg.peer, op.comm, cuda_stream));
  for (const Leg& leg : op.recvs)
    if (leg.bytes > 0) note(api.recv(leg.data, size_t(leg.bytes), leg.peer, op.comm, cuda_stream));
  note(api.group_end());
  op.link.check(failure, op.text);
  op.link.settle(lock, op.comm, op.text);
}

void NcclLink::collective(Stream& stream, uint32_t group, std::span<const Leg> sends,
    std::span<const Leg> recvs, const std::string& text) {
  const auto found = groups_.find(group);
  DUET_CHECK(found != groups_.end(), text, ": expected a group made after its Channels");
  launch(stream, {*this, found->second, sends, recvs, text});
}

// --- messages ------------------------------------------------------------------------------------

NcclLink::Edge& NcclLink::edge_of(const Post& p) {
  auto& edges = p.send ? out_ : in_;
  const auto found = edges.find(p.peer);
  DUET_CHECK(
      found != edges.end(), p.text(), ": expected its pair of ranks among those of Channels");
  return found->second;
}

void NcclLink::exchange_header(Announced& a, bool send, int peer, const Header& header) {
  a.header = header;
  a.post = std::make_unique<Post>(transport_, send, peer, kHeaderTag);
  a.post->data = &a.header;
  a.post->bytes = sizeof a.header;
  transport_.post(*a.post);
}

void NcclLink::post(Post& p) {
  Edge& edge = edge_of(p);
  p.link = this;
  p.posted = true;
  if (!p.send) {
    edge.expected.push_back(&p);
    advance();
    return;
  }
  exchange_header(edge.announced.emplace_back(), true, p.peer, {p.tag, p.bytes});
  const Leg leg{1, p.data, p.bytes};
  edge.lane->wait(*p.ready);
  p.copied = launch(*edge.lane, {*this, edge.comm, {&leg, 1}, {}, p.text()});
  p.done = true;
  advance();
}

// The receive that the next header names; null while there is no header, or no such receive.
Post* NcclLink::claimant(const Edge& edge) const {
  if (!edge.next || !transport_.done(*edge.next->post)) return nullptr;
  const auto same = [&](const Post* p) { return p->tag == edge.next->header.tag; };
  const auto found = std::find_if(edge.expected.begin(), edge.expected.end(), same);
  return found == edge.expected.end() ? nullptr : *found;
}

// Calls NCCL for the next message of an incoming edge; false if it cannot be yet.
bool NcclLink::advance(Edge& edge) {
  if (edge.expected.empty()) return false;
  if (!edge.next) {
    edge.next = std::make_unique<Announced>();
    exchange_header(*edge.next, false, edge.peer, {});
  }
  Post* p = claimant(edge);
  if (!p) return false;
  DUET_CHECK(p->bytes == edge.next->header.bytes, p->text(), ": this side expects ", p->bytes,
      " bytes, the other ", edge.next->header.bytes);
  edge.expected.remove(p);
  edge.next.reset();
  const Leg leg{0, p->data, p->bytes};
  edge.lane->wait(*p->ready);
  p->copied = launch(*edge.lane, {*this, edge.comm, {}, {&leg, 1}, p->text()});
  p->done = true;
  return true;
}

bool NcclLink::advance() {
  bool moved = false;
  for (auto& [peer, edge] : in_)
    while (advance(edge)) moved = true;
  for (auto& [peer, edge] : out_)
    edge.announced.remove_if([&](const Announced& a) { return transport_.done(*a.post); });
  return moved;
}

void NcclLink::wait_until(const std::function<bool()>& ended, const std::string& text) {
  const auto begin = Clock::now();
  while (!ended()) {
    transport_.check();
    if (advance()) continue;
    if (late(begin)) transport_.time_out(text);
    std::this_thread::sleep_for(kPause);
  }
}

void NcclLink::wait(Post& p) {
  wait_until(
      [&] {
        if (transport_.done(p)) return true;
        if (!p.link) return false;
        const Edge& edge = edge_of(p);
        DUET_CHECK(!edge.next || !transport_.done(*edge.next->post) || claimant(edge), p.text(),
            ": the next message from there is ", action_text(edge.next->header.tag),
            ", which this rank has not asked for; they come in the order they are sent");
        return false;
      },
      p.text());
}

bool NcclLink::finished(Post& p) {
  transport_.check();
  advance();
  return p.done && p.copied->done();
}

void NcclLink::finish(Post& p) {
  wait(p);
  wait_until([&] { return p.copied->done(); }, p.text());
  transport_.check();  // an aborted message is done, too
}

void NcclLink::cancel(Post& p) { edge_of(p).expected.remove(&p); }

// --- failing, and the end ------------------------------------------------------------------------

void NcclLink::watch() {
  api_.use_gpu(gpu_);
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, kLook, [&] { return ending_; })) {
    try {
      look();
    } catch (...) {
      transport_.fail(std::current_exception());
    }
    if (transport_.failed()) abort_all();
  }
}

// Throws if a communicator has failed, or an operation takes too long.
void NcclLink::look() {
  for (ncclComm* comm : comms_) check(api_.async_error(comm), "a communicator");
  flights_.remove_if([](const Flight& f) { return f.landed->done(); });
  for (const Flight& f : flights_)
    if (late(f.since)) transport_.time_out(f.text);
}

void NcclLink::abort_all() {
  for (ncclComm* comm : std::exchange(comms_, {})) api_.abort(comm);
}

void NcclLink::close() {
  const auto quiet = [&] {
    std::lock_guard lock(mutex_);
    return std::all_of(flights_.begin(), flights_.end(),
               [](const Flight& f) { return f.landed->done(); }) &&
        std::all_of(out_.begin(), out_.end(),
            [](const auto& edge) { return edge.second.announced.empty(); });
  };
  wait_until(quiet, "the last messages");
  std::unique_lock lock(mutex_);
  while (!comms_.empty()) {
    check(api_.finalize(comms_.front()), "the end of a communicator");
    settle(lock, comms_.front(), "the other ranks of an NCCL communicator to end");
    check(api_.destroy(comms_.front()), "the end of a communicator");
    comms_.erase(comms_.begin());
  }
}

NcclLink::~NcclLink() {
  if (std::uncaught_exceptions() > exceptions_)
    transport_.fail(std::make_exception_ptr(Stopped("stopped: the rank failed")));
  try {
    if (!transport_.failed()) close();
  } catch (...) {
    transport_.fail(std::current_exception());
  }
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_all();
  watcher_.join();
  abort_all();
}

}  // namespace duet
