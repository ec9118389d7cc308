// The search: all layouts that agree with what is fixed, that are legal and that fit, the fastest
// first; of equally fast ones the one with less memory.
//
// Every candidate gets its memory and a bound that no prediction of it can beat (its busiest stage,
// without bubble and communication between ranks). Candidates are then predicted in the order of
// their bounds until the next bound is beyond the worst of those kept: what is left out cannot be
// among the best. Memory and long schedules are read off schedules of a few rounds, which have the
// same peaks and the same steady state.
//
// Read next: report.h.
#pragma once
#include "pipeline/insight/plan/predict.h"

namespace duet {

struct SearchResult {
  std::vector<Prediction> best;  // fit; empty where none does
  // of those that do not fit the one with the least memory
  Prediction smallest;
  int64_t tried = 0, legal = 0, fitting = 0, predicted = 0;
  std::string first_rule;  // that the first illegal one breaks, or why there is none to try

  const Prediction& pick() const { return best.empty() ? smallest : best.front(); }
};

SearchResult search(const PlanJob& job, const PlanLayout& fixed, size_t keep);

// Fields that are free and whose best value is not searched for: sequence parallelism with tensor
// parallelism, what overlaps, one rank of whatever is not named and complete layouts' schedule.
PlanLayout filled(const PlanJob& job, PlanLayout layout);

// --- what if -------------------------------------------------------------------------------------

// What would change: the same job with another schedule, with or without overlap, with experts
// balanced by replicas, without a part altogether; and what +30% would take.
struct Change {
  std::string what;
  double step = 0;
  bool fits = true;
};

// `replicas`: physical experts of a layer for EPLB; 0: one more a rank. `loads` [experts]: tokens;
// empty: made up, lognormal, so that the busiest GPU has the layout's imbalance.
std::vector<Change> what_if(
    const PlanJob& job, const Prediction& now, int64_t replicas, const std::vector<float>& loads);

// The busiest GPU's load over the mean, of the experts as they are (replicas: 0) or as EPLB spreads
// their replicas over the GPUs (moe/eplb).
double expert_imbalance(const std::vector<float>& loads, int gpus, int64_t replicas);

// "products 1.4 times as fast", "no bubble: only +9%", ... each alone.
std::vector<std::string> for_thirty_percent(const Prediction& now);

}  // namespace duet
