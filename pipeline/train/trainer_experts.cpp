// Experts on the move: what a trainer does when the loads of experts have changed. See trainer.h;
// planning is in moe/load_monitor.h, moving in moe/migration.h.
#include "moe/migration.h"
#include "pipeline/train/trainer.h"

namespace duet {

void rebalance(Trainer& t, StepResult& r) {
  for (const LayerLoad& load : r.loads) t.monitor.add(load.layer, load.tokens_per_expert);
  if (!t.monitor.due(r.step)) return;
  std::map<int64_t, ExpertPlacement> next;
  uint64_t hash = 0;
  for (LayerLoad& load : r.loads) {
    load.replan = t.monitor.propose(load.layer);
    hash = hash * 0x100000001b3u + load.replan->placement.hash();
    if (!load.replan->skipped) next[load.layer] = load.replan->placement;
  }
  check_same_plans(t.world, r.step, hash);
  place_experts(t, next);
}

void place_experts(Trainer& t, const std::map<int64_t, ExpertPlacement>& placements) {
  if (placements.empty()) return;
  t.for_each_moe([&](int64_t layer, Moe& moe, int) {
    if (const auto found = placements.find(layer); found != placements.end())
      migrate(t.experts, t.device, moe, found->second);
  });
  for (auto& [s, stage] : t.stages) stage->experts().masters_changed(t.context.stream());
  for (const auto& [layer, placement] : placements) t.monitor.set_placement(layer, placement);
}

}  // namespace duet
