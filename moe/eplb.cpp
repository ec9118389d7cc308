// See eplb.h. Sizes, placements and what is measured of them; the policies have files of their own.
#include "moe/eplb.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "model/base/hash.h"

namespace duet {

EplbShape EplbShape::checked() const {
  EplbShape s = *this;
  require(groups >= 1, "--groups ", groups, ": expected at least 1");
  require(nodes >= 1, "--nodes ", nodes, ": expected at least 1");
  require(gpus >= 1, "--gpus ", gpus, ": expected at least 1");
  require(experts >= 1, "loads: expected at least 1 expert, found ", experts);
  if (groups % nodes != 0) s.groups = s.nodes = 1;
  require(gpus % s.nodes == 0, "--gpus ", gpus, ": expected a multiple of --nodes ", nodes);
  require(experts % s.groups == 0, "--groups ", groups, ": expected a divisor of the ", experts,
      " experts");
  require(replicas >= experts && replicas <= kMaxReplicas, "--replicas ", replicas,
      ": expected at least as many as the ", experts, " experts and at most ", kMaxReplicas);
  require(replicas % gpus == 0, "--replicas ", replicas, ": expected a multiple of --gpus ", gpus);
  return s;
}

ExpertPlacement::ExpertPlacement(
    std::vector<int32_t> slots, int experts, int gpu_count, std::span<const int32_t> rank)
    : gpus(gpu_count), phy2log(std::move(slots)), logcnt(size_t(experts)) {
  for (int32_t e : phy2log) ++logcnt[size_t(e)];
  max_count = std::ranges::max(logcnt);
  log2phy.assign(size_t(experts) * size_t(max_count), -1);
  std::vector<int32_t> next(logcnt.size());
  for (size_t p = 0; p < phy2log.size(); ++p) {
    const int32_t e = phy2log[p], r = rank.empty() ? next[size_t(e)]++ : rank[p];
    log2phy[size_t(e * max_count + r)] = int32_t(p);
  }
}

// FNV-1a over the sizes and both maps (logcnt follows from them).
uint64_t ExpertPlacement::hash() const {
  uint64_t h = kFnvStart;
  const auto add = [&](int32_t x) {
    for (int shift = 0; shift < 32; shift += 8) h = fnv1a(h, uint32_t(x) >> shift & 255);
  };
  add(gpus);
  add(experts());
  add(replicas());
  for (int32_t x : phy2log) add(x);
  for (int32_t x : log2phy) add(x);
  return h;
}

ExpertPlacement plan_experts(
    std::span<const float> load, const EplbShape& sizes, const EplbOptions& options) {
  const EplbShape shape = sizes.checked();
  DUET_CHECK(int(load.size()) == shape.experts, "load: expected ", shape.experts,
      " experts, found ", load.size());
  for (size_t e = 0; e < load.size(); ++e)
    require(std::isfinite(load[e]) && load[e] >= 0, "load of expert ", e,
        ": expected a finite number >= 0, found ", load[e]);
  if (options.policy == EplbPolicy::balanced)
    return plan_balanced(load, shape, options.replicas_may_leave_node);
  return plan_deepseek(load, shape);
}

std::vector<double> gpu_load(const ExpertPlacement& placement, std::span<const float> load) {
  std::vector<double> total(size_t(placement.gpus));
  for (int p = 0; p < placement.replicas(); ++p) {
    const size_t e = size_t(placement.phy2log[size_t(p)]);
    total[size_t(placement.gpu_of(p))] += double(load[e]) / placement.logcnt[e];
  }
  return total;
}

double max_of(std::span<const double> load) { return std::ranges::max(load); }

double balancedness(std::span<const double> load) {
  const double sum = std::accumulate(load.begin(), load.end(), 0.0);
  return sum == 0 ? 1 : sum / double(load.size()) / max_of(load);
}

int moved_experts(const ExpertPlacement& from, const ExpertPlacement& to) {
  DUET_CHECK(
      from.gpus == to.gpus && from.experts() == to.experts(), "placements of different sizes");
  std::set<std::pair<int, int32_t>> has;  // GPU, expert
  for (int p = 0; p < from.replicas(); ++p) has.emplace(from.gpu_of(p), from.phy2log[size_t(p)]);
  int moved = 0;  // a second replica on the same GPU is a copy on the spot
  for (int p = 0; p < to.replicas(); ++p)
    moved += has.emplace(to.gpu_of(p), to.phy2log[size_t(p)]).second;
  return moved;
}

}  // namespace duet
