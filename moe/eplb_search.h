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
#pragma once
#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace duet {

struct EplbDomain {
  std::vector<double> load;  // [experts]
  int gpus = 1, slots = 1;   // slots of each GPU
  // Where replicas may leave their node: of each expert, the node on which one must stay. Empty: no
  // such rule.
  std::vector<int> home;  // [experts]
  int gpus_per_node = 1;
};

class EplbSearch {
 public:
  // start [gpus * slots]: the expert in each slot, every expert at least once.
  EplbSearch(const EplbDomain& domain, std::vector<int> start);
  // Improves until the busiest GPU carries at most `target` or the work (comparisons, about 1 ns
  // each) is spent. Returns the placement with the least maximum seen, the start if none was
  // better.
  const std::vector<int>& run(double target, int64_t work);
  const std::vector<int>& best() const { return best_; }
  double best_max() const { return best_max_; }

 private:
  struct Step {
    double gain = 1e-13;  // of the objective; a step must gain more
    int slot = -1;
    int other = -1;   // swap: the other slot
    int expert = -1;  // retarget: the expert to take
  };
  double potential(double load) const;
  bool may_leave(int slot, int to_gpu) const;
  void set_share(int expert, double share);
  void try_swaps(int gpu, Step& best);
  void try_retargets(int gpu, Step& best);
  double retarget_gain(int slot, int expert) const;
  void apply(const Step& step);
  bool descend();
  void kick();
  void keep_best();

  const EplbDomain& domain_;
  double inverse_mean_ = 0;
  std::vector<int> expert_;           // [gpus * slots]
  std::vector<double> slot_share_;    // [gpus * slots] what each slot carries
  std::vector<double> share_;         // [experts] load / count
  std::vector<std::vector<int>> at_;  // [experts] the slots of each
  std::vector<uint8_t> has_;          // [gpus, experts] replicas of an expert on a GPU
  std::vector<double> gpu_;           // [gpus] load
  std::vector<double> now_;           // [gpus] its potential
  std::vector<int> home_count_;       // [experts] replicas on the home node
  std::vector<int> best_;
  double best_max_ = 0;
  int64_t work_ = 0;  // spent so far
  std::minstd_rand random_;
};

}  // namespace duet
