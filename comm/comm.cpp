// Groups, messages in the order of streams, and every collective, built once over a transport's messages. Read next: ranks.cpp.
#include "comm/comm.h"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <utility>

#include "comm/nccl.h"
#include "comm/sum.h"

namespace duet {
namespace {

// Runs `work` in the stream's order. What it throws, maybe on the stream's thread, becomes the rank's failure, and then nothing
// more is posted.
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
  DUET_CHECK(transport.link, "a message in GPU memory under --transport nccl: expected Channels, made before");
  return *transport.link;
}

void* element(const Tensor& t, int64_t i) { return static_cast<char*>(t.data) + i * dtype_size(t.dtype); }

void check_contiguous(const Tensor& t) {
  DUET_CHECK(t.ld == t.cols || t.rows <= 1, "a message: expected contiguous rows, found ld ", t.ld, ", columns ", t.cols);
}

// Waits until p is done. What else NCCL has under way goes on meanwhile.
void await(Post& p) { p.transport.link ? p.transport.link->wait(p) : p.transport.wait(p); }

}  // namespace

bool Request::done() const {
  if (post_->link) return post_->link->finished(*post_);
  if (!post_->transport.done(*post_)) return false;
  post_->deliver();
  return !post_->copied || post_->copied->done();
}

void Request::wait() const {
  if (post_->link) return post_->link->finish(*post_);
  post_->transport.wait(*post_);
  post_->deliver();
  if (post_->copied) post_->copied->synchronize();
}

CommStream::CommStream(Comm& world, Device& device)
    : transport_(world.transport_), exceptions_(std::uncaught_exceptions()), stream_(device.make_stream()) {}

CommStream::~CommStream() {
  if (std::uncaught_exceptions() > exceptions_) transport_->fail(std::make_exception_ptr(Stopped("stopped: the rank failed")));
}

Traffic Comm::take_traffic() { return std::exchange(transport_->traffic, {}); }

Channels::Channels(Comm& world, Device& device, const std::vector<std::pair<int, int>>& pairs) : transport_(world.transport_) {
  DUET_CHECK(!transport_->link, "expected one Channels at a time");
  if (transport_->nccl && device.is_cuda() && world.size() > 1) NcclLink::open(*transport_, world, device, pairs);
}

Channels::~Channels() { transport_->link.reset(); }

// --- groups ------------------------------------------------------------------------------------------------------------------

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
  DUET_CHECK(me != made.ranks_.end(), "a group: expected its list to name rank ", rank_, " that makes it");
  made.rank_ = int(me - made.ranks_.begin());
  if (transport_->link) transport_->link->add_group(made, made.id_);
  return made;
}

// --- messages ----------------------------------------------------------------------------------------------------------------

std::shared_ptr<Post> Comm::make_post(bool send, const Leg& leg, uint32_t tag, const char* collective) const {
  DUET_CHECK(leg.peer >= 0 && leg.peer < size(), "a message: expected a peer in 0..", size() - 1, ", found ", leg.peer);
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
  if (!stream.device().is_cuda()) return in_order(stream, *transport_, [p] { p->transport.wait(*p); });
  await(*p);  // between threads and over NCCL, until both sides have posted; between processes, until the message is here
  p->deliver();
  if (p->copied) stream.wait(*p->copied);
}

void Comm::wait(Stream& stream, const Request& request) { wait(stream, request.post_); }

Request Comm::isend(Stream& after, const Tensor& t, int peer, Tag tag) {
  check_contiguous(t);
  Request request;
  request.post_ = make_post(true, {peer, t.data, t.bytes()}, pack(tag), nullptr);
  post(after, request.post_, false);
  return request;
}

Request Comm::irecv(Stream& after, const Tensor& t, int peer, Tag tag) {
  check_contiguous(t);
  Request request;
  request.post_ = make_post(false, {peer, t.data, t.bytes()}, pack(tag), nullptr);
  post(after, request.post_, false);
  return request;
}

// --- the one collective that the others are made of --------------------------------------------------------------------------

uint32_t Comm::next_tag() { return pack_collective(id_, collectives_++); }

// All the sends and receives of a collective at once. A rank's message to itself is a copy.
void Comm::exchange(Stream& stream, const char* name, const std::vector<Leg>& sends, const std::vector<Leg>& recvs) {
  const uint32_t tag = next_tag();
  std::vector<std::shared_ptr<Post>> posts;
  const Leg* kept = nullptr;
  for (const Leg& leg : recvs)
    if (leg.peer == rank_)
      kept = &leg;
    else
      posts.push_back(make_post(false, leg, tag, name));
  for (const Leg& leg : sends)
    if (leg.peer != rank_)
      posts.push_back(make_post(true, leg, tag, name));
    else if (kept && kept->data != leg.data && leg.bytes > 0)
      stream.copy(kept->data, leg.data, size_t(leg.bytes));
  if (transport_->nccl && stream.device().is_cuda()) return exchange_nccl(stream, name, sends, recvs);
  for (const auto& p : posts) post(stream, p, true);
  for (const auto& p : posts) wait(stream, p);
}

