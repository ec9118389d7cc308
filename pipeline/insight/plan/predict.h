// A prediction: does a layout fit, how long is a step, and where does the time go.
//
//   step = the schedule, simulated with each stage's costs and its messages
//        + gradients and weights between replicas, as far as they do not hide under the last
//          backward and the first forward
//        + the optimizer: kOptimizerBytes a parameter that the rank updates
//
// Read next: search.h.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/insight/plan/costs.h"
#include "pipeline/insight/plan/memory.h"

namespace duet {

// What a parameter moves through memory in the optimizer: gradient, master copy and two moments
// read, three of them and the working copy written, the gradient read for its norm and cleared.
inline constexpr double kOptimizerBytes = 40;

// Time of a rank's actions of a kind, as DeepSeek's reports state a step.
struct ByAction {
  double F = 0, B = 0, W = 0, pairs = 0;  // B: whole backwards, and Is
  double busy() const { return F + B + W + pairs; }
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

// Requires a complete, legal layout. `most_actions`: longer schedules are extrapolated from two
// shorter ones, whose steady state is the same.
Prediction predict(const PlanJob& job, const PlanLayout& layout, double most_actions = 2e6);

// No prediction of a layout is shorter than this; much cheaper.
double least_step(const PlanJob& job, const PlanLayout& layout);

// Of a whole step and GPU, FLOP as named.
enum class Flops { megatron, six_n, six_n_attention, with_recompute };
double step_flops(const PlanJob& job, Flops formula, bool causal);

}  // namespace duet
