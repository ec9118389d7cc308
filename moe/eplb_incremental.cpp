// See eplb_incremental.h. Steepest descent over single retargets.
#include "moe/eplb_incremental.h"

#include <algorithm>

#include "moe/eplb_quota.h"

namespace duet {

namespace {

constexpr double kLevel = 0.999;  // of the busiest GPU: who carries this much counts as busy too

// One sample's tokens, and the GPU loads [gpus] that the placement's quotas give it.
using Tokens = std::span<const int64_t>;
std::vector<double> levelled(const ExpertPlacement& placement, Tokens tokens) {
  return quota_load(placement, slot_quotas(tokens, placement));
}

std::vector<Tokens> samples_of(const ExpertPlacement& placement, Tokens window) {
  const size_t experts = size_t(placement.experts());
  DUET_CHECK(!window.empty() && window.size() % experts == 0, "window: expected rows of ", experts, ", found ", window.size());
  std::vector<Tokens> samples;
  for (size_t at = 0; at < window.size(); at += experts) samples.push_back(window.subspan(at, experts));
  return samples;
}

// The busiest GPU's load in units of the mean load: 1 at best. Its mean over the samples is what the planner brings down.
double cost(const ExpertPlacement& placement, Tokens sample) { return 1 / balancedness(levelled(placement, sample)); }
double mean_cost(const ExpertPlacement& placement, const std::vector<Tokens>& samples) {
  double sum = 0;
  for (Tokens sample : samples) sum += cost(placement, sample);
  return sum / double(samples.size());
}

struct Candidate {
  ExpertPlacement placement;  // without slots: none found
  double cost;
};

// The best single retarget. In the sample that is levelled worst, only a slot on a GPU with room that takes over an expert of a
// busy one can help, and must there; those that do are compared over all samples.
Candidate best_retarget(const ExpertPlacement& placement, const std::vector<Tokens>& samples, double below, int gpus_per_node) {
  const auto worst = *std::max_element(samples.begin(), samples.end(), [&](Tokens a, Tokens b) {
    return cost(placement, a) < cost(placement, b);
  });
  const std::vector<double> load = levelled(placement, worst);
  const double busy = kLevel * max_of(load), worst_cost = cost(placement, worst);
  const int slots = placement.slots_per_gpu();
  Candidate best{{}, below};
  for (int p = 0; p < placement.replicas(); ++p) {
    const int g = placement.gpu_of(p);
    if (load[size_t(g)] >= busy || placement.logcnt[size_t(placement.phy2log[size_t(p)])] < 2) continue;
    const auto here = placement.phy2log.begin() + g * slots;
    for (int f = 0; f < placement.experts(); ++f) {
      const std::span<const int32_t> at = placement.slots_of(f);
      const bool helps = std::any_of(at.begin(), at.end(), [&](int q) { return load[size_t(placement.gpu_of(q))] >= busy; });
      const bool allowed = gpus_per_node == 0 || std::any_of(at.begin(), at.end(), [&](int q) {
        return placement.gpu_of(q) / gpus_per_node == g / gpus_per_node;
      });
      if (!helps || !allowed || std::find(here, here + slots, f) != here + slots) continue;
      std::vector<int32_t> phy2log = placement.phy2log;
      phy2log[size_t(p)] = f;
      ExpertPlacement next(std::move(phy2log), placement.experts(), placement.gpus);
      if (cost(next, worst) >= worst_cost) continue;
      const double c = mean_cost(next, samples);
      if (c < best.cost) best = {std::move(next), c};
    }
  }
  return best;
}

}  // namespace

ExpertPlacement plan_incremental(const ExpertPlacement& current, Tokens window, const IncrementalOptions& options) {
  const std::vector<Tokens> samples = samples_of(current, window);
  ExpertPlacement placement = current;
  double now = mean_cost(placement, samples);
  for (int move = 0; move < options.max_moves && now - 1 > options.min_gain; ++move) {
    Candidate best = best_retarget(placement, samples, now - options.min_gain, options.gpus_per_node);
    if (best.placement.phy2log.empty()) break;
    placement = std::move(best.placement);
    now = best.cost;
  }
  return placement;
}

double expected_balancedness(const ExpertPlacement& placement, Tokens window) {
  return 1 / mean_cost(placement, samples_of(placement, window));
}

ExpertPlacement keep_slots(const ExpertPlacement& from, const ExpertPlacement& to) {
  DUET_CHECK(from.gpus == to.gpus && from.replicas() == to.replicas(), "placements of different sizes");
  std::vector<int32_t> kept(to.phy2log.size(), -1);
  for (size_t begin = 0, slots = size_t(to.slots_per_gpu()); begin < kept.size(); begin += slots) {
    std::vector<int32_t> rest(to.phy2log.begin() + int64_t(begin), to.phy2log.begin() + int64_t(begin + slots));
    for (size_t p = begin; p < begin + slots; ++p) {
      const auto same = std::find(rest.begin(), rest.end(), from.phy2log[p]);
      if (same == rest.end()) continue;
      kept[p] = *same;
      rest.erase(same);
    }
    size_t next = 0;
    for (size_t p = begin; p < begin + slots; ++p)
      if (kept[p] < 0) kept[p] = rest[next++];
  }
  return ExpertPlacement(std::move(kept), to.experts(), to.gpus);
}

}  // namespace duet
