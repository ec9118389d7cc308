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

ExchangePlan::ExchangePlan(const std::vector<std::vector<int32_t>>& choices, int64_t topk,
    int64_t slots, int me, const Pieces& segments) {
  const int64_t ranks = int64_t(choices.size());
  const std::vector<int32_t>& mine = choices[size_t(me)];

  // What I send: the ranks of each token.
  std::vector<int32_t> rank_of(size_t(ranks * slots));
  for (size_t slot = 0; slot < rank_of.size(); ++slot) rank_of[slot] = int32_t(slot) / int(slots);
  std::vector<int32_t> to(mine.size());
  for (size_t i = 0; i < mine.size(); ++i) to[i] = rank_of[size_t(mine[i])];
  for (auto token = to.begin(); token != to.end(); token += topk) {
    std::sort(token, token + topk);
    std::fill(std::unique(token, token + topk), token + topk, -1);
  }
  leave = DispatchPlan(to, topk, ranks);

  // What I receive, and where its results go. Everyone's choices are looked at, and most are
  // others'.
  std::vector<int64_t> segment_of(size_t(segments.sequences * segments.seq_len));
  for (size_t t = 0; t < segment_of.size(); ++t) segment_of[t] = segments.segment(int64_t(t));
  std::vector<std::vector<int32_t>> rows(static_cast<size_t>(slots));  // of each slot, the tokens
  std::vector<std::pair<int32_t, int64_t>> from;                       // [received] source, segment
  received = {0};
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const std::vector<int32_t>& theirs = choices[size_t(rank)];
    for (size_t i = 0, t = 0; i < theirs.size(); ++t) {
      const int32_t token = int32_t(from.size());
      bool any = false;
      for (const size_t end = i + size_t(topk); i < end; ++i)
        if (const uint32_t slot = uint32_t(theirs[i]) - uint32_t(me * slots); slot < rows.size()) {
          rows[slot].push_back(token);
          any = true;
        }
      if (!any) continue;
      from.emplace_back(rank, segment_of[t]);
    }
    received.push_back(int64_t(from.size()));
  }
  std::vector<int32_t> home;  // [rows]
  local.offsets = {0};
  for (const std::vector<int32_t>& of_slot : rows) {
    for (size_t i = 0; i < of_slot.size(); ++i) {
      const int64_t row = int64_t(local.token.size());
      const auto& source = from[size_t(of_slot[i])];
      if (i == 0 || source != from[size_t(of_slot[i - 1])] || row - pieces.back() == kMaxPiece)
        pieces.push_back(row);
      local.token.push_back(of_slot[i]);
      home.push_back(source.first);
    }
    local.offsets.push_back(int64_t(local.token.size()));
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
