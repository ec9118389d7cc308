// Local search over the placement of one domain: the GPUs of a node with the experts that live
// there, or all GPUs. Used by the policy `balanced` (eplb_balanced.cpp), which says what it is for.
//
// The state is a valid placement, no two replicas of an expert on one GPU unless it began so; a
// step changes it by
//   swap       two slots of different GPUs exchange their experts;
//   retarget   a slot gives up a replica of e (e has others) and takes one of f: all replicas of e
//              carry more, those of f less.
// The objective is a soft maximum, the sum over GPUs of (load / mean load)^16: while the busiest
// GPU cannot be helped, the next ones still are. Steps concern the busiest GPU, else the idlest;
// the best one is taken. In the local optimum a few random steps (of a fixed seed) start the next
// descent, and the placement with the least maximum is kept, until a budget of work is spent: of
// comparisons, not of time, so that every rank stops at the same step.
// Read next: eplb_quota.h.
#pragma once
#include <cstdint>
#include <numeric>
#include <vector>

namespace duet {

struct EplbDomain {
  std::vector<double> load;  // [experts]
  int gpus = 1, slots = 1;   // slots of each GPU
  // Where replicas may leave their node: of each expert, the node on which one must stay; -1: no
  // such rule.
  std::vector<int> home;  // [experts]
  int gpus_per_node = 1;
  double total() const { return std::accumulate(load.begin(), load.end(), 0.0); }
};

struct EplbFound {
  std::vector<int> expert;  // [gpus * slots] in each slot
  double max_load = 0;      // of the busiest GPU
};
// start [gpus * slots]: the expert in each slot, every expert at least once. Improves it until the
// busiest GPU carries at most `target` or the work (comparisons, about 1 ns each) is spent. Returns
// the placement with the least maximum seen, the start if none was better.
EplbFound eplb_search(
    const EplbDomain& domain, std::vector<int> start, double target, int64_t work);

}  // namespace duet
