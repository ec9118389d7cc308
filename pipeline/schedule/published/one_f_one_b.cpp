// 1F1B (PipeDream-Flush: Narayanan et al., 2021, "Memory-Efficient Pipeline-Parallel DNN Training",
// section 3.2).
//
// A backward runs as soon as it can: idle time (P-1)(F+B) as in GPipe, but rank r holds only P-r
// activations instead of M.
// Read next: interleaved.cpp.
#include <algorithm>

#include "pipeline/schedule/published/published.h"

namespace duet {

Schedule one_f_one_b(const ScheduleSize& size) {
  const int P = size.pp, M = size.microbatches;
  Schedule s = looped("1f1b", size, 1);
  for (int rank = 0; rank < P; ++rank) {
    RankList list(s.ranks[rank]);
    Chunk chunk{rank, 0, M};
    const int warmup = std::min(M, P - rank);
    // Warm-up: until the first microbatch can have come back.
    repeat(warmup, [&] { list.F(chunk); });
    // Steady state: one backward, one forward.
    repeat(M - warmup, [&] { list.B(chunk), list.F(chunk); });
    // Cool-down.
    repeat(warmup, [&] { list.B(chunk); });
  }
  return s;
}

}  // namespace duet
