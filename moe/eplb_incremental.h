// The incremental planner: keeps a placement up to date with few moves. A full plan answers a small
// change of the load with an altogether different placement, and every expert that changes its GPU
// takes its weights, master weights and moments along. The planner instead retargets a few slots:
// one gives up a replica of e and receives expert f, which is one expert sent.
//
// It plans for the quotas (eplb_quota.h), and not for the mean of the window but for its samples: a
// placement is as good as the mean over samples of the busiest GPU's load after water-filling. A
// mean hides how loads fluctuate from microbatch to microbatch, and slack for just that is what the
// replicas are placed for. A full plan gains by it too: plan with `balanced`, then let the planner
// retarget as many slots as it likes.
// Read next: load_monitor.h.
#pragma once
#include "moe/eplb.h"

namespace duet {

// window [samples, experts]: tokens per expert in recent microbatches or steps, the sum over ranks.
// Returns `current` with at most max_moves slots retargeted; all others keep their place. No GPU
// gets a second replica of an expert. gpus_per_node: where replicas stay on their nodes, an expert
// goes only to nodes that already hold it; 0: anywhere.
ExpertPlacement plan_incremental(const ExpertPlacement& current, std::span<const int64_t> window,
    int max_moves, int gpus_per_node = 0);

// The samples' balancedness after water-filling (of the mean cost): what the placement is worth.
// Where it stays too low, plan anew.
double expected_balancedness(const ExpertPlacement& placement, std::span<const int64_t> window);

// `to` with the slots of each GPU reordered so that experts which stay on their GPU keep their slot
// in `from`: what still differs is what must be written. For full plans; incremental ones are like
// that.
ExpertPlacement keep_slots(const ExpertPlacement& from, const ExpertPlacement& to);

}  // namespace duet
