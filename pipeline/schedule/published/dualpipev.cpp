// DualPipeV ("cut in half" DualPipe; Sea AI Lab, 2025, and DeepSeek's DualPipe repository):
// DualPipe folded in the middle.
//
// DualPipe's second half of ranks mirrors its first. Fold it onto the first and the two directions
// become the two arms of one V: 2P stages on P ranks, stages r and 2P-1-r, no weights held twice;
// the steps are DualPipe's with H = P. Each chunk is half of a rank's share of the model. Peak 2P+1
// half chunks. Odd M is fine.
// Read next: run_list.h.
#include "pipeline/schedule/published/published.h"

namespace duet {

Schedule dualpipev(const ScheduleSize& size) {
  const int P = size.pp, M = size.microbatches;
  require(M >= 2 * P, "--microbatches: dualpipev needs at least 2 per rank, ", 2 * P, " for --pp ",
      P, ", found ", M);
  Schedule s = v_shaped("dualpipev", size);
  for (int r = 0; r < P; ++r)
    s.ranks[r] = dualpipe_steps(P, r, M, Chunk{r, 0, M}, Chunk{2 * P - 1 - r, 0, M});
  return s;
}

}  // namespace duet
