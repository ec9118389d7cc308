// V-Half and V-Min of "Pipeline Parallelism with Controllable Memory" (Qi et al., 2024, section 3):
// half, or a third, of 1F1B's activations.
//
// Two stages a rank in a V, as under ZBV. How many activations a rank keeps is how long a
// microbatch's are there; that depends on how steeply its pattern goes down the ranks and up again,
// and balances over them: what comes early to a rank on its way down comes late on its way up.
// Read next: dualpipe.cpp.
#include <algorithm>
#include <array>

#include "pipeline/schedule/published/published.h"

namespace duet {
namespace {

struct Place {
  int time = -1;  // of the first microbatch; -1: free
  Action action;
};
using Six = std::array<Place, 6>;

// One microbatch's pattern, by rank: down the V and back up, forward and backward, `down` actions
// from a rank to the one below it and one to the one above; it waits where it turns: below, at the
// loss, and below again. Every rank does six actions a microbatch, and patterns follow six apart,
// so that no two actions of a rank may be at the same time modulo six. Empty where two are.
std::vector<Six> pattern_of(const Schedule& s, int down, const std::array<int, 3>& waits) {
  const int P = s.pp;
  std::vector<Six> pattern(P);
  bool fits = true;
  const auto put = [&](Kind kind, int stage, int time) {
    Place& place = pattern[s.rank_of[stage]][time % 6];
    fits &= place.time < 0;
    place = {time, {kind, stage}};
  };
  int time = -down;
  for (int stage = 0; stage < 2 * P; ++stage)
    put(Kind::F, stage, time += stage < P ? down : stage == P ? waits[0] : 1);
  std::vector<int> i_done(2 * P);
  for (int stage = 2 * P; stage-- > 0; i_done[stage] = time)
    put(Kind::I, stage,
        time += stage == 2 * P - 1 ? waits[1]
            : stage >= P           ? down
            : stage == P - 1       ? waits[2]
                                   : 1);
  if (!fits) return {};
  for (int stage = 2 * P; stage-- > 0;) {  // Ws take the places that are left
    int free = i_done[stage] + 1;
    while (pattern[s.rank_of[stage]][free % 6].time >= 0) ++free;
    put(Kind::W, stage, free);
  }
  return pattern;
}

// The most activations that a rank keeps, where patterns have followed each other for long.
int most_kept(const std::vector<Six>& pattern) {
  int most = 0;
  for (const Six& six : pattern) {
    const int long_after = 6 * std::ranges::max(six, {}, &Place::time).time;
    for (int now = long_after; now < long_after + 6; ++now) {
      int kept = 0;
      for (const auto& [time, action] : six)
        kept += action.kind == Kind::F ? (now - time) / 6
            : action.kind == Kind::W   ? -((now - time - 1) / 6)
                                       : 0;
      most = std::max(most, kept);
    }
  }
  return most;
}

// The pattern that keeps least; of several the one that waits least, and last.
Schedule repeat_pattern(const char* name, const ScheduleSize& size, int down) {
  Schedule s = v_shaped(name, size);
  std::vector<Six> best;
  std::pair<int, int> least;
  for (int a = 6; a > 0; --a)
    for (int b = 1; b <= 6; ++b)
      for (int c = 1; c <= 6; ++c) {
        std::vector<Six> pattern = pattern_of(s, down, {a, b, c});
        if (pattern.empty()) continue;
        const std::pair cost(most_kept(pattern), a + b + c);
        if (best.empty() || cost < least) best = std::move(pattern), least = cost;
      }
  for (int rank = 0, M = size.microbatches; rank < s.pp; ++rank)
    for (int now = 0; int(s.ranks[rank].size()) < 6 * M; ++now) {
      const auto& [first, action] = best[rank][now % 6];
      const int m = (now - first) / 6;
      if (now >= first && m < M) s.ranks[rank].push_back({action.kind, action.stage, m});
    }
  return s;
}

}  // namespace

Schedule v_half(const ScheduleSize& size) { return repeat_pattern("v-half", size, 2); }
Schedule v_min(const ScheduleSize& size) { return repeat_pattern("v-min", size, 1); }

}  // namespace duet