// A collective is one NCCL group. Two ranks that disagree would hang there, or take one thing for another; so each first tells
// the others on the host what it is about to do.
void Comm::exchange_nccl(Stream& stream, const char* name, const std::vector<Leg>& sends, const std::vector<Leg>& recvs) {
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
  }
  for (size_t i = 0; i < recvs.size(); i++) from.push_back({recvs[i].peer, &theirs[i], sizeof(Claim)});
  const std::string what = cat(name, " ", collectives_ & 4095, " of group ", id_);
  exchange_host(name, to, from, [&] {
    for (size_t i = 0; i < recvs.size(); i++) {
      const bool agree = recvs[i].peer == rank_ || (strcmp(theirs[i].name, name) == 0 && theirs[i].bytes == recvs[i].bytes);
      DUET_CHECK(agree, what, ": this side expects ", recvs[i].bytes, " bytes from rank ", world_rank(recvs[i].peer),
                 ", which sends ", theirs[i].bytes, " in its ", theirs[i].name);
    }
  });
  link_of(*transport_).collective(stream, id_, {sends, recvs, rank_, what});
}

// `received` is called once all has come, be what is sent taken or not.
void Comm::exchange_host(const char* name, const std::vector<Leg>& sends, const std::vector<Leg>& recvs,
                         const std::function<void()>& received) {
  const uint32_t tag = next_tag();
  std::vector<std::shared_ptr<Post>> posts;
  transport_->check();
  for (const Leg& leg : recvs)
    if (leg.peer != rank_) transport_->post(*posts.emplace_back(make_post(false, leg, tag, name)));
  for (const Leg& leg : sends)
    if (leg.peer != rank_) transport_->post(*posts.emplace_back(make_post(true, leg, tag, name)));
  for (const auto& p : posts)
    if (!p->send) await(*p);
  received();
  for (const auto& p : posts) await(*p);
}

// --- collectives -------------------------------------------------------------------------------------------------------------

void Comm::all_to_all_v(Stream& stream, const Tensor& send, std::span<const int64_t> send_offsets, const Tensor& recv,
                        std::span<const int64_t> recv_offsets) {
  check_contiguous(send);
  check_contiguous(recv);
  const size_t n = ranks_.size() + 1;
  DUET_CHECK(send_offsets.size() == n && recv_offsets.size() == n, "all-to-all: expected ", n, " offsets, found ",
             send_offsets.size(), " and ", recv_offsets.size());
  DUET_CHECK(send_offsets.back() <= send.rows && recv_offsets.back() <= recv.rows, "all-to-all: expected offsets within ",
             send.rows, " and ", recv.rows, " rows, found ", send_offsets.back(), " and ", recv_offsets.back());
  std::vector<Leg> sends, recvs;
  for (int i = 0; i < size(); i++) {  // each rank begins with its own successor, so that they do not all begin with rank 0
    const int r = (rank_ + i) % size();
    const Tensor to = send.row_slice(send_offsets[r], send_offsets[r + 1] - send_offsets[r]);
    const Tensor from = recv.row_slice(recv_offsets[r], recv_offsets[r + 1] - recv_offsets[r]);
    sends.push_back({r, to.data, to.bytes()});
    recvs.push_back({r, from.data, from.bytes()});
  }
  DUET_CHECK(sends[0].bytes == recvs[0].bytes, "all-to-all: a rank sends itself ", sends[0].bytes, " bytes and expects ",
             recvs[0].bytes);
  exchange(stream, "all-to-all", sends, recvs);
}

void Comm::all_gather(Stream& stream, const Tensor& mine, const Tensor& all) {
  check_contiguous(mine);
  check_contiguous(all);
  DUET_CHECK(all.size() == size() * mine.size() && all.dtype == mine.dtype, "all-gather: expected ", size(), " parts of ",
             mine.size(), " elements, found ", all.size(), " elements");
  std::vector<Leg> sends, recvs;
  for (int i = 0; i < size(); i++) {
    const int r = (rank_ + i) % size();
    sends.push_back({r, mine.data, mine.bytes()});
    recvs.push_back({r, element(all, r * mine.size()), mine.bytes()});
  }
  exchange(stream, "all-gather", sends, recvs);
}

void Comm::broadcast(Stream& stream, const Tensor& t, int root) {
  check_contiguous(t);
  std::vector<Leg> sends, recvs;
  if (rank_ != root) recvs.push_back({root, t.data, t.bytes()});
  for (int i = 1; i < size() && rank_ == root; i++) sends.push_back({(rank_ + i) % size(), t.data, t.bytes()});
  exchange(stream, "broadcast", sends, recvs);
}

