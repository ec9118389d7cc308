// See eplb_quota.h.
#include "moe/eplb_quota.h"

#include <algorithm>

namespace duet {

namespace {

constexpr int kRounds = 8;

// One of an expert's GPUs.
struct Vessel {
  int64_t base;    // tokens of the other experts
  int64_t before;  // of this one, in the last round
  int32_t slot;
  int gpu;
};

// Pours `tokens` over the vessels so that the fullest is as low as can be; ties go to the lower
// slot. Adds nothing to the GPUs.
void pour(int64_t tokens, std::span<Vessel> vessels, std::span<int64_t> quota) {
  std::ranges::sort(vessels, {}, [](const Vessel& v) { return std::pair(v.base, v.slot); });
  int64_t wet = 0, volume = tokens;  // vessels under water; their bases and the tokens together
  while (wet < int64_t(vessels.size()) && vessels[size_t(wet)].base * wet <= volume)
    volume += vessels[size_t(wet++)].base;
  const int64_t level = volume / wet, rest = volume % wet;
  for (int64_t i = 0; i < int64_t(vessels.size()); ++i) {
    const Vessel& v = vessels[size_t(i)];
    quota[size_t(v.slot)] = i < wet ? level + (i < rest) - v.base : 0;
  }
}

}  // namespace

std::vector<int64_t> slot_quotas(
    std::span<const int64_t> tokens, const ExpertPlacement& placement) {
  std::vector<int64_t> quota(placement.phy2log.size()), gpu(size_t(placement.gpus));
  std::vector<int> choice;  // the experts with several replicas
  std::vector<Vessel> vessels;
  for (int e = 0; e < placement.experts(); ++e) {
    const std::span<const int32_t> slots = placement.slots_of(e);
    if (slots.size() > 1)
      choice.push_back(e);
    else
      gpu[size_t(placement.gpu_of(slots[0]))] += quota[size_t(slots[0])] = tokens[size_t(e)];
  }
  bool changed = true;
  for (int round = 0; round < kRounds && changed; ++round) {
    changed = false;
    for (int e : choice) {
      vessels.clear();
      for (int32_t slot : placement.slots_of(e)) {
        const int g = placement.gpu_of(slot);
        const int64_t before = quota[size_t(slot)];
        if (std::ranges::find(vessels, g, &Vessel::gpu) == vessels.end())
          vessels.push_back({gpu[size_t(g)] - before, before, slot, g});
      }
      pour(tokens[size_t(e)], vessels, quota);
      for (const Vessel& v : vessels) {
        gpu[size_t(v.gpu)] = v.base + quota[size_t(v.slot)];
        changed |= quota[size_t(v.slot)] != v.before;
      }
    }
  }
  return quota;
}

std::vector<int32_t> rank_quotas(
    std::span<const int32_t> counts, const ExpertPlacement& placement, int ranks_per_node) {
  const int ranks = placement.gpus, experts = placement.experts(), replicas = placement.replicas();
  DUET_CHECK(int64_t(counts.size()) == int64_t(ranks) * experts, "counts: expected ", ranks, " x ",
      experts, ", found ", counts.size());
  std::vector<int64_t> tokens(size_t(experts), 0);
  for (size_t i = 0; i < counts.size(); ++i) tokens[i % size_t(experts)] += counts[i];
  std::vector<int64_t> open = slot_quotas(tokens, placement);  // what each slot still takes
  std::vector<int32_t> out(size_t(ranks) * size_t(replicas), 0);
  std::vector<int32_t> left(counts.begin(), counts.end());  // what each rank still has
  const auto send = [&](int rank, int e, int32_t slot) {
    int32_t& have = left[size_t(rank * experts + e)];
    const int32_t n = int32_t(std::min<int64_t>(have, open[size_t(slot)]));
    have -= n;
    open[size_t(slot)] -= n;
    out[size_t(rank * replicas + slot)] += n;
  };
  for (int e = 0; e < experts; ++e) {
    const std::span<const int32_t> slots = placement.slots_of(e);
    for (int reach : {1, ranks_per_node, ranks}) {
      if (slots.size() == 1 && reach < ranks) continue;  // no choice
      for (int rank = 0; rank < ranks; ++rank)
        for (int32_t slot : slots)
          if (placement.gpu_of(slot) / reach == rank / reach) send(rank, e, slot);
    }
  }
  return out;
}

void choose_slots(std::vector<std::vector<int32_t>>& choices, const ExpertPlacement& placement,
    int ranks_per_node) {
  if (placement.max_count == 1) {  // nothing to choose
    for (std::vector<int32_t>& of_rank : choices)
      for (int32_t& choice : of_rank) choice = placement.log2phy[size_t(choice)];
    return;
  }
  const size_t experts = size_t(placement.experts()), replicas = size_t(placement.replicas());
  std::vector<int32_t> counts(choices.size() * experts, 0);
  for (size_t rank = 0; rank < choices.size(); ++rank)
    for (int32_t e : choices[rank]) ++counts[rank * experts + size_t(e)];
  std::vector<int32_t> quota = rank_quotas(counts, placement, ranks_per_node);
  for (size_t rank = 0; rank < choices.size(); ++rank) {
    std::vector<size_t> at(experts, 0);  // the replica whose quota is being used
    for (int32_t& choice : choices[rank]) {
      const size_t e = size_t(choice);
      const std::span<const int32_t> slots = placement.slots_of(int(e));
      while (quota[rank * replicas + size_t(slots[at[e]])] == 0) ++at[e];
      choice = slots[at[e]];
      --quota[rank * replicas + size_t(choice)];
    }
  }
}

std::vector<double> quota_load(const ExpertPlacement& placement, std::span<const int64_t> quotas) {
  std::vector<double> total(size_t(placement.gpus));
  for (int p = 0; p < placement.replicas(); ++p)
    total[size_t(placement.gpu_of(p))] += double(quotas[size_t(p)]);
  return total;
}

}  // namespace duet
