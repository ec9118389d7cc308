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
    const auto here =
        std::ranges::find(slots, next.gpu_of(to), [&](int s) { return now.gpu_of(s); });
    moves.push_back(
        {here != slots.end() ? *here : slots[size_t(next.gpu_of(to)) % slots.size()], to});
  }
  return moves;
}

// What lies at source(slot) on the rank of each move's `from` goes to target(move) on the rank of
// its `to`, all at once.
void send_all(Comm& group, Stream& stream, const std::vector<Move>& moves, int slots,
    const std::function<Tensor(int slot)>& source,
    const std::function<Tensor(const Move&)>& target) {
  const Tag tag{Tag::W, 0, 0};
  std::vector<Request> requests;
  for (const Move& m : moves) {
    const int sender = m.from / slots, receiver = m.to / slots;
    if (sender == group.rank() && receiver == group.rank()) {
      const Tensor from = source(m.from % slots), to = target(m);
      if (from.data != to.data) stream.copy(to.data, from.data, size_t(from.bytes()));
    } else if (receiver == group.rank()) {
      requests.push_back(group.irecv(stream, target(m), sender, tag));
    } else if (sender == group.rank()) {
      requests.push_back(group.isend(stream, source(m.from % slots), receiver, tag));
    }
  }
  for (const Request& request : requests) group.wait(stream, request);
}

// One piece of one matrix's state: everything into scratch first, then into place.
void move_piece(Comm& group, Device& device, const std::vector<Move>& moves, int slots,
    const std::function<Tensor(int slot)>& piece_of) {
  Stream& stream = device.compute();
  std::vector<std::pair<Tensor, Buf>> arrived;  // its place, and what has arrived
  send_all(group, stream, moves, slots, piece_of, [&](const Move& m) {
    const Tensor place = piece_of(m.to % slots);
    arrived.emplace_back(place, device.buffer(1, place.cols, place.dtype, Use::messages));
    return *arrived.back().second;
  });
  for (const auto& [place, piece] : arrived)
    stream.copy(place.data, piece->data, size_t(place.bytes()));
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

// The rank of an expert's first slot adds, and sends the sum to the others.
void sum_replicas(Comm& group, Device& device, Moe& moe) {
  Stream& stream = device.compute();
  const ExpertPlacement& p = moe.placement();
  const int slots = p.slots_per_gpu();
  std::vector<Move> there, back;  // of each expert's further slots
  for (int e = 0; e < p.experts(); ++e)
    for (int s : p.slots_of(e).subspan(1)) {
      there.push_back({s, p.slots_of(e)[0]});
      back.push_back({p.slots_of(e)[0], s});
    }
  for (size_t matrix = 0; matrix < 3; ++matrix) {
    const auto grad = [&](int slot) { return moe.slot(slot % slots)[matrix]->grad; };
    std::vector<std::pair<Tensor, Tensor>> sums;  // first += second
    std::vector<Buf> arrived;
    send_all(group, stream, there, slots, grad, [&](const Move& m) {
      Tensor from = grad(m.from);  // what is here already is added from where it is
      if (p.gpu_of(m.from) != group.rank())
        from =
            *arrived.emplace_back(device.buffer(from.rows, from.cols, from.dtype, Use::messages));
      sums.emplace_back(grad(m.to), from);
      return from;
    });
    for (const auto& [to, from] : sums) launch<Add>(stream, to.rows, {.x = from, .y = to});
    send_all(group, stream, back, slots, grad, [&](const Move& m) { return grad(m.to); });
  }
}

}  // namespace duet
