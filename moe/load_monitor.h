// LoadMonitor: the balancer's memory. Of every mixture-of-experts layer of the model it keeps where
// the experts are and the loads of the last steps, and it proposes a new placement when it is
// asked.
//
// Every rank has one and feeds it the same loads (sums over all ranks, from the step's report), so
// all ranks propose the same; check_same_plans makes sure before anything moves. It moves nothing
// itself (migration.h). Its state goes into checkpoints.
//
// A proposal is judged by expected_balancedness over the window's steps (eplb_incremental.h), that
// is after quotas:
//   deepseek   the published plan for the window's sum
//   balanced   at most max_moves experts are retargeted; where that does not reach the threshold, a
//              full plan, if worth it
// It is skipped where the present placement is above the threshold, or nothing better was found.
// Used by one thread.
// Read next: migration.h.
#pragma once
#include <map>

#include "comm/comm.h"
#include "model/base/json.h"
#include "moe/eplb.h"

namespace duet {

struct BalancerOptions {
  EplbShape shape;  // gpus: expert-parallel ranks
  EplbOptions plan;
  int interval = 0;         // steps between proposals; 0: the first placement stays
  double threshold = 0.99;  // no proposal while balancedness is above
  int max_moves = 3;        // experts of a layer that an incremental plan sends
  int ranks_per_node() const { return shape.gpus / shape.nodes; }
};

struct Replan {
  // expected balancedness of the present and the proposed placement
  double before = 1, predicted = 1;
  int moves = 0;        // experts that are sent, in each expert-parallel group
  bool skipped = true;  // the placement stays
  ExpertPlacement placement;
};

class LoadMonitor {
 public:
  // layers: the model's mixture-of-experts layers. All begin with the plan for equal loads; without
  // redundant experts in order.
  LoadMonitor(const BalancerOptions& options, const std::vector<int64_t>& layers);

  void add(int64_t layer, const std::vector<int64_t>& tokens_per_expert);  // of one step, all ranks
  bool due(int64_t step) const { return options_.interval > 0 && step % options_.interval == 0; }
  Replan propose(int64_t layer) const;

  const ExpertPlacement& placement(int64_t layer) const { return layers_.at(layer).placement; }
  void set_placement(int64_t layer, ExpertPlacement placement) {
    layers_.at(layer).placement = std::move(placement);
  }
  uint64_t hash() const;  // of all layers' placements

  // {"ranks", "slots", "layers": [{"layer", "phy2log", "window"}]}. restore() takes it if ranks,
  // slots and layers are this run's, and returns whether it did; throws UsageError naming the place
  // where it is no placement.
  Json state() const;
  bool restore(const Json& state);

 private:
  struct Layer {
    ExpertPlacement placement;
    std::vector<int64_t> window;  // [steps, experts]
  };
  ExpertPlacement full_plan(const Layer& layer) const;
  BalancerOptions options_;
  std::map<int64_t, Layer> layers_;
};

// Throws Error that names two ranks and their hashes where not all ranks have the same.
void check_same_plans(Comm& world, int64_t step, uint64_t hash);

}  // namespace duet
