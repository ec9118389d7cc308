// Quotas: how many of a microbatch's tokens each replica of an expert gets. A plan is made from
// past loads; the tokens of this microbatch are known once the ranks have exchanged their counts,
// and splitting them evenly over the replicas would waste that. Replicas are valves: an expert on
// two GPUs can send any part of its tokens to either, so the GPUs can be levelled exactly, as long
// as enough tokens have a choice. This is what makes replicas pay when the plan is stale.
//
// Water-filling: expert by expert, its tokens are taken back and poured over its GPUs onto what the
// other experts left there, as water finds its level; after a few rounds over all experts nothing
// flows any more. (It is coordinate descent on the sum of squared GPU loads, whose minimum also has
// the least possible maximum.) All in integers: every rank gets the same answer.
//
// Ranks are the GPUs of the placement.
// Read next: eplb_incremental.h.
#pragma once
#include "model/machine/grid.h"
#include "moe/eplb.h"

namespace duet {

// tokens [experts]: of all ranks together. Returns the tokens of each slot [replicas]; the sum over
// an expert's slots is tokens[e]. Of an expert's replicas on one GPU only the first is used.
std::vector<int64_t> slot_quotas(std::span<const int64_t> tokens, const ExpertPlacement& placement);

// counts [ranks, experts]: tokens of each source rank for each expert. Returns [ranks, replicas]:
// how many of them go to each slot; rank r's sum over an expert's slots is counts[r, e], the sum
// over ranks is slot_quotas. A rank's own replica is served first, then those on its node, so that
// as little as possible travels. By convention a rank's tokens for an expert, in token order, go to
// the expert's slots in the order of log2phy.
std::vector<int32_t> rank_quotas(
    std::span<const int32_t> counts, const ExpertPlacement& placement, int ranks_per_node);

// How an expert's tokens are shared among its replicas: by whole segments of sequences, so that a
// segment's piece of the expert's gradient is the same as without replicas (model/machine/grid.h);
// or token by token, which levels a little better and moves gradients by a rounding.
enum class ReplicaSplit { segment, token };
constexpr const char* split_name(ReplicaSplit s) {
  return s == ReplicaSplit::segment ? "segment" : "token";
}

// Choices of experts become choices of slots, in place. choices[r] [tokens, topk]: of rank r, whose
// tokens lie in `segments`.
void choose_slots_by_segment(std::vector<std::vector<int32_t>>& choices, int64_t topk,
    const ExpertPlacement& placement, const Pieces& segments);
// The same token by token: by rank_quotas and its convention.
void choose_slots(std::vector<std::vector<int32_t>>& choices, const ExpertPlacement& placement,
    int ranks_per_node);

// Tokens of each GPU, from the tokens of each slot. [gpus]
std::vector<double> quota_load(const ExpertPlacement& placement, std::span<const int64_t> quotas);

}  // namespace duet
