// Groups, messages in the order of streams, and every collective, built once over a transport's
// messages. Read next: ranks.cpp.
#include "comm/comm.h"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <utility>

#include "comm/gpu_link.h"
#include "comm/nccl.h"
#include "comm/sum.h"
#include "model/machine/compile_cpu.h"

namespace duet {

DUET_COMPILE_CPU(OrderedSum)
DUET_COMPILE_CPU(LinkBook)
DUET_COMPILE_CPU(LinkWait)

namespace {

// Runs `work` in the stream's order. What it throws, maybe on the stream's thread, becomes the
// rank's failure, and then nothing more is posted.
void in_order(Stream& stream, Transport& transport, std::function<void()> work) {
  transport.check();
  stream.host([&transport, work = std::move(work)] {
    try {
      transport.check();
      work();
    } catch (...) {
      transport.fail(std::current_exception());
      throw;
    }
  });
}

NcclLink& link_of(Transport& transport) {
  DUET_CHECK(transport.link,
      "a message in GPU memory under --transport nccl: expected Channels, made before");
  return *transport.link;
}

void* element(const Tensor& t, int64_t i) {
  return static_cast<char*>(t.data) + i * dtype_size(t.dtype);
}

void check_contiguous(const Tensor& t) {
  DUET_CHECK(t.ld == t.cols || t.rows <= 1, "a message: expected contiguous rows, found ld ", t.ld,
      ", columns ", t.cols);
}

// Waits until p is done. What else NCCL has under way goes on meanwhile.
void await(Post& p) { p.transport.link ? p.transport.link->wait(p) : p.transport.wait(p); }

// Work enqueued on `stream` from now on starts after the message, whose copy and arrival have been
// enqueued.
void wait_on(Stream& stream, const Post& p) {
  if (p.copied) stream.wait(*p.copied);
  if (p.gpu_arrival) launch<LinkWait>(stream, 1, {.x = p.gpu_arrival});
}

// For the host, which knows events alone: `copied` becomes the message's arrival.
void deliver(Post& p) {
  p.deliver();
  if (!p.gpu_arrival) return;
  wait_on(*p.own_lane, p);
  p.gpu_arrival = {};
  p.copied = p.own_lane->device().make_event();
  p.own_lane->record(*p.copied);
}

}  // namespace

bool Request::done() const {
  if (post_->link) return post_->link->finished(*post_);
  if (!post_->transport.done(*post_)) return false;
  deliver(*post_);
  return !post_->copied || post_->copied->done();
}

void Request::wait() const {
  if (post_->link) return post_->link->finish(*post_);
  post_->transport.wait(*post_);
  deliver(*post_);
  if (post_->copied) post_->copied->synchronize();
}

CommStream::CommStream(Comm& world, Device& device)
    : transport_(world.transport_), exceptions_(std::uncaught_exceptions()),
      stream_(device.make_stream()) {}

CommStream::~CommStream() {
  if (std::uncaught_exceptions() > exceptions_)
    transport_->fail(std::make_exception_ptr(Stopped("stopped: the rank failed")));
}

Traffic Comm::take_traffic() { return std::exchange(transport_->traffic, {}); }

Channels::Channels(Comm& world, Device& device, const std::vector<std::pair<int, int>>& pairs)
    : transport_(world.transport_) {
  DUET_CHECK(!transport_->link, "expected one Channels at a time");
  if (transport_->nccl && device.is_cuda() && world.size() > 1)
    NcclLink::open(*transport_, world, device, pairs);
  if (transport_->link_model().emulated() && device.is_cuda())
    transport_->gpu_link = std::make_unique<GpuLink>(device);
}

Channels::~Channels() {
  transport_->link.reset();
  transport_->gpu_link.reset();
}

// --- groups --------------------------------------------------------------------------------------

Comm::Comm(Transport& transport) : Comm(transport, std::vector<int>(size_t(transport.size())), 0) {
  std::iota(ranks_.begin(), ranks_.end(), 0);
  rank_ = transport.rank();
}

Comm::Comm(Transport& transport, std::vector<int> ranks, uint32_t id)
    : transport_(&transport), ranks_(std::move(ranks)), rank_(0), id_(id) {}

Comm Comm::group(std::vector<int> ranks) {
  DUET_CHECK(id_ == 0, "groups are made from the world");
  Comm made(*transport_, std::move(ranks), ++groups_);
  const auto me = std::find(made.ranks_.begin(), made.ranks_.end(), rank_);
  DUET_CHECK(
      me != made.ranks_.end(), "a group: expected its list to name rank ", rank_, " that makes it");
  made.rank_ = int(me - made.ranks_.begin());
  if (transport_->link) transport_->link->add_group(made, made.id_);
  return made;
}

// --- messages ------------------------------------------------------------------------------------

std::shared_ptr<Post> Comm::make_post(
    bool send, const Leg& leg, uint32_t tag, const char* collective) const {
  DUET_CHECK(leg.peer >= 0 && leg.peer < size(), "a message: expected a peer in 0..", size() - 1,
      ", found ", leg.peer);
  auto p = std::make_shared<Post>(*transport_, send, world_rank(leg.peer), tag);
  if (send) transport_->count(p->peer, leg.bytes);
  p->data = leg.data;
  p->bytes = leg.bytes;
  p->collective = collective;
  return p;
}

void Comm::post(Stream& after, const std::shared_ptr<Post>& p, bool collective) {
  Device& device = after.device();
  if (!device.is_cuda()) return in_order(after, *transport_, [p] { p->transport.post(*p); });
  transport_->check();
  p->ready = device.make_event();
  after.record(*p->ready);
  if (transport_->nccl) return link_of(*transport_).post(*p);
  if (transport_->link_model().emulated()) {
    DUET_CHECK(transport_->gpu_link,
        "a message in GPU memory over an emulated link: expected Channels, made before");
    p->gpu_arrival = transport_->gpu_link->next_arrival();
  }
  if (!collective) p->own_lane = device.make_stream();
  p->lane = collective ? &after : p->own_lane.get();
  if (!transport_->moves_gpu_memory()) {
    p->staging = device.host_buffer(1, (p->bytes + 3) / 4, Dtype::i32);
    p->gpu_data = std::exchange(p->data, p->staging->data);
  }
  if (p->staging && p->send) {
    p->lane->wait(*p->ready);
    p->lane->copy(p->data, p->gpu_data, size_t(p->bytes));
    p->lane->record(*p->ready);
  }
  transport_->post(*p);
}

void Comm::wait(Stream& stream, const std::shared_ptr<Post>& p) {
  if (!stream.device().is_cuda())
    return in_order(stream, *transport_, [p] { p->transport.wait(*p); });
  // between threads and over NCCL, until both sides have posted; between processes, until the
  // message is here
  await(*p);
  p->deliver();
  wait_on(stream, *p);
}

Request Comm::message(bool send, Stream& after, const Tensor& t, int peer, Tag tag) {
  check_contiguous(t);
  Request request;
  request.post_ = make_post(send, {peer, t.data, t.bytes()}, pack(tag), nullptr);
  post(after, request.post_, false);
  return request;
}

// --- what collectives are made of ----------------------------------------------------------------
// A collective is one Leg to every rank of the group and one from every rank; the first of each is
// the rank's own.

// Each rank goes on with its successor, so that they do not all begin with rank 0.
template <class Fn> std::vector<Leg> Comm::legs(const Fn& leg) const {
  std::vector<Leg> all;
  for (int i = 0; i < size(); i++) all.push_back(leg((rank_ + i) % size()));
  return all;
}

std::vector<std::shared_ptr<Post>> Comm::make_posts(
    const char* name, const std::vector<Leg>& sends, const std::vector<Leg>& recvs) {
  const uint32_t tag = pack_collective(id_, collectives_++);
  std::vector<std::shared_ptr<Post>> posts;
  for (size_t i = 1; i < recvs.size(); i++) posts.push_back(make_post(false, recvs[i], tag, name));
  for (size_t i = 1; i < sends.size(); i++) posts.push_back(make_post(true, sends[i], tag, name));
  return posts;
}

// Tensors, in the stream's order. What a rank sends to itself is a copy.
void Comm::exchange(Stream& stream, const char* name, const std::vector<Leg>& sends,
    const std::vector<Leg>& recvs) {
  DUET_CHECK(sends[0].bytes == recvs[0].bytes, name, ": a rank sends itself ", sends[0].bytes,
      " bytes and expects ", recvs[0].bytes);
  const auto posts = make_posts(name, sends, recvs);
  if (recvs[0].data != sends[0].data && sends[0].bytes > 0)
    stream.copy(recvs[0].data, sends[0].data, size_t(sends[0].bytes));
  if (transport_->nccl && stream.device().is_cuda())
    return exchange_nccl(stream, name, sends, recvs);
  for (const auto& p : posts) post(stream, p, true);
  for (const auto& p : posts) wait(stream, p);
}

// A collective is one NCCL group. Two ranks that disagree would hang there, or take one thing for
// another; so each first tells the others on the host what it is about to do.
void Comm::exchange_nccl(Stream& stream, const char* name, const std::vector<Leg>& sends,
    const std::vector<Leg>& recvs) {
  if (size() == 1) return;
  struct Claim {
    char name[24];
    int64_t bytes;
  };
  std::vector<Claim> mine(sends.size()), theirs(recvs.size());
  std::vector<Leg> to, from;
  for (size_t i = 0; i < sends.size(); i++) {
    snprintf(mine[i].name, sizeof mine[i].name, "%s", name);
    mine[i].bytes = sends[i].bytes;
    to.push_back({sends[i].peer, &mine[i], sizeof(Claim)});
    from.push_back({recvs[i].peer, &theirs[i], sizeof(Claim)});
  }
  const std::string what = cat(name, " ", collectives_ & 4095, " of group ", id_);
  exchange_host(name, to, from, [&] {
    for (size_t i = 1; i < recvs.size(); i++)
      DUET_CHECK(strcmp(theirs[i].name, name) == 0 && theirs[i].bytes == recvs[i].bytes, what,
          ": this side expects ", recvs[i].bytes, " bytes from rank ", world_rank(recvs[i].peer),
          ", which sends ", theirs[i].bytes, " in its ", theirs[i].name);
  });
  link_of(*transport_)
      .collective(stream, id_, std::span(sends).subspan(1), std::span(recvs).subspan(1), what);
}

// Host values. `received` is called once all has come, be what is sent taken or not.
void Comm::exchange_host(const char* name, const std::vector<Leg>& sends,
    const std::vector<Leg>& recvs, const std::function<void()>& received) {
  const auto posts = make_posts(name, sends, recvs);
  transport_->check();
  for (const auto& p : posts) transport_->post(*p);
  for (const auto& p : posts)
    if (!p->send) await(*p);
  received();
  for (const auto& p : posts) await(*p);
}

// --- collectives ---------------------------------------------------------------------------------

void Comm::all_to_all_v(Stream& stream, const Tensor& send, std::span<const int64_t> send_offsets,
    const Tensor& recv, std::span<const int64_t> recv_offsets) {
  check_contiguous(send);
  check_contiguous(recv);
  const size_t n = ranks_.size() + 1;
  DUET_CHECK(send_offsets.size() == n && recv_offsets.size() == n, "all-to-all: expected ", n,
      " offsets, found ", send_offsets.size(), " and ", recv_offsets.size());
  DUET_CHECK(send_offsets.back() <= send.rows && recv_offsets.back() <= recv.rows,
      "all-to-all: expected offsets within ", send.rows, " and ", recv.rows, " rows, found ",
      send_offsets.back(), " and ", recv_offsets.back());
  const auto rows = [](const Tensor& t, std::span<const int64_t> offsets, int r) {
    const Tensor part = t.row_slice(offsets[r], offsets[r + 1] - offsets[r]);
    return Leg{r, part.data, part.bytes()};
  };
  exchange(stream, "all-to-all", legs([&](int r) { return rows(send, send_offsets, r); }),
      legs([&](int r) { return rows(recv, recv_offsets, r); }));
}

void Comm::all_gather(Stream& stream, const Tensor& mine, const Tensor& all) {
  check_contiguous(mine);
  check_contiguous(all);
  DUET_CHECK(all.size() == size() * mine.size() && all.dtype == mine.dtype, "all-gather: expected ",
      size(), " parts of ", mine.size(), " elements, found ", all.size(), " elements");
  exchange(stream, "all-gather", legs([&](int r) {
    return Leg{r, mine.data, mine.bytes()};
  }),
      legs([&](int r) {
        return Leg{r, element(all, r * mine.size()), mine.bytes()};
      }));
}

// Elements of t that a rank sums: a multiple of 64, so that slices begin aligned.
static int64_t slice_of(int64_t elements, int ranks) {
  return (elements + ranks - 1) / ranks / 64 * 64 + 64;
}

int64_t Comm::scratch_size(int64_t elements) const { return slice_of(elements, size()) * size(); }

// Each rank collects everyone's part of its own slice, sums it in rank order, and gives the sum to
// all.
void Comm::all_reduce(Stream& stream, const Tensor& t, const Tensor& scratch) {
  if (size() == 1) return;
  check_contiguous(t);
  check_contiguous(scratch);
  DUET_CHECK(scratch.size() >= scratch_size(t.size()) && scratch.dtype == t.dtype,
      "all-reduce: expected a scratch of ", scratch_size(t.size()), " elements, found ",
      scratch.size());
  const int64_t step = slice_of(t.size(), size());
  const auto slice = [&](int r) {  // of t
    const int64_t begin = std::min(r * step, t.size()), end = std::min(begin + step, t.size());
    return Leg{r, element(t, begin), (end - begin) * dtype_size(t.dtype)};
  };
  const Leg mine = slice(rank_);
  const int64_t n = mine.bytes / dtype_size(t.dtype);
  exchange(stream, "all-reduce", legs(slice), legs([&](int r) {
    return Leg{r, element(scratch, r * n), mine.bytes};
  }));
  launch<OrderedSum>(stream, (n + OrderedSum::kBlock - 1) / OrderedSum::kBlock,
      {.x = {scratch.data, t.dtype, size(), n, n}, .y = {mine.data, t.dtype, 1, n, n}});
  exchange(stream, "all-reduce", legs([&](int r) {
    return Leg{r, mine.data, mine.bytes};
  }),
      legs(slice));
}

// --- host values ---------------------------------------------------------------------------------

void Comm::host_message(bool send, const Leg& leg, Tag tag) {
  const auto p = make_post(send, leg, pack(tag), nullptr);
  transport_->check();
  transport_->post(*p);
  await(*p);
}

void Comm::send(std::span<const std::byte> bytes, int peer, Tag tag) {
  host_message(true, {peer, const_cast<std::byte*>(bytes.data()), int64_t(bytes.size())}, tag);
}

void Comm::recv(std::span<std::byte> bytes, int peer, Tag tag) {
  host_message(false, {peer, bytes.data(), int64_t(bytes.size())}, tag);
}

std::vector<std::string> Comm::gather(const std::string& mine) {
  std::vector<std::string> all(ranks_.size());
  std::vector<int64_t> lengths(ranks_.size());
  int64_t length = int64_t(mine.size());
  exchange_host("gather", legs([&](int r) {
    return Leg{r, &length, sizeof length};
  }),
      legs([&](int r) {
        return Leg{r, &lengths[size_t(r)], sizeof length};
      }));
  for (size_t r = 0; r < all.size(); r++) all[r].resize(size_t(lengths[r]));
  exchange_host("gather", legs([&](int r) {
    return Leg{r, const_cast<char*>(mine.data()), length};
  }),
      legs([&](int r) {
        return Leg{r, all[size_t(r)].data(), lengths[size_t(r)]};
      }));
  all[size_t(rank_)] = mine;
  return all;
}

void Comm::require_same(const std::string& what, const std::string& text) {
  const std::vector<std::string> all = gather(text);
  for (size_t r = 1; r < all.size(); r++)
    require(all[r] == all[0], what, ": rank ", ranks_[0], " has '", all[0], "', rank ", ranks_[r],
        " has '", all[r], "'; all ranks need the same");
}

}  // namespace duet
