// Two studies of EPLB on random loads, whose tables `make study` prints and moe/README.md explains:
// how level the policies' plans are on the loads they were made for, and how level computation is
// while loads drift away from the plan. Read next: eplb_study.cpp.
#pragma once
#include <iosfwd>
#include <string>
#include <vector>

#include "moe/eplb.h"

namespace duet {

// Mean balancedness over layers with lognormal loads (of ln load: mean 0, standard deviation
// sigma).
struct PolicyResult {
  double deepseek, balanced, leaving;  // leaving: balanced, with replicas that may leave their node
  double ms_deepseek, ms_balanced, ms_leaving;  // of this thread's processor time, per layer
};
PolicyResult policy_study(const EplbShape& shape, double sigma, int layers);
void print_policy_study(std::ostream& out);

// An expert's ln load walks by a normal step of `drift` per interval and is off by `noise` in each
// microbatch. A plan is made from an interval's microbatches and used for the next one's.
struct DriftSetup {
  EplbShape shape{.experts = 64, .replicas = 80, .groups = 1, .nodes = 1, .gpus = 8};
  int intervals = 50, microbatches = 16;
  double sigma = 1.0, drift = 0.1, noise = 0.2;
  int64_t tokens = 262144;  // of a microbatch, topk times, over all ranks
  int max_moves = 3;        // of the incremental planner
};
struct DriftRow {
  std::string name;
  double balancedness = 0, worst = 1;  // mean over microbatches; of the worst interval
  double moves = 0;                    // experts sent per interval, mean
  int max_moves = 0;
};
// Rows: deepseek and balanced, replanned each interval, the first interval's plan kept, and the
// incremental planner; with even shares, and with quotas by token and by segment of 128 tokens.
std::vector<DriftRow> print_drift_study(std::ostream& out, const DriftSetup& setup);

}  // namespace duet
