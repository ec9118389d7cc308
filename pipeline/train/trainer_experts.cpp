// Experts on the move: what a trainer does when the loads of experts have changed. See trainer.h;
// planning is in moe/load_monitor.h, moving in moe/migration.h.
#include "model/base/hash.h"
#include "moe/migration.h"
#include "pipeline/train/trainer.h"

namespace duet {

void Trainer::rebalance(StepResult& r) {
  for (const LayerLoad& load : r.loads) monitor_->add(load.layer, load.tokens_per_expert);
  if (!monitor_->due(r.step)) return;
  std::map<int64_t, ExpertPlacement> next;
  uint64_t hash = 0;
  for (LayerLoad& load : r.loads) {
    load.replan = monitor_->propose(load.layer);
    hash = fnv1a(hash, load.replan->placement.hash());
    if (!load.replan->skipped) next[load.layer] = load.replan->placement;
  }
  check_same_plans(world_, r.step, hash);
  place_experts(next);
}

void Trainer::place_experts(const std::map<int64_t, ExpertPlacement>& placements) {
  if (placements.empty()) return;
  for (auto& [s, stage] : stages_) {
    for (size_t l = 0; l < stage->moe().size(); ++l) {
      const auto found = placements.find(stage->options().layer_begin + int64_t(l));
      if (found != placements.end() && stage->moe()[l])
        migrate(experts_, device_, *stage->moe()[l], found->second);
    }
    stage->experts().masters_changed(context_.stream());
  }
  for (const auto& [layer, placement] : placements) monitor_->set_placement(layer, placement);
  make_report();  // names have moved
}

}  // namespace duet
