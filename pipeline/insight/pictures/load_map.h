// The heat map of a training run: which experts its tokens went to, step by step, and what that
// made of the ranks that hold them, with experts in order ("before") and where the balancer had put
// them ("after"). Drawn from OUT/metrics.jsonl by `duet eplb --loads OUT/metrics.jsonl --format
// svg`. It draws what was measured and plans nothing (moe/eplb.h does).
//
// A layer is a band of three strips; x is the step, a row is an expert or a rank, the colour is
// load / mean load of the step.
// Read next: timeline.h.
#pragma once
#include <iosfwd>

#include "pipeline/insight/pictures/loads.h"

namespace duet {

// Loads of ranks if every expert lay on one, the experts in order. [steps, ranks]
LayerHistory::Tokens loads_in_order(const LayerHistory::Tokens& experts, size_t ranks);
// The colours' values: load / mean load of its step, averaged over each `per_column` steps. [rows,
// columns]
std::vector<std::vector<double>> heat(const LayerHistory::Tokens& loads, int64_t per_column);

void paint_load_map(std::ostream& out, const RunLoads& run);

}  // namespace duet
