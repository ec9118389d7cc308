// See eplb_incremental.h. Descent by single retargets: of those that help the worst sample, the
// best over all samples.
#include "moe/eplb_incremental.h"

#include <algorithm>

#include "moe/eplb_quota.h"

namespace duet {

namespace {

constexpr double kLevel = 0.999;  // of the busiest GPU: who carries this much counts as busy too
constexpr size_t kHeaviest = 8;   // experts that are tried for a slot
constexpr size_t kFinalists = 8;  // retargets that are compared over all samples
// of the mean load: what a move must take off the busiest GPU to be worth sending an expert
constexpr double kMinGain = 0.0005;

// One sample's tokens, and the GPU loads [gpus] that the placement's quotas give it.
using Tokens = std::span<const int64_t>;
std::vector<double> levelled(const ExpertPlacement& placement, Tokens tokens) {
  return quota_load(placement, slot_quotas(tokens, placement));
}

std::vector<Tokens> samples_of(const ExpertPlacement& placement, Tokens window) {
  const size_t experts = size_t(placement.experts());
  DUET_CHECK(!window.empty() && window.size() % experts == 0, "window: expected rows of ", experts,
      ", found ", window.size());
  std::vector<Tokens> samples;
  for (size_t at = 0; at < window.size(); at += experts)
    samples.push_back(window.subspan(at, experts));
  return samples;
}

// The busiest GPU's load in units of the mean load: 1 at best. Its mean over the samples is what
// the planner brings down.
double cost(const ExpertPlacement& placement, Tokens sample) {
  return 1 / balancedness(levelled(placement, sample));
}
double mean_cost(const ExpertPlacement& placement, const std::vector<Tokens>& samples) {
  double sum = 0;
  for (Tokens sample : samples) sum += cost(placement, sample);
  return sum / double(samples.size());
}

struct Retarget {
  double cost;
  int slot, expert;
};

ExpertPlacement with(const ExpertPlacement& placement, const Retarget& r) {
  std::vector<int32_t> phy2log = placement.phy2log;
  phy2log[size_t(r.slot)] = r.expert;
  return ExpertPlacement(std::move(phy2log), placement.experts(), placement.gpus);
}

// The retargets that relieve the sample that is levelled worst, the best first. Only a slot on a
// GPU with room can help, by taking over an expert of a busy one; of these experts the heaviest are
// tried.
std::vector<Retarget> relieve(const ExpertPlacement& placement, Tokens worst, int gpus_per_node) {
  const std::vector<double> load = levelled(placement, worst);
  const double busy = kLevel * max_of(load), now = cost(placement, worst);
  const auto share = [&](int e) { return double(worst[size_t(e)]) / placement.logcnt[size_t(e)]; };
  const auto any_slot = [&](int e, auto&& holds) {
    return std::ranges::any_of(
        placement.slots_of(e), [&](int slot) { return holds(placement.gpu_of(slot)); });
  };
  std::vector<int> heavy;
  for (int f = 0; f < placement.experts(); ++f)
    if (any_slot(f, [&](int g) { return load[size_t(g)] >= busy; })) heavy.push_back(f);
  std::ranges::stable_sort(heavy, std::greater{}, share);
  heavy.resize(std::min(heavy.size(), kHeaviest));
  std::vector<Retarget> found;
  for (int p = 0; p < placement.replicas(); ++p) {
    const int g = placement.gpu_of(p);
    if (load[size_t(g)] >= busy || placement.logcnt[size_t(placement.phy2log[size_t(p)])] < 2)
      continue;
    for (int f : heavy) {
      if (any_slot(f, [&](int h) { return h == g; })) continue;
      if (gpus_per_node > 0 &&
          !any_slot(f, [&](int h) { return h / gpus_per_node == g / gpus_per_node; }))
        continue;
      const double c = cost(with(placement, {0, p, f}), worst);
      if (c < now) found.push_back({c, p, f});
    }
  }
  std::ranges::stable_sort(found, {}, &Retarget::cost);
  return found;
}

}  // namespace

ExpertPlacement plan_incremental(
    const ExpertPlacement& current, Tokens window, int max_moves, int gpus_per_node) {
  const std::vector<Tokens> samples = samples_of(current, window);
  ExpertPlacement placement = current;
  double now = mean_cost(placement, samples);
  for (int move = 0; move < max_moves && now - 1 > kMinGain; ++move) {
    const Tokens worst = *std::ranges::max_element(
        samples, {}, [&](Tokens sample) { return cost(placement, sample); });
    std::vector<Retarget> found = relieve(placement, worst, gpus_per_node);
    found.resize(std::min(found.size(), kFinalists));
    for (Retarget& r : found) r.cost = mean_cost(with(placement, r), samples);
    const auto best = std::ranges::min_element(found, {}, &Retarget::cost);
    if (best == found.end() || best->cost > now - kMinGain) break;
    now = best->cost;
    placement = with(placement, *best);
  }
  return placement;
}

double expected_balancedness(const ExpertPlacement& placement, Tokens window) {
  return 1 / mean_cost(placement, samples_of(placement, window));
}

ExpertPlacement keep_slots(const ExpertPlacement& from, const ExpertPlacement& to) {
  DUET_CHECK(
      from.gpus == to.gpus && from.replicas() == to.replicas(), "placements of different sizes");
  std::vector<int32_t> kept(to.phy2log.size(), -1);
  for (size_t begin = 0, slots = size_t(to.slots_per_gpu()); begin < kept.size(); begin += slots) {
    std::vector<int32_t> rest(
        to.phy2log.begin() + int64_t(begin), to.phy2log.begin() + int64_t(begin + slots));
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
