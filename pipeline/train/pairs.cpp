// See pairs.h.
#include "pipeline/train/pairs.h"

#include <algorithm>

namespace duet {

// A layer of each; combine F is that of the layer before.
static constexpr Phase kOrder[] = {Phase::combine_i, Phase::combine_f, Phase::attention_f,
    Phase::router_f, Phase::shared_f, Phase::shared_i, Phase::dispatch_f, Phase::experts_i,
    Phase::experts_w, Phase::experts_f, Phase::dispatch_i, Phase::attention_i, Phase::attention_w};

static Executor::Made run_pair(const StageMap& stages, const Action& both, Executor::Given given) {
  Stage &f = *stages.at(both.stage), &b = *stages.at(both.b_stage);
  const int fm = both.microbatch, bm = both.b_microbatch;
  f.begin_forward(fm, std::move(given.x), given.tokens);
  b.begin_backward(bm, std::move(given.dy));
  for (int l = 0; l < std::max(f.layers() + 1, b.layers()); ++l)
    for (Phase phase : kOrder) {
      if (is_forward(phase))
        f.run(phase, fm, phase == Phase::combine_f ? l - 1 : l);
      else
        b.run(phase, bm, b.layers() - 1 - l);
    }
  Executor::Made made{f.end_forward(fm, given.tokens), b.end_backward(bm)};
  b.backward_weight(bm);
  return made;
}

Executor::Stages computing(const StageMap& stages) {
  return [&stages](const Action& a, Executor::Given given) {
    if (a.overlapped()) return run_pair(stages, a, std::move(given));
    Stage& stage = *stages.at(a.stage);
    Executor::Made made;
    if (a.kind == Kind::F) made.y = stage.forward(a.microbatch, std::move(given.x), given.tokens);
    if (given.forward_only) stage.drop(a.microbatch);
    if (a.kind == Kind::I || a.kind == Kind::B)
      made.dx = stage.backward_input(a.microbatch, std::move(given.dy));
    if (a.kind == Kind::W || a.kind == Kind::B) stage.backward_weight(a.microbatch);
    return made;
  };
}

}  // namespace duet
