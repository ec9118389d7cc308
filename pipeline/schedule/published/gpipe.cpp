// GPipe (Huang et al., 2019, section 2.3): all forwards, then all backwards.
//
// Backwards run in the order 0 .. M-1, as forwards do. Idle time (P-1)(F+B); every rank holds M
// activations, which is what 1F1B mends.
// Read next: one_f_one_b.cpp.
#include "pipeline/schedule/published/published.h"

namespace duet {

Schedule gpipe(const ScheduleSize& size) {
  Schedule s = looped("gpipe", size, 1);
  for (int rank = 0; rank < size.pp; ++rank) {
    RankList list(s.ranks[rank]);
    Chunk chunk{rank, 0, size.microbatches};
    repeat(size.microbatches, [&] { list.F(chunk); });
    repeat(size.microbatches, [&] { list.B(chunk); });
  }
  return s;
}

}  // namespace duet
