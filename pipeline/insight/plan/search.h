// The search: of all layouts that agree with what is fixed, that are legal and that fit, the
// fastest first; of equally fast ones the one with less memory.
//
// Tried is every value of every option that is free, but for those that README.md says are not.
//
// It goes best first, through a tree: a node stands for all layouts in which only some options are
// chosen and has a bound that no prediction of these is below (predict.h). The node with the least
// bound is opened, or predicted where all is chosen, until the least is beyond the worst of those
// kept: what is left out cannot be among the best. So is what cannot fit.
//
// Read next: report.h.
#pragma once
#include <map>

#include "pipeline/insight/plan/predict.h"

namespace duet {

struct SearchResult {
  std::vector<Prediction> best;  // fit; empty where none does
  // of those that do not fit the one with the least memory
  Prediction smallest;
  int64_t tried = 0, legal = 0, fitting = 0, predicted = 0;  // complete layouts
  std::map<std::string, std::string> rules;  // the first that is broken of each option, "--tp"
  std::string first_rule;                    // of all

  const Prediction& pick() const { return best.empty() ? smallest : best.front(); }
};

// keep: so many layouts; 0: stops at the first that is legal, whether it fits or not.
// `wanted`: the layouts with the fewest options changed from it come first, then the fastest.
SearchResult search(
    const PlanJob& job, const PlanLayout& fixed, size_t keep, const PlanLayout* wanted = nullptr);

// What is free gets what it has where nothing is searched: usual flags, one rank of whatever is not
// named, 1F1B or, with virtual stages, interleaved.
PlanLayout filled(const PlanJob& job, PlanLayout layout);

// --- what if -------------------------------------------------------------------------------------

// What would change: the same job with another schedule, with or without overlap, with experts
// balanced by replicas, without a part altogether; and what +30% would take.
struct Change {
  std::string what;
  PlanLayout layout;
  double step = 0;
  bool fits = true;
};

// What is fixed stays (`fixed`). Another schedule has the flags that are usual under it and, where
// it is interleaved, the best number of virtual stages.
// `replicas`: physical experts of a layer for EPLB; 0: one more a rank. Of the job's loads or,
// where it has none, of loads that are made up, lognormal, so that the busiest GPU has the layout's
// imbalance.
std::vector<Change> what_if(
    const PlanJob& job, const Prediction& now, const PlanLayout& fixed, int64_t replicas);

// The busiest GPU's load over the mean, of the experts as they are (replicas: 0) or as EPLB spreads
// their replicas over the GPUs (moe/eplb). Of several layers their mean, since a step is their sum.
double expert_imbalance(const std::vector<std::vector<float>>& layers, int gpus, int64_t replicas);

// "products 1.4 times as fast", "no bubble: only +9%", ... each alone.
std::vector<std::string> for_thirty_percent(const Prediction& now);

}  // namespace duet
