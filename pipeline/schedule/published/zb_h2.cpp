// ZB-H2 of "Zero Bubble Pipeline Parallelism" (Qi et al., 2023, section 3), and the rule behind it.
//
// Enough Fs before the first I that no rank ever waits between its first and its last action: rank
// r starts 2 (P - r) - 1 of them, and keeps up to 2P - 1 activations for it. Ws wait on the lower
// ranks, so that these hurry through their last Is. With equal costs nothing is idle from a rank's
// first action to its last, and (P-1) (F + I - 2 W) where W is shorter than F and I.
//
// The same rule for other costs is what `duet plan` calls zb2p.
// Read next: zbv.cpp.
#include <algorithm>
#include <cmath>

#include "pipeline/schedule/published/published.h"

namespace duet {

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

Schedule zb_h2(const ScheduleSize& size) { return zero_bubble("zb-h2", size, {1, 1, 1, 3}, 1); }

}  // namespace duet
