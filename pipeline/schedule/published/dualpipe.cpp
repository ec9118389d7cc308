// DualPipe (DeepSeek-V3 technical report, 2024, section 3.2.1 and figure 5): microbatches enter at
// both ends of the pipeline.
//
// Rank r holds stage r of the first direction and stage 2P-1-r of the second, which computes what
// stage P-1-r does: every stage is held twice, on mirrored ranks. In the steady state a forward of
// one direction meets a backward of the other, and the two overlap: the all-to-alls of one hide
// behind the computation of the other. That is the point; the smaller bubble comes along. Figures:
// each rank holds P+1 activations; for the idle time see README.md.
// Read next: dualpipev.cpp.
#include "pipeline/schedule/published/published.h"

namespace duet {

// Let H = half. Chunk a is of the direction that enters at the rank's nearer end, b of the other:
// a's data arrive first.
std::vector<Action> dualpipe_steps(int H, int h, int m, Chunk a, Chunk b) {
  std::vector<Action> actions;
  RankList list(actions);
  const int outer = H - h - 1;  // ranks between this one and the middle
  const bool middle = outer == 0;

  // Step 1: nF0. The nearer direction flows in.
  repeat(2 * outer, [&] { list.F(a); });

  // Step 2: nF0F1. The other direction has arrived.
  repeat(h + 1, [&] { list.F(a), list.F(b); });

  // Step 3: nB1W1F1. Backwards of the other direction return first; for inputs only, so that they
  // go on at once.
  repeat(outer, [&] { list.I(b), list.W(), list.F(b); });

  // Step 4 (main step): nF0B1F1B0. Each pair overlaps a forward with a backward of the other
  // direction. In the middle, where both directions come last, the first pair would make the
  // neighbour wait for its F: it is run one after the other.
  for (int i = 0; i < m - 2 * H + h + 1; ++i) {
    if (middle && i == 0)
      list.F(a), list.B(b);
    else
      list.overlap(a, b);
    list.overlap(b, a);
  }

  // Step 5: nB1F1B0. No forwards are left in the nearer direction.
  repeat(outer, [&] { list.B(b), list.overlap(b, a); });

  // Step 6: nB1B0. Backwards only; the second half of them for inputs only: the Ws will fill the
  // gaps of steps 7 and 8.
  for (int i = 0; i < 2 * (h + 1); ++i) {
    Chunk& chunk = i % 2 == 0 ? b : a;
    if (i < h + 1)
      list.B(chunk);
    else
      list.I(chunk);
  }

  // Step 7: nWB0.
  repeat(outer, [&] { list.W(), list.I(a); });

  // Step 8: nW.
  repeat(h + 1, [&] { list.W(); });
  return actions;
}

Schedule dualpipe(const ScheduleSize& size) {
  const int P = size.pp, M = size.microbatches;
  require(P % 2 == 0, "--pp: dualpipe needs an even number of ranks, found ", P);
  require(M % 2 == 0,
      "--microbatches: dualpipe needs an even number (half of them in each direction), found ", M);
  require(M >= 2 * P, "--microbatches: dualpipe needs at least 2 per rank, ", 2 * P, " for --pp ",
      P, ", found ", M);
  Schedule s = v_shaped("dualpipe", size);
  s.two_directions = true;
  const int m = M / 2;
  for (int r = 0; r < P; ++r) {
    const Chunk down{r, 0, m}, up{2 * P - 1 - r, m, M};
    const bool first_half = r < P / 2;
    s.ranks[r] = first_half ? dualpipe_steps(P / 2, r, m, down, up)
                            : dualpipe_steps(P / 2, P - 1 - r, m, up, down);
  }
  return s;
}

}  // namespace duet
