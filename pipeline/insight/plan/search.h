// The search: all layouts that agree with what is fixed, that are legal and that fit, the fastest
// first; of equally fast ones the one with less memory.
//
// Every candidate gets its memory and a bound that no prediction of it can beat (its busiest stage,
// without bubble and communication between ranks). Candidates are then predicted in the order of
// their bounds until the next bound is beyond the worst of those kept: what is left out cannot be
// among the best. Memory and long schedules are read off schedules of a few rounds, which have the
// same peaks and the same steady state.
//
// Read next: what_if.h.
#pragma once
#include <functional>

#include "pipeline/insight/plan/predict.h"

namespace duet {

struct SearchResult {
  std::vector<Prediction> best;  // fit; empty where none does
  // of those that do not fit the one with the least memory
  Prediction smallest;
  int64_t tried = 0, legal = 0, fitting = 0, predicted = 0;
  std::string first_rule;  // that the first illegal one breaks

  const Prediction& pick() const { return best.empty() ? smallest : best.front(); }
};

SearchResult search(const PlanJob& job, const PlanLayout& fixed, size_t keep);

// Fields that are free and whose best value is not searched for: sequence parallelism with tensor
// parallelism, what overlaps, one rank of whatever is not named and complete layouts' schedule.
PlanLayout filled(const PlanJob& job, PlanLayout layout);

}  // namespace duet
