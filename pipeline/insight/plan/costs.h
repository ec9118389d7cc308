// What a layer, and a stage, costs for one microbatch: seconds of F, I and W, by part. Computed
// from sizes alone, nothing is run.
//
//   products   product_seconds for each matrix: F x W, I dy W^T, W x^T dy
//   attention  fused: causal FLOP at the cluster's fraction of the peak, 2.5 times as many
//              backward; unfused: full products and the scores' way through memory, pass by pass
//   rows       norms, residuals, rotations, activations, casts, permutations: bytes / HBM
//   host       what launching takes beyond what the kernels do: of F, and of B or, where the
//              schedule splits it, of I and of W
//   tp         2 all-reduces forward and 2 backward or, with sequence parallelism, gathers and
//              scatters; in a whole B they hide under the products for weights
//   ep         dispatch and combine, forward and backward
//   cp         keys and values of the other ranks, which hide under attention
//
// Communication that hides still takes SMs: hiding t seconds costs t x comm_sms / sms.
// Full recomputation adds F to I.
//
// Read next: predict.h.
#pragma once
#include <array>
#include <numeric>

#include "pipeline/insight/plan/cluster.h"
#include "pipeline/insight/plan/layout.h"
#include "pipeline/schedule/profile.h"

namespace duet {

enum Part {
  kProducts,
  kAttention,
  kExperts,
  kHead,
  kRows,
  kHost,
  kTensor,
  kExpertComm,
  kContext,
  kShards,
  kParts
};
inline constexpr const char* kPartNames[] = {"products", "attention", "experts", "head and loss",
    "row operations", "waiting for the host", "tensor-parallel communication",
    "expert-parallel communication", "context-parallel communication", "shards of ZeRO-2 and 3"};

struct Parts : std::array<double, kParts> {
  Parts() { fill(0); }
  double sum() const { return std::accumulate(begin(), end(), 0.0); }
  Parts& add(const Parts& other, double times = 1) {
    for (size_t i = 0; i < size(); ++i) (*this)[i] += other[i] * times;
    return *this;
  }
};

struct Cost {
  Parts F, I, W;
  Cost& add(const Cost& other, double times = 1) {
    F.add(other.F, times), I.add(other.I, times), W.add(other.W, times);
    return *this;
  }
};

// Communication of `comm` seconds beside `work` seconds of computation: what it adds to the step.
double exposed_seconds(const Cluster& cluster, double comm, double work);

Cost layer_cost(const PlanJob& job, const PlanLayout& layout, bool moe, bool windowed);
Cost head_cost(const PlanJob& job, const PlanLayout& layout);

// Of each stage: its layers, and at the ends embedding and head. [model stages]
std::vector<Cost> stage_costs(const PlanJob& job, const PlanLayout& layout);

// The same as the simulator wants it: sums, pairs and messages.
CostProfile cost_profile(
    const PlanJob& job, const PlanLayout& layout, const std::vector<Cost>& stages);

// Parameters that one rank holds whole (before ZeRO): those that all ranks of the stage replicate,
// and those of its experts.
struct Held {
  double shared = 0, experts = 0;
  void add(const Held& other, double times = 1) {
    shared += other.shared * times, experts += other.experts * times;
  }
};
Held layer_held(const PlanModel& model, const PlanLayout& layout, bool moe);
// Gathering, or scattering, `bytes` of each among the ranks that hold the same, `copies` times as
// many where a schedule has more than one of the model.
double gather_held(const PlanJob& job, const PlanLayout& layout, const Held& held, double bytes,
    double copies = 1);
// Of each stage, its ends included.
std::vector<Held> stage_parameters(const PlanModel& model, const PlanLayout& layout);

}  // namespace duet
