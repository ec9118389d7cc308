// See load_monitor.h.
#include "moe/load_monitor.h"

#include <algorithm>
#include <numeric>

#include "model/base/hash.h"
#include "moe/eplb_incremental.h"

namespace duet {

constexpr size_t kWindow = 32;                     // steps that are remembered, at most
constexpr int64_t kMostTokens = int64_t(1) << 40;  // of an expert in a step: sums stay within int64
// what a full plan must gain over an incremental one to be worth its many moves
constexpr double kFullGain = 0.01;

LoadMonitor::LoadMonitor(const BalancerOptions& o, const std::vector<int64_t>& layers)
    : options_(o) {
  std::vector<int32_t> slots(size_t(o.shape.experts));
  std::iota(slots.begin(), slots.end(), 0);
  if (o.shape.replicas > o.shape.experts)
    slots = plan_experts(std::vector<float>(slots.size(), 1), o.shape, o.plan).phy2log;
  for (int64_t layer : layers)
    layers_[layer].placement = ExpertPlacement(slots, o.shape.experts, o.shape.gpus);
}

void LoadMonitor::add(int64_t layer, const std::vector<int64_t>& tokens_per_expert) {
  if (options_.interval == 0) return;
  std::vector<int64_t>& window = layers_.at(layer).window;
  window.insert(window.end(), tokens_per_expert.begin(), tokens_per_expert.end());
  const size_t most = std::min(kWindow, size_t(options_.interval)) * tokens_per_expert.size();
  if (window.size() > most) window.erase(window.begin(), window.end() - ptrdiff_t(most));
}

ExpertPlacement LoadMonitor::full_plan(const Layer& layer) const {
  const size_t experts = size_t(options_.shape.experts);
  std::vector<int64_t> sum(experts, 0);
  for (size_t i = 0; i < layer.window.size(); ++i) sum[i % experts] += layer.window[i];
  return keep_slots(layer.placement,
      plan_experts(std::vector<float>(sum.begin(), sum.end()), options_.shape, options_.plan));
}

Replan LoadMonitor::propose(int64_t which) const {
  const Layer& layer = layers_.at(which);
  Replan r;
  r.placement = layer.placement;
  if (layer.window.empty()) return r;
  r.before = r.predicted = expected_balancedness(layer.placement, layer.window);
  if (options_.shape.gpus == 1 || r.before >= options_.threshold) return r;
  const auto consider = [&](const ExpertPlacement& candidate, double gain) {
    const double value = expected_balancedness(candidate, layer.window);
    if (value <= r.predicted + gain) return;
    r.placement = candidate;
    r.predicted = value;
  };
  if (options_.plan.policy == EplbPolicy::deepseek) {
    consider(full_plan(layer), 0);
  } else {
    const int nodes = options_.plan.replicas_may_leave_node ? 0 : options_.ranks_per_node();
    consider(plan_incremental(layer.placement, layer.window, options_.max_moves, nodes), 0);
    if (r.predicted < options_.threshold)
      consider(plan_incremental(full_plan(layer), layer.window, options_.shape.replicas, nodes),
          kFullGain);
  }
  r.skipped = r.placement == layer.placement;
  r.moves = moved_experts(layer.placement, r.placement);
  return r;
}

uint64_t LoadMonitor::hash() const {
  uint64_t hash = 0;
  for (const auto& [layer, l] : layers_) hash = fnv1a(hash, l.placement.hash());
  return hash;
}

Json LoadMonitor::state() const {
  Json layers = Json::array();
  for (const auto& [layer, l] : layers_)
    layers.push(Json::object(
        {{"layer", layer}, {"phy2log", Json(l.placement.phy2log)}, {"window", Json(l.window)}}));
  return Json::object(
      {{"ranks", options_.shape.gpus}, {"slots", options_.shape.replicas}, {"layers", layers}});
}

bool LoadMonitor::restore(const Json& state) {
  const EplbShape& shape = options_.shape;
  const Json& layers = state.at("layers");
  if (state.at("ranks").integer() != shape.gpus || state.at("slots").integer() != shape.replicas)
    return false;
  std::map<int64_t, Layer> restored;
  for (const Json& l : layers.items()) {
    std::vector<int32_t> slots;
    for (const Json& e : l.at("phy2log").items())
      slots.push_back(int32_t(e.integer(0, shape.experts - 1)));
    require(int(slots.size()) == shape.replicas, l.where(), ": phy2log: found ", slots.size(),
        " slots, allowed: ", shape.replicas);
    Layer& layer = restored[l.at("layer").integer()];
    layer.placement = ExpertPlacement(slots, shape.experts, shape.gpus);
    for (int32_t count : layer.placement.logcnt)
      require(count > 0, l.where(),
          ": phy2log: found an expert without a slot, allowed: every expert at least once");
    for (const Json& tokens : l.at("window").items())
      layer.window.push_back(tokens.integer(0, kMostTokens));
    require(layer.window.size() % size_t(shape.experts) == 0, l.where(), ": window: found ",
        layer.window.size(), " loads, allowed: multiples of the ", shape.experts, " experts");
  }
  const auto same_layer = [](const auto& a, const auto& b) { return a.first == b.first; };
  if (!std::equal(restored.begin(), restored.end(), layers_.begin(), layers_.end(), same_layer))
    return false;
  layers_ = std::move(restored);
  return true;
}

void check_same_plans(Comm& world, int64_t step, uint64_t hash) {
  const std::vector<uint64_t> all = world.gather_values(hash);
  for (size_t r = 1; r < all.size(); ++r)
    DUET_CHECK(all[r] == all[0], "step ", step,
        ": expected the same expert placement on all ranks, found plan ", hash_text(all[0]),
        " on rank 0 and plan ", hash_text(all[r]), " on rank ", r);
}

}  // namespace duet
