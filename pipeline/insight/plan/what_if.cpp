// See search.h. What would change.
#include "pipeline/insight/plan/search.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "model/base/text.h"
#include "moe/eplb.h"
#include "pipeline/insight/pictures/load_map.h"

namespace duet {

double expert_imbalance(const std::vector<std::vector<float>>& layers, int gpus, int64_t replicas) {
  const EplbOptions balanced{.policy = EplbPolicy::balanced};
  double sum = 0;
  for (const std::vector<float>& loads : layers) {
    const EplbShape shape{.experts = int(loads.size()), .replicas = int(replicas), .gpus = gpus};
    const std::vector<double> gpu = replicas > shape.experts
        ? gpu_load(plan_experts(loads, shape, balanced), loads)
        : loads_in_order({{loads.begin(), loads.end()}}, size_t(gpus))[0];
    sum += std::max(1.0, 1 / balancedness(gpu));
  }
  return sum / double(layers.size());
}

// Lognormal loads whose busiest GPU has `imbalance` times the mean: the spread is found by halving.
static std::vector<float> made_up_loads(int64_t experts, int gpus, double imbalance) {
  std::vector<float> loads(static_cast<size_t>(experts));
  double lo = 0, hi = 4;
  for (int step = 0; step < 30; ++step) {
    std::mt19937 random(1);
    const double sigma = (lo + hi) / 2;
    for (float& load : loads) {
      double normal = -6;  // a sum of twelve uniform numbers: the same on every library
      for (int i = 0; i < 12; ++i) normal += random() / 4294967296.0;
      load = float(std::exp(sigma * normal));
    }
    (expert_imbalance({loads}, gpus, 0) < imbalance ? lo : hi) = sigma;
  }
  return loads;
}

std::vector<Change> what_if(
    const PlanJob& job, const Prediction& now, const PlanLayout& fixed, int64_t replicas) {
  std::vector<Change> changes;
  const PlanLayout& l = now.layout;
  const auto consider = [&](const std::string& what, const PlanLayout& changed) {
    if (!broken_rule(job, changed).empty()) return;
    const Prediction p = predict(job, changed);
    changes.push_back({what, changed, p.step, p.fits});
  };
  for (const std::string& schedule : split(schedule_names())) {
    if (l.pp == 1 || l.schedule == schedule || schedule == "gpipe") continue;
    PlanLayout changed = l;
    set_layout(changed, "schedule", schedule);
    changed.virtual_stages = 0, changed.overlap_ep = fixed.overlap_ep;
    if (model_stages(changed) != int(changed.split.size())) changed.split.clear();
    const SearchResult found = search(job, changed, 1);
    if (!found.legal) continue;
    changed = found.pick().layout;
    const std::string stages =
        changed.virtual_stages > 1 ? cat(", ", changed.virtual_stages, " virtual stages") : "";
    consider(cat("schedule ", schedule, stages), changed);
  }
  const auto flip = [&](const char* what, int PlanLayout::*field) {
    PlanLayout changed = l;
    changed.*field = l.*field != 1;
    consider(cat(what, l.*field == 1 ? " not hidden" : " hidden"), changed);
  };
  if (l.ep > 1) flip("all-to-alls", &PlanLayout::overlap_ep);
  if (l.dp > 1 && l.zero < 3) flip("gradients of dp ranks", &PlanLayout::overlap_dp);
  if (l.tp > 1) flip("tensor-parallel communication", &PlanLayout::overlap_tp);
  if (l.ep > 1 && l.imbalance > 1) {
    const int64_t slots = replicas ? replicas : job.model.experts + l.ep;
    const int64_t most = std::min<int64_t>(job.model.experts * l.ep, kMaxReplicas);
    require(slots >= job.model.experts && slots <= most && slots % l.ep == 0, "--replicas: found ",
        slots, ", allowed: a multiple of ep = ", l.ep, ", from the ", job.model.experts,
        " experts to ", most, most < kMaxReplicas ? ", each of them on each rank" : "");
    std::vector<std::vector<float>> loads = job.loads;
    if (loads.empty()) loads = {made_up_loads(job.model.experts, l.ep, l.imbalance)};
    PlanLayout changed = l;
    changed.imbalance = expert_imbalance(loads, l.ep, slots);
    changed.replicas = slots;
    consider(format("EPLB, %d replicas: busiest GPU %.2f of the mean, not %.2f", int(slots),
                 changed.imbalance, l.imbalance),
        changed);
  }
  return changes;
}

std::vector<std::string> for_thirty_percent(const Prediction& p) {
  const double spare = p.step - p.step / 1.3;  // seconds that must go
  const double products = p.parts[kProducts] + p.parts[kExperts] + p.parts[kHead];
  const double comm = p.parts[kTensor] + p.parts[kExpertComm] + p.parts[kContext] +
      p.parts[kShards] + p.exposed_data - p.hidden_in_pairs;
  const double rest = p.parts[kRows] + p.parts[kHost] + p.parts[kAttention];
  std::vector<std::string> lines;
  const auto line = [&](const char* what, double seconds) {
    if (seconds <= 0) return;
    lines.push_back(seconds > spare
            ? format("%s %.2f times as fast", what, seconds / (seconds - spare))
            : format("%s gone: only %+.0f%%", what, 100 * (p.step / (p.step - seconds) - 1)));
  };
  line("products", products);
  line("communication that is exposed", comm);
  line("the bubble", p.bubble);
  line("attention, row operations and the host", rest);
  return lines;
}

}  // namespace duet
