// See dispatch_plan.h.
#include "moe/dispatch_plan.h"

#include <algorithm>

namespace duet {

// A counting sort.
DispatchPlan::DispatchPlan(std::span<const int32_t> choice, int64_t topk, int64_t places)
    : offsets(size_t(places) + 1), pos(choice.size(), -1) {
  for (int32_t place : choice)
    if (place >= 0) ++offsets[size_t(place) + 1];
  for (size_t p = 0; p < size_t(places); ++p) offsets[p + 1] += offsets[p];
  token.resize(size_t(offsets.back()));
  std::vector<int64_t> next(offsets.begin(), offsets.end() - 1);
  int32_t of = 0;
  for (size_t begin = 0; begin < choice.size(); begin += size_t(topk), ++of)
    for (size_t i = begin; i < begin + size_t(topk); ++i) {
      if (choice[i] < 0) continue;
      const int64_t row = next[size_t(choice[i])]++;
      pos[i] = int32_t(row);
      token[size_t(row)] = of;
    }
}

// A token to each rank once.
static DispatchPlan tokens_to_ranks(
    const std::vector<int32_t>& choice, int64_t topk, int64_t ranks, int64_t slots) {
  std::vector<int32_t> rank_of(size_t(ranks * slots));
  for (size_t slot = 0; slot < rank_of.size(); ++slot) rank_of[slot] = int32_t(slot) / int(slots);
  std::vector<int32_t> to(choice.size()), last(size_t(ranks), -1);  // [ranks] the token sent there
  for (int32_t i = 0, token = 0; size_t(i) < choice.size(); ++token)
    for (const int32_t end = i + int32_t(topk); i < end; ++i) {
      const int32_t rank = rank_of[size_t(choice[size_t(i)])];
      to[size_t(i)] = last[size_t(rank)] == token ? -1 : rank;
      last[size_t(rank)] = token;
    }
  return {to, topk, ranks};
}

ExchangePlan::ExchangePlan(const std::vector<std::vector<int32_t>>& choices, int64_t topk,
    int64_t slots, int me, const Pieces& segments) {
  const int64_t ranks = int64_t(choices.size());
  const std::vector<int32_t>& mine = choices[size_t(me)];

  leave = tokens_to_ranks(mine, topk, ranks, slots);

  // What I receive: everyone's choices are looked at, and most are others'.
  struct Source {
    int32_t rank, segment;
    bool operator==(const Source&) const = default;
  };
  std::vector<Source> from;   // [received]
  std::vector<int32_t> here;  // [received, topk] my slots, or -1
  const std::vector<int32_t> segment_of = segments.segments();
  from.reserve(mine.size());
  here.reserve(size_t(topk) * mine.size());
  received = {0};
  for (int32_t rank = 0; rank < ranks; ++rank) {
    const std::vector<int32_t>& theirs = choices[size_t(rank)];
    const auto slot = [&](size_t i) { return uint32_t(theirs[i]) - uint32_t(me * slots); };
    for (size_t i = 0, t = 0; i < theirs.size(); i += size_t(topk), ++t) {
      bool any = false;
      for (size_t k = 0; k < size_t(topk); ++k) any |= slot(i + k) < uint32_t(slots);
      if (!any) continue;
      from.push_back({rank, segment_of[t]});
      for (size_t k = 0; k < size_t(topk); ++k)
        here.push_back(slot(i + k) < uint32_t(slots) ? int32_t(slot(i + k)) : -1);
    }
    received.push_back(int64_t(from.size()));
  }
  local = DispatchPlan(here, topk, slots);
  std::vector<int32_t> home(local.token.size());  // [rows]
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t first = local.offsets[size_t(slot)];
    for (int64_t row = first; row < local.offsets[size_t(slot) + 1]; ++row) {
      const Source& source = from[size_t(local.token[size_t(row)])];
      home[size_t(row)] = source.rank;
      if (row == first || source != from[size_t(local.token[size_t(row) - 1])] ||
          row - pieces.back() == kMaxPiece)
        pieces.push_back(row);
    }
  }
  pieces.push_back(local.offsets.back());
  back = DispatchPlan(home, 1, ranks);

  // What of mine comes back: from each rank in its expert order.
  DispatchPlan all(mine, topk, ranks * slots);
  pos = std::move(all.pos);
  for (int64_t rank = 0; rank <= ranks; ++rank)
    returned.push_back(all.offsets[size_t(rank * slots)]);
}

}  // namespace duet
