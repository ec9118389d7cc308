// V-Half and V-Min of "Pipeline Parallelism with Controllable Memory" (Qi et al., 2024, section 3):
// half, or a third, of 1F1B's activations.
//
// Two stages a rank in a V, as under ZBV. How many activations a rank keeps is how long a
// microbatch's are there; that depends on how steeply its pattern goes down the ranks and up again,
// and balances over them: what comes early to a rank on its way down comes late on its way up.
// Read next: dualpipe.cpp.
#include <array>

#include "pipeline/schedule/published/published.h"

namespace duet {

// One microbatch's pattern: down the V and back up, forward and backward, `down` actions from a
// rank to the one below it and one to the one above. Every rank does six actions a microbatch, and
// patterns follow six apart, so that no two actions of a rank may be at the same time modulo six:
// the pattern waits where it turns, as long as it must. Ws take the two places that are left.
static Schedule v_pattern(const char* name, const ScheduleSize& size, int down) {
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

Schedule v_half(const ScheduleSize& size) { return v_pattern("v-half", size, 2); }
Schedule v_min(const ScheduleSize& size) { return v_pattern("v-min", size, 1); }

}  // namespace duet
