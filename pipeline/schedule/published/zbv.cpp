// ZBV ("Zero Bubble Pipeline Parallelism", Qi et al., 2023, section 6): zero bubble over a V.
//
// Two chunks a rank, stages r and 2P-1-r, each half of a rank's share of the model: the last stage
// is on rank 0 again, so that rank can start its backwards early. With F = I = W and M >= 2P-1 no
// rank idles between its first and its last action; peak activations 2P half chunks, the memory of
// 1F1B's rank 0 on every rank.
// Read next: v_half.cpp.
#include <algorithm>

#include "pipeline/schedule/published/published.h"

namespace duet {

Schedule zbv(const ScheduleSize& size) {
  const int P = size.pp, M = size.microbatches;
  Schedule s = v_shaped("zbv", size);
  for (int r = 0; r < P; ++r) {
    RankList list(s.ranks[r]);
    Chunk c0{r, 0, M}, c1{2 * P - 1 - r, 0, M};  // what is beyond M is counted but not emitted
    const int n = std::max(M, 2 * P - 1);

    // Warm-up: down the V; the way back up arrives; the first backwards at the end of the V.
    repeat(2 * (P - r) - 1, [&] { list.F(c0); });
    repeat(r, [&] { list.F(c1), list.F(c0); });
    repeat(P - r, [&] { list.F(c1), list.I(c1), list.W(c1); });
    // Steady state.
    while (c1.f < c0.f || c0.f < n) {
      if (c0.f < n) list.F(c0);
      list.I(c0), list.W(c0);
      list.F(c1), list.I(c1), list.W(c1);
    }
    // Cool-down: Is first, Ws fill what is left.
    repeat(r, [&] { list.I(c0), list.I(c1); });
    repeat(P - r, [&] { list.I(c0), list.W(c0); });
    while (c1.w < c1.b) list.W(c1);
    while (c0.w < c0.b) list.W(c0);
  }
  return s;
}

}  // namespace duet
