// What the heaviest GPU holds, in bytes, by kind. Activations are counted along the schedule's own
// list: a stage's from its F to its W or B, the peak over the rank's list.
//
// Of a parameter: 2 bytes and 4 of gradient, and 12 of the optimizer (master copy, two moments),
// which ZeRO divides by the ranks that hold the same parameter: 1 the optimizer's, 2 gradients too,
// 3 parameters too (and two layers are whole for a while).
// Of a token and layer, in elements: two norms' inputs and outputs (4 h), q, k, v and attention's
// output, the MLP's or the experts' inner widths; scores and dropout's masks where attention is not
// fused. "Activation Recomputation in Large Transformer Models" (Korthikanti et al., 2022) has the
// same count: 34 s b h bytes for GPT.
//
// Read next: predict.h.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "pipeline/insight/plan/costs.h"

namespace duet {

struct Memory {
  double parameters = 0, gradients = 0, optimizer = 0, activations = 0, logits = 0, buffers = 0,
         fragmentation = 0, reserved = 0;
  double total() const {
    return parameters + gradients + optimizer + activations + logits + buffers + fragmentation +
        reserved;
  }
};

// Bytes that one microbatch keeps of a layer, and what one layer needs while it works.
double layer_activation_bytes(const PlanJob& job, const PlanLayout& layout, bool moe);
double layer_working_bytes(const PlanJob& job, const PlanLayout& layout, bool moe);

// What of a schedule decides the memory of its ranks.
struct ScheduleShape {
  std::vector<std::vector<int>> stages;                 // [pp] model stages, one for each copy
  std::vector<std::vector<std::pair<int, int>>> peaks;  // [pp] (model stage, microbatches alive)
};
// stage_bytes [model stages]: how much an activation of each weighs when the peak is looked for.
ScheduleShape shape_of(const Schedule& schedule, const std::vector<double>& stage_bytes);

// Bytes that a microbatch keeps of each stage. [model stages]
std::vector<double> stage_activation_bytes(const PlanJob& job, const PlanLayout& layout);

// The heaviest rank's.
Memory memory_of(const PlanJob& job, const PlanLayout& layout, const ScheduleShape& shape);

}  // namespace duet
