// See dispatch_plan.h.
#include "moe/dispatch_plan.h"

namespace duet {

// A counting sort.
DispatchPlan::DispatchPlan(std::span<const int32_t> choice, int64_t topk, int64_t slots)
    : offsets(size_t(slots) + 1), pos(choice.size(), -1) {
  for (int32_t slot : choice)
    if (slot >= 0) ++offsets[size_t(slot) + 1];
  for (size_t s = 0; s < size_t(slots); ++s) offsets[s + 1] += offsets[s];
  token.resize(size_t(offsets.back()));
  std::vector<int64_t> next(offsets.begin(), offsets.end() - 1);
  for (size_t i = 0; i < choice.size(); ++i) {
    if (choice[i] < 0) continue;
    const int64_t row = next[size_t(choice[i])]++;
    pos[i] = int32_t(row);
    token[size_t(row)] = int32_t(int64_t(i) / topk);
  }
}

ExchangePlan::ExchangePlan(
    const std::vector<std::vector<int32_t>>& choices, int64_t topk, int64_t slots, int me) {
  const int ranks = int(choices.size());
  const std::vector<int32_t>& mine = choices[size_t(me)];
  send_pos.assign(mine.size(), -1);
  pos.assign(mine.size(), -1);
  sent = received = back_sent = back_received = {0};

  // What I send, and what of it comes back.
  int32_t back = 0;
  std::vector<int> copies(mine.size() / size_t(topk));  // of each token, sent so far
  for (int to = 0; to < ranks; ++to) {
    for (size_t t = 0; t < copies.size(); ++t) {
      bool goes = false;
      for (size_t j = t * size_t(topk); j < (t + 1) * size_t(topk); ++j) {
        if (mine[j] / slots != to) continue;
        pos[j] = back++;
        goes = true;
      }
      if (!goes) continue;
      send_pos[t * size_t(topk) + size_t(copies[t]++)] = int32_t(send_token.size());
      send_token.push_back(int32_t(t));
    }
    sent.push_back(int64_t(send_token.size()));
    back_received.push_back(back);
  }

  // What I receive, and what of it goes back.
  std::vector<int32_t> here;  // [received, topk] slots of mine, or -1
  int64_t goes_back = 0;
  for (int from = 0; from < ranks; ++from) {
    const std::vector<int32_t>& theirs = choices[size_t(from)];
    for (size_t t = 0; t < theirs.size(); t += size_t(topk)) {
      const size_t before = here.size();
      int64_t found = 0;
      for (size_t j = t; j < t + size_t(topk); ++j) {
        const bool is_here = theirs[j] / slots == me;
        here.push_back(is_here ? int32_t(theirs[j] - me * slots) : -1);
        found += is_here;
      }
      if (!found) here.resize(before);
      goes_back += found;
    }
    received.push_back(int64_t(here.size()) / topk);
    back_sent.push_back(goes_back);
  }
  local = DispatchPlan(here, topk, slots);
  back_from.resize(local.token.size());
  for (int32_t row : local.pos) {
    if (row < 0) continue;
    back_from[size_t(row)] = int32_t(back_row.size());
    back_row.push_back(row);
  }
}

}  // namespace duet
