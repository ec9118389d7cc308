// A prediction: does a layout fit, how long is a step, and where does the time go.
//
//   step = the schedule, simulated with each stage's costs and its messages
//        + gradients and weights between dp ranks, as far as they do not hide under the last
//          backward and the first forward
//        + the optimizer: passes over the gradients that the rank holds and what it updates
//
// Read next: search.h.
#pragma once
#include <vector>

#include "pipeline/insight/plan/costs.h"

namespace duet {

// --- memory --------------------------------------------------------------------------------------

// What the heaviest GPU holds, in bytes, by kind. Activations are counted along the schedule's own
// list: a stage's from its F to its W or B, the peak over the rank's list.
//
// Of a parameter: 2 bytes and 4 of gradient, and 12 of the optimizer (master copy, two moments; in
// fp32 4, 4 and 8: the weights are the master copy), which ZeRO divides by the ranks that hold the
// same parameter: 1 the optimizer's, 2 gradients too, 3 parameters too (and two layers are whole
// for a while). Of a token and layer, in elements: two norms' inputs and outputs (4 h), q, k, v and
// attention's output, the MLP's or the experts' inner widths; scores and dropout's masks where
// attention is not fused. "Activation Recomputation in Large Transformer Models" (Korthikanti et
// al., 2022) has the same count: 34 s b h bytes for GPT.
struct Memory {
  double parameters = 0, gradients = 0, optimizer = 0, activations = 0, logits = 0, buffers = 0,
         fragmentation = 0, reserved = 0;
  double total() const {
    return parameters + gradients + optimizer + activations + logits + buffers + fragmentation +
        reserved;
  }
};

// Bytes that one microbatch keeps of a layer.
double layer_activation_bytes(const PlanJob& job, const PlanLayout& layout, bool moe);
// Of them the share that an I leaves to its W: without fused attention scores and their masks,
// which no weights have a gradient from, are gone after the I.
double waiting_share(const PlanJob& job, const PlanLayout& layout);

// What of a schedule decides the memory of its ranks.
struct ScheduleShape {
  std::vector<std::vector<int>> stages;                    // [pp] model stages, one for each copy
  std::vector<std::vector<std::pair<int, double>>> peaks;  // [pp] (model stage, activations alive)
};
// With all microbatches, from the schedule with a few (below) or all of them. stage_bytes [model
// stages]: how much an activation of each weighs when the peak is looked for.
ScheduleShape shape_of(
    const Schedule& few, int microbatches, const std::vector<double>& stage_bytes, double waiting);

// Bytes that a microbatch keeps of each stage. [model stages]
std::vector<double> stage_activation_bytes(const PlanJob& job, const PlanLayout& layout);

// Microbatches with which the layout's schedule has the peaks that it has with all of them (but
// gpipe, which keeps all): all, or a few rounds.
int few_microbatches(const PlanLayout& layout, int microbatches);

// The heaviest rank's.
Memory memory_of(const PlanJob& job, const PlanLayout& layout, const ScheduleShape& shape);

// --- time ----------------------------------------------------------------------------------------

// Bytes that a step's end moves through memory, as Megatron-Core does it. Of a parameter that the
// rank updates: its gradient read for the norm (4) and clipped (8), gradient, master copy and two
// moments read (16), these three and the working copy written (14).
inline constexpr double kUpdatedBytes = 42;
// duet itself reads and writes master copy and two moments.
inline constexpr double kOwnUpdatedBytes = 24;
// Passes over a gradient that it holds: cleared, and read and written to be divided by the
// number of copies before they are summed (duet: cleared, read for the norm and by the optimizer).
inline constexpr double kHeldGradients = 3;
// Of a weight that it holds, in 8 bits: read, and cast for both directions.
inline constexpr double kCastBytes = 4;

// Time of a rank's actions of a kind, as DeepSeek's reports state a step.
struct ByAction {
  double F = 0, B = 0, W = 0, pairs = 0;  // B: whole backwards, and Is
  double busy() const { return F + B + W + pairs; }
  ByAction& add(const ByAction& other, double times) {
    F += other.F * times, B += other.B * times, W += other.W * times, pairs += other.pairs * times;
    return *this;
  }
};

struct Prediction {
  PlanLayout layout;
  bool fits = false;
  Memory memory;
  double step = 0;                         // seconds
  double pipeline = 0;                     // of it: the schedule's makespan
  double bubble = 0;                       // of it: idle, of the busiest rank
  double exposed_data = 0, optimizer = 0;  // of it
  double other = 0;                        // of it: the cluster's `other`
  Parts parts;                             // of the busiest rank's computation, without pairs
  double hidden_in_pairs = 0;              // parts.sum() - this + bubble = pipeline
  ByAction of_first, of_mean;              // rank 0's actions; the mean over ranks
  double mean_bubble() const { return pipeline - of_mean.busy(); }
  int microbatches = 0;
  bool extrapolated = false;  // from fewer microbatches
};

// Requires a complete, legal layout. A schedule of more actions than `most_actions` is extrapolated
// from two shorter ones in which all ranks have come to the same pace: milliseconds.
Prediction predict(const PlanJob& job, const PlanLayout& layout, double most_actions = 2e4);

// What no prediction is below, for the search.
//   least_step    of a layout: its ranks' work, and what comes before and after it on other ranks
//   of any pp, schedule and ZeRO stage, of a layout in which these are free:
//     least_work    seconds of a step that its GPUs work, all alike
//     and with a pp and a ZeRO stage:
//     least_update  of the optimizer, its GPUs' mean
//     least_memory  its GPUs' mean, of one microbatch; without a ZeRO stage of activations alone
double least_step(const PlanJob& job, const PlanLayout& layout, const ScheduleShape& shape);
double least_work(const PlanJob& job, const PlanLayout& layout);
double least_update(const PlanJob& job, const PlanLayout& layout);
double least_memory(const PlanJob& job, const PlanLayout& layout);

// Of a whole step and GPU, FLOP as named.
enum class Flops { megatron, six_n, six_n_attention, with_recompute };
double step_flops(const PlanJob& job, Flops formula, bool causal);

}  // namespace duet
