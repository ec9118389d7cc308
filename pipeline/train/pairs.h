// An overlapped pair: the forward of one chunk and the full backward of another, interleaved layer
// by layer, so that while the tokens of one travel between experts, the other computes
// (DeepSeek-V3, section 3.2.1). The order is DeepSeek's own, as its published training trace shows
// it:
//
//   compute  attention F, shared F, I | experts I, W | experts F  | attention I, W
//   comm     combine I                | dispatch F   | dispatch I | combine F
//
// An all-to-all on the comm stream is covered by what stands above it. The host waits for
// everyone's choices, without which no token can leave, when the shared experts of both chunks are
// enqueued; not later, or tokens would leave behind what is to hide them. Layers without a partner
// (chunks of unequal length) run alone. The bits are those of the forward and then the backward.
// Read next: executor.h.
#pragma once
#include "pipeline/train/stage.h"

namespace duet {

struct PairResult {
  Buf y;   // of the forward; empty where its stage has the head
  Buf dx;  // of the backward; empty where its stage has the embedding
};

struct ForwardChunk {
  Stage& stage;
  int microbatch;
  Buf x;
  const Microbatch& tokens;
};
struct BackwardChunk {
  Stage& stage;
  int microbatch;
  Buf dy;
};
PairResult overlapped_pair(ForwardChunk forward, BackwardChunk backward);

}  // namespace duet
