// DispatchPlan, ExchangePlan: which row goes where when tokens travel to their experts. Plain host
// arithmetic on the router's choice, so that CPU and CUDA, and every rank, do the same. Dropless:
// no capacity factor, every (token, expert) has a row.
//
// A slot is a place for an expert; rank r of the expert-parallel group has slots r*slots ..
// (r+1)*slots-1.
//   expert order    by slot, and within a slot as the tokens came: by source rank, then token
//   dispatch        sends a token once to each rank that has one of its experts
//   combine         sends back one row per (token, expert), so that the sum over a token's experts,
//                   in ascending order at its source, has the same bits however the experts are
//                   spread
// Read next: moe.h.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace duet {

// Tokens that are here into expert order.
struct DispatchPlan {
  std::vector<int64_t> offsets;  // [slots + 1] slot s has rows offsets[s] .. offsets[s+1]-1
  std::vector<int32_t> token;    // [rows] the token of each row
  // [tokens, topk] the row of each choice, -1 where the choice is elsewhere
  std::vector<int32_t> pos;

  // choice [tokens, topk]: slots 0 .. slots-1, or -1 where not here.
  DispatchPlan(std::span<const int32_t> choice, int64_t topk, int64_t slots);
  DispatchPlan() = default;
};

// Tokens of all ranks of an expert-parallel group to the ranks of their slots, and back, as rank
// `me` sees it. Offsets are rows, by rank of the group, as all_to_all_v takes them.
struct ExchangePlan {
  std::vector<int32_t> send_token;  // [sent] my tokens in the order in which they leave
  // [tokens, topk] which sent rows are the token's, -1 in the rest
  std::vector<int32_t> send_pos;
  // [ranks + 1] dispatch: offsets of what leaves and of what comes
  std::vector<int64_t> sent, received;
  DispatchPlan local;  // of the received rows into expert order
  // [rows] combine: the row in expert order of each that goes back; the inverse
  std::vector<int32_t> back_row, back_from;
  std::vector<int64_t> back_sent, back_received;  // [ranks + 1] combine: offsets
  std::vector<int32_t> pos;  // [tokens, topk] where each of my choices comes back

  // choices[r] [tokens, topk]: the slots that rank r's tokens chose, ascending by expert. Every
  // rank has them all.
  ExchangePlan(
      const std::vector<std::vector<int32_t>>& choices, int64_t topk, int64_t slots, int me);
};

}  // namespace duet
