// EPLB's policy `deepseek`: the published algorithm, in float32, to the bit. Three greedy steps:
// groups of experts to nodes, in each node replicas for the busiest experts, replicas to the node's
// GPUs. See eplb.h; duet's own policy is eplb_balanced.cpp.
//
// Ties are part of the answer: equal weights are ordered as libstdc++'s (unstable) std::sort leaves
// them, which is how the published program's sort leaves them too. Other libraries leave them
// otherwise, so the sort is written out here. Everywhere else the first index wins.
// Read next: eplb_balanced.cpp.
#include <algorithm>
#include <bit>

#include "moe/eplb.h"

namespace duet {

namespace {

struct Place {
  int pack, slot;
};

using Weighed = std::pair<float, int>;
bool heavier(const Weighed& a, const Weighed& b) { return a.first > b.first; }

// Quicksort down to parts of 16, around the median of the second, the middle and the last, which is
// put first.
void partition_roughly(Weighed* first, Weighed* last, int depth) {
  for (; last - first > 16; --depth) {
    if (depth == 0) return std::partial_sort(first, last, last, heavier);
    Weighed *a = first + 1, *b = first + (last - first) / 2, *c = last - 1;
    if (!heavier(*a, *b)) std::swap(a, b);
    std::swap(*first, heavier(*b, *c) ? *b : heavier(*a, *c) ? *c : *a);
    Weighed *left = first + 1, *right = last;
    for (;; ++left) {
      while (heavier(*left, *first)) ++left;
      do --right;
      while (heavier(*first, *right));
      if (left >= right) break;
      std::swap(*left, *right);
    }
    partition_roughly(left, last, depth - 1);
    last = left;
  }
}

}  // namespace

std::vector<int> heaviest_first(std::span<const float> weight) {
  std::vector<Weighed> items;
  for (size_t i = 0; i < weight.size(); ++i) items.emplace_back(weight[i], int(i));
  partition_roughly(
      items.data(), items.data() + items.size(), 2 * (std::bit_width(items.size()) - 1));
  std::vector<int> order;
  for (size_t i = 0; i < items.size(); ++i) {  // insertion sort: few are far from their places
    for (size_t j = i; j > 0 && heavier(items[j], items[j - 1]); --j)
      std::swap(items[j], items[j - 1]);
  }
  for (const Weighed& item : items) order.push_back(item.second);
  return order;
}

namespace {

// n items into `packs` packs of equally many, the heaviest first, each to the least loaded pack
// that is not full.
void balanced_packing(std::span<const float> weight, int packs, std::span<Place> out) {
  const int n = int(weight.size()), capacity = n / packs;
  if (capacity == 1) {
    for (int i = 0; i < n; ++i) out[size_t(i)] = {i, 0};
    return;
  }
  const std::vector<int> order = heaviest_first(weight);
  std::vector<float> load(size_t(packs), 0.f);
  std::vector<int> items(size_t(packs), 0);
  for (const int i : order) {
    int best = -1;
    float least = 0;
    for (int p = 0; p < packs; ++p) {
      const int take =
          int(items[size_t(p)] < capacity) & (int(best < 0) | int(load[size_t(p)] < least));
      best = take ? p : best;
      least = take ? load[size_t(p)] : least;
    }
    out[size_t(i)] = {best, items[size_t(best)]++};
    load[size_t(best)] += weight[size_t(i)];
  }
}

struct Replica {
  int expert, rank;
};

// Every expert once; then each further replica to the expert whose replicas carry most. `share`
// gets weight / count.
void replicate(std::span<const float> weight, std::span<Replica> out, std::vector<float>& share) {
  const int n = int(weight.size());
  share.assign(weight.begin(), weight.end());
  std::vector<int> count(weight.size(), 1);
  for (int i = 0; i < n; ++i) out[size_t(i)] = {i, 0};
  for (size_t r = weight.size(); r < out.size(); ++r) {
    const int best = int(std::ranges::max_element(share) - share.begin());
    out[r] = {best, count[size_t(best)]++};
    share[size_t(best)] = weight[size_t(best)] / float(count[size_t(best)]);
  }
}

}  // namespace

// Group after group, as they arrived at their node.
std::vector<int> experts_by_node(std::span<const float> load, const EplbShape& s) {
  const int group_size = s.experts / s.groups;
  std::vector<float> weight(size_t(s.groups), 0.f);
  for (int e = 0; e < s.experts; ++e) weight[size_t(e / group_size)] += load[size_t(e)];
  std::vector<Place> place(weight.size());
  balanced_packing(weight, s.nodes, place);
  std::vector<int> order(load.size());
  for (int e = 0; e < s.experts; ++e) {
    const Place& p = place[size_t(e / group_size)];
    order[size_t((p.pack * (s.groups / s.nodes) + p.slot) * group_size + e % group_size)] = e;
  }
  return order;
}

ExpertPlacement plan_deepseek(std::span<const float> load, const EplbShape& s) {
  const std::vector<int> order = experts_by_node(load, s);
  const int node_experts = s.experts / s.nodes, node_slots = s.replicas / s.nodes,
            node_gpus = s.gpus / s.nodes;
  std::vector<int32_t> phy2log(size_t(s.replicas)), rank(size_t(s.replicas));
  std::vector<float> weight(size_t(node_experts), 0.f), share, slot_weight(size_t(node_slots), 0.f);
  std::vector<Replica> replica(slot_weight.size());
  std::vector<Place> place(slot_weight.size());
  for (int node = 0; node < s.nodes; ++node) {
    const int* expert = order.data() + node * node_experts;
    for (int i = 0; i < node_experts; ++i) weight[size_t(i)] = load[size_t(expert[i])];
    replicate(weight, replica, share);
    for (size_t r = 0; r < replica.size(); ++r) slot_weight[r] = share[size_t(replica[r].expert)];
    balanced_packing(slot_weight, node_gpus, place);
    for (size_t r = 0; r < replica.size(); ++r) {
      const size_t slot =
          size_t(node * node_slots + place[r].pack * s.slots_per_gpu() + place[r].slot);
      phy2log[slot] = expert[replica[r].expert];
      rank[slot] = replica[r].rank;
    }
  }
  return ExpertPlacement(std::move(phy2log), s.experts, s.gpus, rank);
}

}  // namespace duet
