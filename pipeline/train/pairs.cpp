// See overlap.h.
#include "pipeline/train/pairs.h"

#include <algorithm>

namespace duet {

PairResult overlapped_pair(ForwardChunk f, BackwardChunk b) {
  Stage::ForwardPass forward(f.stage, f.microbatch, std::move(f.x), f.tokens);
  Stage::BackwardPass backward(b.stage, b.microbatch, std::move(b.dy), true);
  const size_t forwards = f.stage.layers(), backwards = b.stage.layers();
  for (size_t l = 0; l < std::max(forwards, backwards); ++l) {
    if (l < backwards) backward.combine();
    if (l < forwards) forward.attention();
    if (l < forwards) forward.shared();
    if (l < backwards) backward.shared();
    if (l < forwards) forward.dispatch();
    if (l < backwards) backward.experts();
    if (l < forwards) forward.experts();
    if (l < backwards) backward.attention();
  }
  PairResult result{forward.finish(), backward.finish()};
  b.stage.backward_weight(b.microbatch);  // if W was not due: it is held
  return result;
}

}  // namespace duet
