// See layout.h. The schedules that a rule makes.
#include "pipeline/insight/plan/layout.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "pipeline/schedule/published/published.h"

namespace duet {
namespace {

// Warms up with as many Fs as a rank has time for until its first gradient comes, two fewer than
// the rank before it at least; then I, W, F. Ws wait, the more the further down: by the time in
// which a gradient goes up to the first rank and a microbatch comes down, so that the last ranks
// hurry through their last Is, which is what the first wait for, and end with Ws. A rank keeps no
// more than 2P activations, of each of which `waiting` is there until its W.
Schedule zero_bubble(
    const char* name, const ScheduleSize& size, const StageCosts& costs, double waiting) {
  const int P = size.pp, M = size.microbatches;
  Schedule s = looped(name, size, 1);
  for (int rank = 0; rank < P; ++rank) {
    const int below = P - 1 - rank;
    const double trip = costs.F + costs.I, least = 1e-6 * trip + 1e-300;
    const int warm_up = int(std::min(
        {double(M), 2.0 * (P - rank), std::ceil(1 + below * trip / std::max(costs.F, least))}));
    const double held =
        std::min(rank * std::ceil(trip / std::max(costs.W, least)), (2 * P - warm_up) / waiting);
    RankList list(s.ranks[rank]);
    Chunk chunk{rank, 0, M};
    repeat(warm_up, [&] { list.F(chunk); });
    repeat(M, [&] {
      list.I(chunk);
      if (chunk.b - chunk.w > held) list.W(chunk);
      list.F(chunk);
    });
    while (chunk.w < M) list.W(chunk);
  }
  return s;
}

// One microbatch's pattern: down the V and back up, forward and backward, `down` actions from a
// rank to the one below it and one to the one above. Every rank does six actions a microbatch, and
// patterns follow six apart, so that no two actions of a rank may be at the same time modulo six:
// the pattern waits where it turns, as long as it must. Ws take the two places that are left.
Schedule v_pattern(const char* name, const ScheduleSize& size, int down) {
  const int P = size.pp, M = size.microbatches;
  Schedule s = v_shaped(name, size);
  struct Place {
    int time = -1;  // of the first microbatch; -1: free
    Action action;
  };
  std::vector<std::array<Place, 6>> pattern;  // by rank
  std::vector<int> i_done(2 * P);
  const auto put = [&](Kind kind, int stage, int time) {
    Place& place = pattern[s.rank_of[stage]][time % 6];
    const bool free = place.time < 0;
    place = {time, {kind, stage}};
    return free;
  };
  // waits: below, at the loss, below again
  const auto fits = [&](int below, int loss, int below_again) {
    pattern.assign(P, {});
    int time = -down;
    bool free = true;
    for (int stage = 0; stage < 2 * P; ++stage)
      free &= put(Kind::F, stage, time += stage < P ? down : stage == P ? below : 1);
    for (int stage = 2 * P; stage-- > 0; i_done[stage] = time)
      free &= put(Kind::I, stage,
          time += stage == 2 * P - 1 ? loss
              : stage >= P           ? down
              : stage == P - 1       ? below_again
                                     : 1);
    return free;
  };
  const auto fits_in = [&](int waits) {
    for (int a = 1; a < waits - 1; ++a)
      for (int b = 1; a + b < waits; ++b)
        if (fits(a, b, waits - a - b)) return true;
    return false;
  };
  for (int waits = 3; !fits_in(waits);) ++waits;
  for (int stage = 2 * P; stage-- > 0;) {
    int time = i_done[stage] + 1;
    while (pattern[s.rank_of[stage]][time % 6].time >= 0) ++time;
    put(Kind::W, stage, time);
  }
  for (int rank = 0; rank < P; ++rank)
    for (int now = 0; int(s.ranks[rank].size()) < 6 * M; ++now) {
      const auto& [first, action] = pattern[rank][now % 6];
      const int m = (now - first) / 6;
      if (now >= first && m < M) s.ranks[rank].push_back({action.kind, action.stage, m});
    }
  return s;
}

}  // namespace

double longest_span(const Timing& timing) {
  double longest = 0;
  for (const auto& spans : timing.spans)
    longest = std::max(longest, spans.back().end - spans.front().start);
  return longest;
}

Schedule planned_schedule(
    const std::string& name, const ScheduleSize& size, const StageCosts& costs, double waiting) {
  if (name == "v-min") return v_pattern("v-min", size, 1);
  if (name == "v-half") return v_pattern("v-half", size, 2);
  if (name == "zb-h2") return zero_bubble("zb-h2", size, {1, 1, 1, 3}, 1);
  if (name == "zb2p") return zero_bubble("zb2p", size, costs, waiting);
  return make_schedule(name, size);
}

}  // namespace duet
