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
  for (size_t i = 0; i < choice.size(); ++i) {
    if (choice[i] < 0) continue;
    const int64_t row = next[size_t(choice[i])]++;
    pos[i] = int32_t(row);
    token[size_t(row)] = int32_t(int64_t(i) / topk);
  }
}

ExchangePlan::ExchangePlan(const std::vector<std::vector<int32_t>>& choices, int64_t topk,
    int64_t slots, int me, const Pieces& segments) {
  const int64_t ranks = int64_t(choices.size());
  const std::vector<int32_t>& mine = choices[size_t(me)];

  // What I send: the ranks of each token.
  std::vector<int32_t> to(mine.size());
  for (size_t i = 0; i < mine.size(); ++i) to[i] = int32_t(mine[i] / slots);
  for (auto token = to.begin(); token != to.end(); token += topk) {
    std::sort(token, token + topk);
    std::fill(std::unique(token, token + topk), token + topk, -1);
  }
  leave = DispatchPlan(to, topk, ranks);

  // What I receive, and where its results go.
  std::vector<int32_t> here, from;  // [received, topk] slots of mine, or -1; [received] the source
  std::vector<int64_t> segment;     // [received]
  received = {0};
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const std::vector<int32_t>& theirs = choices[size_t(rank)];
    for (size_t t = 0; t < theirs.size(); t += size_t(topk)) {
      const size_t before = here.size();
      bool any = false;
      for (size_t j = t; j < t + size_t(topk); ++j) {
        const bool is_here = theirs[j] / slots == me;
        here.push_back(is_here ? int32_t(theirs[j] - me * slots) : -1);
        any |= is_here;
      }
      if (any) {
        from.push_back(int32_t(rank));
        segment.push_back(segments.segment(int64_t(t) / topk));
      } else {
        here.resize(before);
      }
    }
    received.push_back(int64_t(from.size()));
  }
  local = DispatchPlan(here, topk, slots);
  cut(segment, from);
  std::vector<int32_t> home;  // [rows]
  for (int32_t row : local.token) home.push_back(from[size_t(row)]);
  back = DispatchPlan(home, 1, ranks);

  // What of mine comes back: from each rank in its expert order.
  DispatchPlan all(mine, topk, ranks * slots);
  pos = std::move(all.pos);
  for (int64_t rank = 0; rank <= ranks; ++rank)
    returned.push_back(all.offsets[size_t(rank * slots)]);
}

void ExchangePlan::cut(std::span<const int64_t> segment, std::span<const int32_t> from) {
  pieces = {0};
  for (size_t slot = 0; slot + 1 < local.offsets.size(); ++slot)
    for (int64_t row = local.offsets[slot]; row < local.offsets[slot + 1]; ++row) {
      const size_t token = size_t(local.token[size_t(row)]);
      const size_t before = row > 0 ? size_t(local.token[size_t(row) - 1]) : token;
      if (row > pieces.back() &&
          (row == local.offsets[slot] || row - pieces.back() == kMaxPiece ||
              segment[token] != segment[before] || from[token] != from[before]))
        pieces.push_back(row);
    }
  if (local.offsets.back() > pieces.back()) pieces.push_back(local.offsets.back());
}

}  // namespace duet
