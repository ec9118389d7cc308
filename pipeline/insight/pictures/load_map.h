// The heat map of a training run: which experts its tokens went to, step by step, and what that
// made of the ranks that hold them, with experts in order ("before") and where the balancer had put
// them ("after"). Drawn from OUT/metrics.jsonl by `duet eplb --loads OUT/metrics.jsonl --format
// svg`. It draws what was measured and plans nothing (moe/eplb.h does).
//
// A layer is a band of three strips; x is the step, a row is an expert or a rank, the colour is
// load / mean load of the step.
// Read next: eplb_command.h.
#pragma once
#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

namespace duet {

struct LayerHistory {
  using Tokens = std::vector<std::vector<double>>;
  int64_t layer = 0;
  Tokens experts;  // [steps, experts] that chose each logical expert
  // [steps, ranks] that each expert-parallel rank computed; empty if ep is 1
  Tokens ranks;
  std::vector<int64_t> moved;  // steps after which experts moved
};
struct RunLoads {
  int64_t first_step = 1;
  int64_t steps = 0;
  std::vector<LayerHistory> layers;  // with experts
};

bool is_metrics(const std::string& path);  // by its first line
// Throws UsageError that names the file, the line and the member where it is not what duet train
// writes.
RunLoads read_metrics(const std::string& path);

// Loads of ranks if every expert lay on one, the experts in order. [steps, ranks]
LayerHistory::Tokens loads_in_order(const LayerHistory::Tokens& experts, size_t ranks);
// The colours' values: load / mean load of its step, averaged over each `per_column` steps. [rows,
// columns]
std::vector<std::vector<double>> heat(const LayerHistory::Tokens& loads, int64_t per_column);

void paint_load_map(std::ostream& out, const RunLoads& run);

}  // namespace duet