void Comm::reduce_scatter(Stream& stream, const Tensor& in, const Tensor& out, const Tensor& scratch) {
  const int64_t n = out.size();
  DUET_CHECK(in.size() == size() * n && in.dtype == out.dtype, "reduce-scatter: expected ", size(), " parts of ", n,
             " elements, found ", in.size(), " elements");
  DUET_CHECK(scratch.size() >= in.size() && scratch.dtype == in.dtype, "reduce-scatter: expected a scratch of ", in.size(),
             " elements, found ", scratch.size());
  check_contiguous(in);
  check_contiguous(out);
  check_contiguous(scratch);
  std::vector<Leg> sends, recvs;
  for (int i = 0; i < size(); i++) {
    const int r = (rank_ + i) % size();
    sends.push_back({r, element(in, r * n), out.bytes()});
    recvs.push_back({r, element(scratch, r * n), out.bytes()});
  }
  exchange(stream, "reduce-scatter", sends, recvs);
  launch_ordered_sum(stream, {.x = {scratch.data, in.dtype, size(), n, n}, .y = out.reshape(1, n)});
}

// Elements of t that a rank sums: a multiple of 64, so that slices begin aligned.
static int64_t slice_of(int64_t elements, int ranks) { return (elements + ranks - 1) / ranks / 64 * 64 + 64; }

int64_t Comm::scratch_size(int64_t elements) const { return slice_of(elements, size()) * size(); }

// Each rank collects everyone's part of its own slice, sums it in rank order, and gives the sum to all.
void Comm::all_reduce(Stream& stream, const Tensor& t, const Tensor& scratch) {
  if (size() == 1) return;
  check_contiguous(t);
  check_contiguous(scratch);
  DUET_CHECK(scratch.size() >= scratch_size(t.size()) && scratch.dtype == t.dtype, "all-reduce: expected a scratch of ",
             scratch_size(t.size()), " elements, found ", scratch.size());
  const int64_t slice = slice_of(t.size(), size());
  const auto begin = [&](int r) { return std::min(r * slice, t.size()); };
  const auto bytes = [&](int r) { return (begin(r + 1) - begin(r)) * dtype_size(t.dtype); };
  const int64_t n = begin(rank_ + 1) - begin(rank_);
  std::vector<Leg> slices, parts, sums;  // everyone's slice in t; everyone's part of mine in scratch; mine in t, to everyone
  for (int i = 0; i < size(); i++) {
    const int r = (rank_ + i) % size();
    slices.push_back({r, element(t, begin(r)), bytes(r)});
    parts.push_back({r, element(scratch, r * n), bytes(rank_)});
    sums.push_back({r, element(t, begin(rank_)), bytes(rank_)});
  }
  exchange(stream, "all-reduce", slices, parts);
  launch_ordered_sum(stream, {.x = {scratch.data, t.dtype, size(), n, n}, .y = {sums[0].data, t.dtype, 1, n, n}});
  exchange(stream, "all-reduce", sums, slices);
}

// --- host values -------------------------------------------------------------------------------------------------------------

void Comm::send(std::span<const std::byte> bytes, int peer, Tag tag) {
  const auto p = make_post(true, {peer, const_cast<std::byte*>(bytes.data()), int64_t(bytes.size())}, pack(tag), nullptr);
  transport_->check();
  transport_->post(*p);
  await(*p);
}

void Comm::recv(std::span<std::byte> bytes, int peer, Tag tag) {
  const auto p = make_post(false, {peer, bytes.data(), int64_t(bytes.size())}, pack(tag), nullptr);
  transport_->check();
  transport_->post(*p);
  await(*p);
}

std::vector<std::string> Comm::gather(const std::string& mine) {
  std::vector<std::string> all(ranks_.size());
  std::vector<int64_t> lengths(ranks_.size());
  int64_t length = int64_t(mine.size());
  std::vector<Leg> sends, recvs;
  for (int r = 0; r < size(); r++) {
    sends.push_back({r, &length, sizeof length});
    recvs.push_back({r, &lengths[size_t(r)], sizeof length});
  }
  exchange_host("gather", sends, recvs);
  lengths[size_t(rank_)] = length;
  for (int r = 0; r < size(); r++) {
    all[size_t(r)].resize(size_t(lengths[size_t(r)]));
    sends[size_t(r)] = {r, const_cast<char*>(mine.data()), length};
    recvs[size_t(r)] = {r, all[size_t(r)].data(), lengths[size_t(r)]};
  }
  exchange_host("gather", sends, recvs);
  all[size_t(rank_)] = mine;
  return all;
}

void Comm::require_same(const std::string& what, const std::string& text) {
  const std::vector<std::string> all = gather(text);
  for (size_t r = 1; r < all.size(); r++)
    require(all[r] == all[0], what, ": rank ", ranks_[0], " has '", all[0], "', rank ", ranks_[r], " has '", all[r],
            "'; all ranks need the same");
}

}  // namespace duet
