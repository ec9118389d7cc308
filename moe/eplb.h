// EPLB, the expert-parallel load balancer: which expert lies on which GPU, and which experts lie on
// several (github.com/deepseek-ai/EPLB; DeepSeek-V3, section 3.4.1).
//
// An expert of the model is *logical*; a copy of it in some GPU's memory is *physical*, a replica.
// `replicas` physical slots, equally many on each GPU, hold all logical experts at least once; what
// is left over duplicates the busiest ones.
//
//   slot     0   1   2 | 3   4   5 | ...      GPU = slot / slots_per_gpu
//   phy2log  5   6   5 | 7   8   4 | ...      the expert in each slot; node = GPU / (gpus / nodes)
//
// A plan is made from the load, tokens per logical expert over some window, one layer at a time.
// With each expert's tokens split evenly over its replicas, a GPU's load is the sum over its slots
// of load/count, and a layer is as slow as its busiest GPU: balancedness = mean load / max load, 1
// at best.
//
// Two policies. `deepseek` is the published algorithm to the bit, in float32, ties included
// (eplb_deepseek.cpp). `balanced` is duet's own (eplb_balanced.cpp); its contract is below.
// Everything here is a pure function of its arguments: ranks that see the same loads make the same
// plan, and hash() lets them make sure. Not here: splitting tokens unevenly (eplb_quota.h), moving
// few experts (eplb_incremental.h).
// Read next: eplb_deepseek.cpp.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "model/base/check.h"

namespace duet {

// The sizes of a plan. Rules: experts, groups, nodes, gpus >= 1; replicas >= experts; gpus divides
// replicas. Planning is hierarchical where nodes divides groups: then groups must divide experts
// and nodes gpus, and a group's experts all live on one node, so that node-limited routing keeps
// its traffic there. Otherwise groups and nodes are ignored, as the published program does.
struct EplbShape {
  int experts = 0;   // logical, of one layer
  int replicas = 0;  // physical, of one layer
  int groups = 1;    // of n_group in the router
  int nodes = 1;
  int gpus = 1;  // in all
  int slots_per_gpu() const { return replicas / gpus; }
  // The shape to plan with: groups and nodes are 1 where they are ignored. Throws UsageError naming
  // the rule that is broken.
  EplbShape checked() const;
};
inline constexpr int kMaxReplicas = 1 << 14;

// Where the experts of one layer are.
struct ExpertPlacement {
  int gpus = 1;
  int max_count = 0;             // the largest number of replicas
  std::vector<int32_t> phy2log;  // [replicas] the logical expert in each slot
  std::vector<int32_t> logcnt;   // [experts] its number of replicas
  // [experts, max_count] its slots in order of replica rank, padded with -1
  std::vector<int32_t> log2phy;

  ExpertPlacement() = default;
  // rank [replicas]: which replica of its expert a slot holds; empty: in order of slots.
  ExpertPlacement(
      std::vector<int32_t> phy2log, int experts, int gpus, std::span<const int32_t> rank = {});

  int experts() const { return int(logcnt.size()); }
  int replicas() const { return int(phy2log.size()); }
  int slots_per_gpu() const { return replicas() / gpus; }
  int gpu_of(int slot) const { return slot / slots_per_gpu(); }
  std::span<const int32_t> slots_of(int expert) const {
    return {log2phy.data() + size_t(expert) * size_t(max_count), size_t(logcnt[size_t(expert)])};
  }
  uint64_t hash() const;  // of all that is in it; equal on ranks that made the same plan
  bool operator==(const ExpertPlacement&) const = default;
};

enum class EplbPolicy { deepseek, balanced };
constexpr const char* policy_name(EplbPolicy p) {
  return p == EplbPolicy::balanced ? "balanced" : "deepseek";
}

// `balanced`: on any load,
//   - the max load is at most that of `deepseek`;
//   - no GPU holds two replicas of one expert, unless a GPU has more slots than its node has
//     experts, or the best plan without such a pair that the search found has a higher max load
//     than `deepseek` has with it. (Whether a better one exists is a packing problem that takes
//     exponential time; on layers small enough to try all plans, the tests find none.)
//   - a group's experts stay on one node. With `replicas_may_leave_node` one replica of each must,
//     and the max load is at most that without.
struct EplbOptions {
  EplbPolicy policy = EplbPolicy::deepseek;
  bool replicas_may_leave_node = false;  // only with `balanced`
};

// One layer's plan. load [experts]: finite and >= 0, else UsageError.
ExpertPlacement plan_experts(
    std::span<const float> load, const EplbShape& shape, const EplbOptions& options = {});

// Load of each GPU if an expert's tokens are split evenly over its replicas. [gpus]
std::vector<double> gpu_load(const ExpertPlacement& placement, std::span<const float> load);
double max_of(std::span<const double> load);
double balancedness(std::span<const double> gpu_load);  // mean / max; 1 where all is zero

// How many slots of `to` hold an expert that their GPU does not hold in `from`: the experts that
// must be sent.
int moved_experts(const ExpertPlacement& from, const ExpertPlacement& to);

// The policies, for sizes and loads that plan_experts has checked.
ExpertPlacement plan_deepseek(std::span<const float> load, const EplbShape& shape);
ExpertPlacement plan_balanced(
    std::span<const float> load, const EplbShape& shape, bool replicas_may_leave_node);

// The order in which `deepseek` packs: by weight, equal ones as libstdc++'s std::sort leaves them.
std::vector<int> heaviest_first(std::span<const float> weight);
// Step 1 of `deepseek`, groups to nodes: the experts in node order. [nodes, experts / nodes]
std::vector<int> experts_by_node(std::span<const float> load, const EplbShape& shape);

}  // namespace duet
