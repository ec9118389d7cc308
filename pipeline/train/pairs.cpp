// See pairs.h.
#include "pipeline/train/pairs.h"

#include <algorithm>

namespace duet {

// A layer of each; combine F is that of the layer before.
static constexpr Phase kOrder[] = {
    Phase::combine_i,
    Phase::combine_f,
    Phase::attention_f,
    Phase::router_f,
    Phase::shared_f,
    Phase::shared_i,
    Phase::dispatch_f,
    Phase::experts_i,
    Phase::experts_w,
    Phase::experts_f,
    Phase::dispatch_i,
    Phase::attention_i,
    Phase::attention_w,
};

PairResult overlapped_pair(ForwardChunk f, BackwardChunk b) {
  f.stage.begin_forward(f.microbatch, std::move(f.x), f.tokens);
  b.stage.begin_backward(b.microbatch, std::move(b.dy));
  for (int l = 0; l < std::max(f.stage.layers() + 1, b.stage.layers()); ++l)
    for (Phase phase : kOrder) {
      if (is_forward(phase))
        f.stage.run(phase, f.microbatch, phase == Phase::combine_f ? l - 1 : l);
      else
        b.stage.run(phase, b.microbatch, b.stage.layers() - 1 - l);
    }
  PairResult result{
      f.stage.end_forward(f.microbatch, f.tokens), b.stage.end_backward(b.microbatch)};
  b.stage.backward_weight(b.microbatch);
  return result;
}

}  // namespace duet
