// See migration.h.
#include "moe/migration.h"

#include <algorithm>

#include "model/machine/launch.h"
#include "model/rows/list.h"

namespace duet {

namespace {

constexpr int64_t kPiece = 1 << 20;  // elements of an expert's matrix that travel at a time

struct Move {
  int from, to;  // slots
};

// For each slot that changes, where its new expert is now: on the same rank if it is there, else
// replicas take turns.
std::vector<Move> moves_between(const ExpertPlacement& now, const ExpertPlacement& next) {
  std::vector<Move> moves;
  for (int to = 0; to < next.replicas(); ++to) {
    const int e = next.phy2log[size_t(to)];
    if (e == now.phy2log[size_t(to)]) continue;
    const std::span<const int32_t> slots = now.slots_of(e);
    const auto here = std::find_if(
        slots.begin(), slots.end(), [&](int s) { return now.gpu_of(s) == next.gpu_of(to); });
    moves.push_back(
        {here != slots.end() ? *here : slots[size_t(next.gpu_of(to)) % slots.size()], to});
  }
  return moves;
}

void wait_all(Comm& group, Stream& stream, const std::vector<Request>& requests) {
  for (const Request& request : requests) group.wait(stream, request);
}

// One piece of one matrix's state: everything into scratch first, then into place.
void move_piece(Comm& group, Device& device, const std::vector<Move>& moves, int slots,
    const std::function<Tensor(int)>& piece_of) {
  Stream& stream = device.compute();
  const int me = group.rank();
  const Tensor shape = piece_of(0);  // [1, n]
  const int64_t arriving =
      std::count_if(moves.begin(), moves.end(), [&](const Move& m) { return m.to / slots == me; });
  Buf scratch;
  if (arriving) scratch = device.buffer(arriving, shape.cols, shape.dtype, Use::messages);
  std::vector<std::pair<Tensor, Tensor>> places;  // from scratch, to its slot
  std::vector<Request> requests;
  for (const Move& m : moves) {
    const int sender = m.from / slots, receiver = m.to / slots;
    if (receiver == me) {
      const Tensor row = scratch->row_slice(int64_t(places.size()), 1);
      places.emplace_back(row, piece_of(m.to % slots));
      if (sender == me)
        stream.copy(row.data, piece_of(m.from % slots).data, size_t(row.bytes()));
      else
        requests.push_back(group.irecv(stream, row, sender, {Tag::W, 0, 0}));
    } else if (sender == me) {
      requests.push_back(group.isend(stream, piece_of(m.from % slots), receiver, {Tag::W, 0, 0}));
    }
  }
  wait_all(group, stream, requests);
  for (const auto& [from, to] : places) stream.copy(to.data, from.data, size_t(from.bytes()));
}

}  // namespace

void migrate(Comm& group, Device& device, Moe& moe, const ExpertPlacement& to) {
  const std::vector<Move> moves = moves_between(moe.placement(), to);
  const int slots = to.slots_per_gpu();
  for (Tensor Param::*state : {&Param::master, &Param::m, &Param::v})
    for (size_t matrix = 0; matrix < 3; ++matrix) {
      const int64_t size = (moe.slot(0)[matrix]->*state).size();
      for (int64_t at = 0; at < size; at += kPiece)
        move_piece(group, device, moves, slots, [&](int slot) {
          return (moe.slot(slot)[matrix]->*state)
              .reshape(1, size)
              .col_slice(at, std::min(kPiece, size - at));
        });
    }
  moe.set_placement(to);
}

// The rank of an expert's first slot adds, in the order of slots, and sends the sum to the others.
void sum_replicas(Comm& group, Device& device, Moe& moe) {
  Stream& stream = device.compute();
  const ExpertPlacement& p = moe.placement();
  if (p.max_count == 1) return;
  const int me = group.rank(), slots = p.slots_per_gpu();
  for (size_t matrix = 0; matrix < 3; ++matrix) {
    const auto grad = [&](int slot) { return moe.slot(slot % slots)[matrix]->grad[0]; };
    // fn(first slot of an expert, one of its further slots)
    const auto for_each_further = [&](const auto& fn) {
      for (int e = 0; e < p.experts(); ++e)
        for (int s : p.slots_of(e).subspan(1)) fn(p.slots_of(e)[0], s);
    };
    std::vector<std::pair<Tensor, Tensor>> sums;  // first += second
    std::vector<Buf> arrived;
    std::vector<Request> requests;
    for_each_further([&](int first, int s) {
      const int adder = p.gpu_of(first), holder = p.gpu_of(s);
      if (adder == me && holder == me) {
        sums.emplace_back(grad(first), grad(s));
      } else if (adder == me) {
        const Tensor shape = grad(first);
        arrived.push_back(device.buffer(shape.rows, shape.cols, shape.dtype, Use::messages));
        sums.emplace_back(shape, *arrived.back());
        requests.push_back(group.irecv(stream, arrived.back(), holder, {Tag::W, 0, 0}));
      } else if (holder == me) {
        requests.push_back(group.isend(stream, grad(s), adder, {Tag::W, 0, 0}));
      }
    });
    wait_all(group, stream, requests);
    for (const auto& [to, from] : sums) launch<Add>(stream, to.rows, {.x = from, .y = to});
    requests.clear();
    for_each_further([&](int first, int s) {
      const int adder = p.gpu_of(first), holder = p.gpu_of(s);
      if (adder == me && holder == me)
        stream.copy(grad(s).data, grad(first).data, size_t(grad(s).bytes()));
      else if (adder == me)
        requests.push_back(group.isend(stream, grad(first), holder, {Tag::W, 0, 1}));
      else if (holder == me)
        requests.push_back(group.irecv(stream, grad(s), adder, {Tag::W, 0, 1}));
    });
    wait_all(group, stream, requests);
  }
}

}  // namespace duet
