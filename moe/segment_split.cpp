// See eplb_quota.h. Replicas that share an expert's tokens by whole segments: from each rank's own
// replica, descent on the sum of squared GPU loads, one segment at a time; then the heaviest GPU
// gives a segment away, or exchanges one for a smaller one, as long as that levels the two. All in
// integers and in a fixed order: every rank gets the same answer.
#include <algorithm>
#include <map>

#include "moe/eplb_quota.h"

namespace duet {
namespace {

constexpr int kRounds = 8, kExchanges = 256;

// What a segment of a rank's tokens asks of one expert.
struct Item {
  int64_t tokens = 0;
  int expert = 0, rank = 0;
  int32_t slot = -1;
};

class Split {
 public:
  explicit Split(const ExpertPlacement& placement)
      : placement_(placement), gpu_(size_t(placement.gpus)) {}

  void put(Item& item, int32_t slot) {
    if (item.slot >= 0) load(item.slot) -= item.tokens;
    item.slot = slot;
    load(slot) += item.tokens;
  }

  // Items that have a choice of GPUs, in the order in which they are served.
  void level(const std::vector<Item*>& items) {
    for (Item* item : items) {
      const int32_t own = slot_on(*item, item->rank);
      put(*item, own >= 0 ? own : lightest(*item));
    }
    bool moved = true;
    for (int round = 0; round < kRounds && moved; ++round) {
      moved = false;
      for (Item* item : items) {
        const int32_t to = lightest(*item);
        if (load(to) + item->tokens >= load(item->slot)) continue;
        put(*item, to);
        moved = true;
      }
    }
    for (int i = 0; i < kExchanges && exchange(items); ++i) continue;
  }

 private:
  int64_t& load(int32_t slot) { return gpu_[size_t(placement_.gpu_of(slot))]; }
  int32_t lightest(const Item& item) {
    return *std::ranges::min_element(
        placement_.slots_of(item.expert), {}, [&](int32_t slot) { return load(slot); });
  }
  // The item's slot on a GPU, or -1.
  int32_t slot_on(const Item& item, int gpu) const {
    for (int32_t slot : placement_.slots_of(item.expert))
      if (placement_.gpu_of(slot) == gpu) return slot;
    return -1;
  }
  // By tokens, the items on one GPU that may go to another.
  std::multimap<int64_t, Item*> movable(const std::vector<Item*>& items, int from, int to) const {
    std::multimap<int64_t, Item*> found;
    for (Item* item : items)
      if (placement_.gpu_of(item->slot) == from && slot_on(*item, to) >= 0)
        found.emplace(item->tokens, item);
    return found;
  }
  // The heaviest GPU gives away what levels it best with another one.
  bool exchange(const std::vector<Item*>& items) {
    const int heavy = int(std::ranges::max_element(gpu_) - gpu_.begin());
    Item *give = nullptr, *take = nullptr;
    int64_t best = 0, to = 0;
    for (int light = 0; light < placement_.gpus; ++light) {
      const int64_t gap = gpu_[size_t(heavy)] - gpu_[size_t(light)];
      if (gap <= 2 * best) continue;
      auto back = movable(items, light, heavy);
      back.emplace(0, nullptr);  // nothing in return
      for (const auto& [tokens, item] : movable(items, heavy, light)) {
        const auto near = back.lower_bound(tokens - gap / 2);
        for (auto b : {near == back.end() ? std::prev(near) : near,
                 near == back.begin() ? near : std::prev(near)}) {
          const int64_t flow = tokens - b->first, gain = std::min(flow, gap - flow);
          if (gain > best) best = gain, give = item, take = b->second, to = light;
        }
      }
    }
    if (!give) return false;
    put(*give, slot_on(*give, int(to)));
    if (take) put(*take, slot_on(*take, heavy));
    return true;
  }

  const ExpertPlacement& placement_;
  std::vector<int64_t> gpu_;
};

}  // namespace

void choose_slots_by_segment(std::vector<std::vector<int32_t>>& choices, int64_t topk,
    const ExpertPlacement& placement, const Pieces& segments) {
  const size_t experts = size_t(placement.experts()),
               per_rank = size_t(segments.sequences * segments.segments_of_sequence()) * experts;
  const std::vector<int32_t> segment_of = segments.segments();
  std::vector<Item> items(choices.size() * per_rank);
  const auto item_of = [&](size_t rank, size_t i, int32_t e) -> Item& {
    const size_t segment = size_t(segment_of[i / size_t(topk)]);
    return items[rank * per_rank + segment * experts + size_t(e)];
  };
  for (size_t rank = 0; rank < choices.size(); ++rank)
    for (size_t i = 0; i < choices[rank].size(); ++i) ++item_of(rank, i, choices[rank][i]).tokens;
  Split split(placement);
  std::vector<Item*> with_choice;
  for (size_t i = 0; i < items.size(); ++i) {
    Item& item = items[i];
    if (item.tokens == 0) continue;
    item.expert = int(i % experts);
    item.rank = int(i / per_rank);
    if (placement.slots_of(item.expert).size() > 1)
      with_choice.push_back(&item);
    else
      split.put(item, placement.slots_of(item.expert)[0]);
  }
  std::ranges::stable_sort(with_choice, std::greater{}, &Item::tokens);
  split.level(with_choice);
  for (size_t r = 0; r < choices.size(); ++r)
    for (size_t i = 0; i < choices[r].size(); ++i)
      choices[r][i] = item_of(r, i, choices[r][i]).slot;
}

}  // namespace duet
