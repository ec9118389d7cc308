// What would change: the same job with another schedule, with or without overlap, with experts
// balanced by replicas, without a part altogether; and what +30% would take.
//
// Read next: report.h.
#pragma once
#include <string>
#include <vector>

#include "pipeline/insight/plan/predict.h"

namespace duet {

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
