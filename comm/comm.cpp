// Groups, messages in the order of streams, and every collective, built once over a transport's
// messages.
// Read next: sum.h.
#include "comm/comm.h"

#include <algorithm>
#include <numeric>

#include "comm/rows.h"
#include "comm/transport.h"
#include "model/machine/compile_cpu.h"

namespace duet {

DUET_COMM_ROWS(DUET_COMPILE_CPU)

namespace {

Bytes bytes_of(const Tensor& t) {
  DUET_CHECK(t.ld == t.cols || t.rows <= 1, "a message: expected contiguous rows, found ld ", t.ld,
      ", columns ", t.cols);
  return {static_cast<std::byte*>(t.data), size_t(t.bytes())};
}

Bytes bytes_of(std::string& text) { return std::as_writable_bytes(std::span(text)); }

}  // namespace

bool Request::done() const { return message_->done(); }
void Request::wait() const { message_->wait(); }

CommStream::CommStream(Comm& world, Device& device)
    : stream_(device.make_stream()), unwinding_(world.transport_->unwinding()) {}

Channels::Channels(
    Comm& world, Device& device, const std::vector<std::pair<int, int>>& pairs, Carries of_world)
    : open_(world.transport_->open(world, device, pairs)),
      unwinding_(world.transport_->unwinding()) {
  if (of_world == Carries::tensors) world.transport_->add_group(world, 0);
}

int Comm::rank_here() const { return transport_->state->rank_here; }

Traffic& Comm::traffic() { return transport_->state->traffic; }

Guard Comm::patience() {
  transport_->state->patient = true;
  return {transport_->state.get(), [](RankState* state) { state->patient = false; }};
}

// --- groups --------------------------------------------------------------------------------------

Comm::Comm(Transport& transport)
    : Comm(transport, std::vector<int>(size_t(transport.state->size)), 0) {
  std::iota(ranks_.begin(), ranks_.end(), 0);
  rank_ = transport.state->rank;
}

Comm::Comm(Transport& transport, std::vector<int> ranks, uint32_t id)
    : transport_(&transport), ranks_(std::move(ranks)), rank_(0), id_(id) {}

Comm Comm::group(std::vector<int> ranks, Carries carries) {
  DUET_CHECK(id_ == 0, "groups are made from the world");
  Comm made(*transport_, std::move(ranks), ++groups_);
  const auto me = std::find(made.ranks_.begin(), made.ranks_.end(), rank_);
  DUET_CHECK(
      me != made.ranks_.end(), "a group: expected its list to name rank ", rank_, " that makes it");
  made.rank_ = int(me - made.ranks_.begin());
  if (carries == Carries::tensors) transport_->add_group(made, made.id_);
  return made;
}

// --- messages ------------------------------------------------------------------------------------

Request Comm::post(bool send, Stream* after, Bytes memory, int peer, Tag tag) {
  DUET_CHECK(peer >= 0 && peer < size(), "a message: expected a peer in 0..", size() - 1,
      ", found ", peer);
  const Side side{send, world_rank(peer), pack(tag), memory};
  if (send) transport_->state->count(side.peer, int64_t(memory.size()));
  return Request(transport_->begin(side, after));
}

Request Comm::isend(Stream& after, const Tensor& t, int peer, Tag tag) {
  return post(true, &after, bytes_of(t), peer, tag);
}

Request Comm::irecv(Stream& after, const Tensor& t, int peer, Tag tag) {
  return post(false, &after, bytes_of(t), peer, tag);
}

void Comm::wait(Stream& stream, const Request& request) { request.message_->wait(stream); }

void Comm::send(std::span<const std::byte> bytes, int peer, Tag tag) {
  post(true, nullptr, {const_cast<std::byte*>(bytes.data()), bytes.size()}, peer, tag).wait();
}

void Comm::recv(std::span<std::byte> bytes, int peer, Tag tag) {
  post(false, nullptr, bytes, peer, tag).wait();
}

// --- collectives ---------------------------------------------------------------------------------

// What all collectives are made of: send(r) goes to rank r, recv(r) comes from it. Each rank begins
// with its successor, so that they do not all begin with rank 0; what it sends to itself is a copy.
void Comm::exchange(Stream* stream, const char* name, const PartOf& send, const PartOf& recv) {
  const Bytes from = send(rank_), to = recv(rank_);
  DUET_CHECK(from.size() == to.size(), name, ": a rank sends itself ", from.size(),
      " bytes and expects ", to.size());
  Collective c{name, id_, collectives_++ & 2047, ranks_};
  for (int i = 1; i < size(); i++) {
    const int r = (rank_ + i) % size();
    c.legs.push_back({r, send(r), recv(r)});
    transport_->state->count(world_rank(r), int64_t(c.legs.back().send.size()));
  }
  if (from.data() != to.data() && !from.empty())
    stream ? stream->copy(to.data(), from.data(), from.size())
           : void(memcpy(to.data(), from.data(), from.size()));
  transport_->exchange(c, stream);
}

void Comm::all_to_all_v(Stream& stream, const Tensor& send, std::span<const int64_t> send_offsets,
    const Tensor& recv, std::span<const int64_t> recv_offsets) {
  const size_t n = ranks_.size() + 1;
  DUET_CHECK(send_offsets.size() == n && recv_offsets.size() == n, "all-to-all: expected ", n,
      " offsets, found ", send_offsets.size(), " and ", recv_offsets.size());
  DUET_CHECK(send_offsets.back() <= send.rows && recv_offsets.back() <= recv.rows,
      "all-to-all: expected offsets within ", send.rows, " and ", recv.rows, " rows, found ",
      send_offsets.back(), " and ", recv_offsets.back());
  const auto rows = [](const Tensor& t, std::span<const int64_t> offsets) {
    return [all = bytes_of(t), offsets, row = size_t(t.cols * dtype_size(t.dtype))](int r) {
      return all.subspan(size_t(offsets[r]) * row, size_t(offsets[r + 1] - offsets[r]) * row);
    };
  };
  exchange(&stream, "all-to-all", rows(send, send_offsets), rows(recv, recv_offsets));
}

void Comm::all_gather(Stream& stream, const Tensor& mine, const Tensor& all) {
  const Bytes part = bytes_of(mine), parts = bytes_of(all);
  DUET_CHECK(all.size() == size() * mine.size() && all.dtype == mine.dtype, "all-gather: expected ",
      size(), " parts of ", mine.size(), " elements, found ", all.size(), " elements");
  exchange(
      &stream, "all-gather", [&](int) { return part; },
      [&](int r) { return parts.subspan(size_t(r) * part.size(), part.size()); });
}

// Elements of t that a rank sums: a multiple of 64, so that slices begin aligned.
static int64_t slice_of(int64_t elements, int ranks) {
  return (elements + ranks - 1) / ranks / 64 * 64 + 64;
}

// Of the others' parts of a slice, in fp64, and of all slices' sums, in fp32.
int64_t Comm::scratch_size(int64_t elements) const {
  return slice_of(elements, size()) * (3 * size() - 2) / 2;
}

// The slice of t that rank r of `ranks` sums. [1, n]
static Tensor slice(const Tensor& t, int r, int ranks) {
  const int64_t step = slice_of(t.cols, ranks), begin = std::min(r * step, t.cols);
  return t.col_slice(begin, std::min(step, t.cols - begin));
}

static int64_t blocks_of(const Tensor& t) { return (t.cols + kSumBlock - 1) / kSumBlock; }

// Each rank collects everyone's part of its own slice, adds it to its own, and gives the rounded
// sum to all.
void Comm::all_reduce(Stream& stream, const Tensor& t, const Tensor& scratch) {
  if (size() == 1) return;
  DUET_CHECK(t.dtype == Dtype::f64 && scratch.dtype == Dtype::f64 &&
          scratch.size() >= scratch_size(t.size()),
      "all-reduce: expected sums in fp64 and a scratch of ", scratch_size(t.size()), ", found ",
      dtype_name(t.dtype), " and ", scratch.size());
  bytes_of(t), bytes_of(scratch);  // contiguous
  const Tensor all = t.reshape(1, t.size()), mine = slice(all, rank_, size());
  const int64_t step = slice_of(t.size(), size());
  const Tensor others{scratch.data, Dtype::f64, size() - 1, mine.cols, mine.cols};
  const Tensor sums{
      scratch.row<double>(0) + (size() - 1) * step, Dtype::f32, 1, t.size(), t.size()};
  const auto of_rank = [&](int r) { return slice(sums, r, size()); };
  exchange(
      &stream, "all-reduce",
      [&](int r) { return r == rank_ ? Bytes() : bytes_of(slice(all, r, size())); },
      [&](int r) { return r == rank_ ? Bytes() : bytes_of(others.row_slice(r - (r > rank_), 1)); });
  launch<SumParts>(stream, blocks_of(mine), {others, mine, of_rank(rank_)});
  exchange(
      &stream, "all-reduce", [&](int) { return bytes_of(of_rank(rank_)); },
      [&](int r) { return bytes_of(of_rank(r)); });
  launch<Widen>(stream, blocks_of(all), {sums, all});
}

// --- of host values ------------------------------------------------------------------------------

std::vector<std::string> Comm::gather(const std::string& mine) {
  std::vector<std::string> all(ranks_.size());
  std::vector<int64_t> lengths(ranks_.size());
  int64_t length = int64_t(mine.size());
  std::string text = mine;
  exchange(
      nullptr, "gather", [&](int) { return std::as_writable_bytes(std::span(&length, 1)); },
      [&](int r) { return std::as_writable_bytes(std::span(&lengths[size_t(r)], 1)); });
  for (size_t r = 0; r < all.size(); r++) all[r].resize(size_t(lengths[r]));
  exchange(
      nullptr, "gather", [&](int) { return bytes_of(text); },
      [&](int r) { return bytes_of(all[size_t(r)]); });
  return all;
}

void Comm::require_same(const std::string& what, const std::string& text) {
  const std::vector<std::string> all = gather(text);
  for (size_t r = 1; r < all.size(); r++)
    require(all[r] == all[0], what, ": rank ", ranks_[0], " has '", all[0], "', rank ", ranks_[r],
        " has '", all[r], "'; all ranks need the same");
}

}  // namespace duet
