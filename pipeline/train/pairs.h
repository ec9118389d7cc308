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
// Read next: trainer.h.
#pragma once
#include <map>
#include <memory>

#include "pipeline/train/executor.h"
#include "pipeline/train/stage.h"

namespace duet {

using StageMap = std::map<int, std::unique_ptr<Stage>>;  // of a rank, by virtual stage

// An executor's stages, which compute. The map outlives them.
Executor::Stages computing(const StageMap& stages);

}  // namespace duet
