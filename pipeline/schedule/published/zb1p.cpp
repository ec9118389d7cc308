// ZB1P, the ZB-H1 of "Zero Bubble Pipeline Parallelism" (Qi et al., 2023, section 3).
//
// The backward is cut in two: I (for inputs), which the rank before waits for, and W (for weights),
// which nobody waits for. Rank r puts off its Ws by r microbatches and fills the gaps of the
// cool-down with them; so the later ranks hold as many activations as rank 0 does in 1F1B, P. Idle
// time (P-1)(F+I-min(F,I,W)) for M >= P.
// Read next: zb_h2.cpp.
#include <algorithm>

#include "pipeline/schedule/published/published.h"

namespace duet {

Schedule zb1p(const ScheduleSize& size) {
  const int P = size.pp, M = size.microbatches;
  Schedule s = looped("zb1p", size, 1);
  for (int rank = 0; rank < P; ++rank) {
    RankList list(s.ranks[rank]);
    Chunk chunk{rank, 0, M};
    // The W of rank r starts with its r-th I, counted from 0.
    const auto I_and_W = [&] {
      list.I(chunk);
      if (chunk.b > rank) list.W();
    };
    const int warmup = std::min(M, P - 1 - rank);
    repeat(warmup, [&] { list.F(chunk); });
    repeat(M - warmup, [&] { list.F(chunk), I_and_W(); });
    repeat(warmup, I_and_W);
    repeat(std::min(M, rank), [&] { list.W(); });
  }
  return s;
}

}  // namespace duet
