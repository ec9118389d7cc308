// EPLB's policy `balanced`: starts from what `deepseek` would do and improves it by local search
// (eplb_search.h), node by node. See eplb.h for what it guarantees.
//
// Why it is needed: greedy packing leaves the busiest GPU 1 to 2% above the mean, and it may put
// two replicas of one expert on one GPU, where the second is a wasted slot. And the hierarchy
// itself costs more than any packing: a node's load is what its groups happen to weigh. Replicas
// that may leave their node level the nodes too.
// Read next: eplb_search.h.
#include <algorithm>

#include "moe/eplb.h"
#include "moe/eplb_search.h"

namespace duet {

namespace {

constexpr double kGoodEnough = 1.0003;  // max / mean at which the search rests
// comparisons per layer, about 0.1 ms; shared by its nodes
constexpr int64_t kWork = 150000;
// and between nodes, where a comparison takes longer: 0.5 ms for 256 experts
constexpr int64_t kWorkBetween = 100000;

EplbDomain domain_of(std::span<const float> load, const EplbShape& s) {
  return {.load = {load.begin(), load.end()},
      .gpus = s.gpus,
      .slots = s.slots_per_gpu(),
      .home = std::vector<int>(load.size(), -1),
      .gpus_per_node = s.gpus / s.nodes};
}

bool has_pair(std::span<const int> expert, int slots) {
  for (size_t p = 0; p < expert.size(); ++p)
    for (size_t q = p + 1; q < (p / size_t(slots) + 1) * size_t(slots); ++q)
      if (expert[p] == expert[q]) return true;
  return false;
}

// Replicas per expert: as many as `deepseek` chose, but none above the number of GPUs. What that
// frees goes to those whose replicas carry most.
std::vector<int> capped_counts(const EplbDomain& d, std::span<const int> start) {
  std::vector<int> count(d.load.size());
  int spare = 0;
  for (int e : start) count[size_t(e)] < d.gpus ? ++count[size_t(e)] : ++spare;
  for (; spare > 0; --spare) {
    size_t best = 0;
    for (size_t e = 1; e < count.size(); ++e)
      if (count[best] == d.gpus ||
          (count[e] < d.gpus && d.load[e] / count[e] > d.load[best] / count[best]))
        best = e;
    ++count[best];
  }
  return count;
}

// A start without pairs: the heaviest replica first, each to the idlest GPU with room that does not
// hold its expert. Where that ends in none, replicas are dealt out to the GPUs in turn, which never
// does: an expert's lie in consecutive places.
std::vector<int> start_without_pairs(const EplbDomain& d, std::span<const int> start) {
  const std::vector<int> count = capped_counts(d, start);
  const auto share = [&](int e) { return d.load[size_t(e)] / count[size_t(e)]; };
  std::vector<int> order;
  for (int e = 0; e < int(count.size()); ++e)
    order.insert(order.end(), size_t(count[size_t(e)]), e);
  std::ranges::stable_sort(order, std::greater{}, share);  // an expert's replicas stay together
  std::vector<int> expert(start.size()), dealt(start.size()), used(size_t(d.gpus));
  std::vector<double> load(size_t(d.gpus));
  bool stuck = false;
  for (int place = 0; place < int(order.size()); ++place) {
    const int e = order[size_t(place)];
    dealt[size_t(place % d.gpus * d.slots + place / d.gpus)] = e;
    int best = -1;
    for (int g = 0; g < d.gpus; ++g) {
      const auto here = expert.begin() + g * d.slots;
      if (used[size_t(g)] < d.slots && (best < 0 || load[size_t(g)] < load[size_t(best)]) &&
          std::find(here, here + used[size_t(g)], e) == here + used[size_t(g)])
        best = g;
    }
    if (best < 0) {
      stuck = true;
      continue;
    }
    expert[size_t(best * d.slots + used[size_t(best)]++)] = e;
    load[size_t(best)] += share(e);
  }
  return stuck ? dealt : expert;
}

// One node: improves `start` down to `target`, and leaves pairs only where nothing else keeps the
// busiest GPU within `limit`.
std::vector<int> solve(
    const EplbDomain& d, std::vector<int> start, double target, double limit, int64_t work) {
  if (has_pair(start, d.slots) && d.slots <= int(d.load.size())) {
    EplbFound apart = eplb_search(d, start_without_pairs(d, start), std::min(target, limit), work);
    if (apart.max_load <= limit) return apart.expert;
  }
  return eplb_search(d, std::move(start), target, work).expert;
}

// Swaps groups between the heaviest node and others while that lightens it.
void level_nodes(std::vector<int>& order, std::span<const float> load, const EplbShape& s) {
  const int size = s.experts / s.groups, per_node = s.groups / s.nodes;
  std::vector<double> weight(size_t(s.groups)), node(size_t(s.nodes));
  for (int i = 0; i < s.experts; ++i) {
    weight[size_t(i / size)] += load[size_t(order[size_t(i)])];
    node[size_t(i / size / per_node)] += load[size_t(order[size_t(i)])];
  }
  for (;;) {
    const int a = int(std::ranges::max_element(node) - node.begin());
    double best = node[size_t(a)] * (1 - 1e-12);
    int from = -1, to = -1;
    for (int i = a * per_node; i < (a + 1) * per_node; ++i) {
      for (int j = 0; j < s.groups; ++j) {
        const double d = weight[size_t(i)] - weight[size_t(j)];
        const double heavier = std::max(node[size_t(a)] - d, node[size_t(j / per_node)] + d);
        if (j / per_node == a || heavier >= best) continue;
        best = heavier;
        from = i;
        to = j;
      }
    }
    if (from < 0) return;
    const double d = weight[size_t(from)] - weight[size_t(to)];
    node[size_t(a)] -= d;
    node[size_t(to / per_node)] += d;
    std::swap(weight[size_t(from)], weight[size_t(to)]);
    std::swap_ranges(
        order.begin() + from * size, order.begin() + (from + 1) * size, order.begin() + to * size);
  }
}

// The plan for a given packing of experts to nodes, order [nodes, experts / nodes].
std::vector<int> plan_nodes(
    std::span<const int> order, std::span<const float> load, const EplbShape& s, double limit) {
  const size_t node_experts = size_t(s.experts / s.nodes);
  const EplbShape node_shape{
      .experts = int(node_experts), .replicas = s.replicas / s.nodes, .gpus = s.gpus / s.nodes};
  std::vector<EplbDomain> domain;
  std::vector<std::vector<int>> start;
  // no plan with this packing does better: the heaviest node's mean, the heaviest replica
  double bound = 0;
  for (size_t node = 0; node < size_t(s.nodes); ++node) {
    std::vector<float> node_load;
    for (int e : order.subspan(node * node_experts, node_experts))
      node_load.push_back(load[size_t(e)]);
    const ExpertPlacement published = plan_deepseek(node_load, node_shape);
    for (size_t e = 0; e < node_experts; ++e)
      bound = std::max(bound, double(node_load[e]) / published.logcnt[e]);
    domain.push_back(domain_of(node_load, node_shape));
    bound = std::max(bound, domain.back().total() / node_shape.gpus);
    start.push_back(published.phy2log);
  }
  std::vector<int> all;
  for (size_t node = 0; node < domain.size(); ++node)
    for (int e : solve(domain[node], start[node], kGoodEnough * bound, limit, kWork / s.nodes))
      all.push_back(order[node * node_experts + size_t(e)]);
  return all;
}

}  // namespace

ExpertPlacement plan_balanced(
    std::span<const float> load, const EplbShape& s, bool replicas_may_leave_node) {
  const ExpertPlacement published = plan_deepseek(load, s);
  const double limit = max_of(gpu_load(published, load)) * (1 + 1e-12);
  const auto plan = [&](std::span<const int> order) {
    return ExpertPlacement(plan_nodes(order, load, s, limit), s.experts, s.gpus);
  };
  const std::vector<int> as_published = experts_by_node(load, s);
  std::vector<int> order = as_published;
  level_nodes(order, load, s);
  ExpertPlacement best = plan(order);
  if (order != as_published && max_of(gpu_load(best, load)) > limit) {
    order = as_published;
    best = plan(order);
  }
  if (!replicas_may_leave_node || s.nodes == 1) return best;

  EplbDomain all = domain_of(load, s);
  for (int i = 0; i < s.experts; ++i)
    all.home[size_t(order[size_t(i)])] = i / (s.experts / s.nodes);
  const EplbFound found =
      eplb_search(all, best.phy2log, kGoodEnough * all.total() / s.gpus, kWorkBetween);
  return ExpertPlacement(found.expert, s.experts, s.gpus);
}

}  // namespace duet
