// DispatchPlan, ExchangePlan: which row goes where when tokens travel to their experts. Plain host
// arithmetic on the router's choice, so that CPU and CUDA, and every rank, do the same. Dropless:
// no capacity factor, every (token, expert) has a row.
//
// A slot is a place for an expert; rank r of the expert-parallel group has slots r*slots ..
// (r+1)*slots-1.
//   expert order    by slot, and within a slot as the tokens came: by source rank, then token
//   dispatch        sends a token once to each rank that has one of its experts
//   combine         sends back one row per (token, expert), in expert order, so that the sum over a
//                   token's experts, in ascending order at its source, has the same bits however
//                   the experts are spread; so does the backward of dispatch
// Within a slot the rows of one segment of a sequence are adjacent and ascending: its piece of the
// expert's gradient is summed in one chain (model/machine/grid.h).
// In a group of one, rows already are in the order in which they would leave and come back: none is
// moved.
// Read next: rows/router.h.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "model/machine/grid.h"

namespace duet {

// Rows sorted by where their tokens go, a slot or a rank; in each as the tokens came.
struct DispatchPlan {
  std::vector<int64_t> offsets;  // [places + 1] place p has rows offsets[p] .. offsets[p+1]-1
  std::vector<int32_t> token;    // [rows] the token of each row
  // [tokens, topk] the row of each choice, -1 where there is none
  std::vector<int32_t> pos;

  // choice [tokens, topk]: places 0 .. places-1, or -1.
  DispatchPlan(std::span<const int32_t> choice, int64_t topk, int64_t places);
  DispatchPlan() = default;
};

// Tokens of all ranks of an expert-parallel group to the ranks of their slots, and back, as rank
// `me` sees it. Offsets are rows, by rank of the group, as all_to_all_v takes them.
struct ExchangePlan {
  DispatchPlan leave;             // my tokens to ranks, each rank once, ascending
  std::vector<int64_t> received;  // [ranks + 1] offsets of the tokens that come
  DispatchPlan local;             // of the received rows into expert order
  DispatchPlan back;              // of the rows in expert order to the ranks of their tokens
  std::vector<int64_t> returned;  // [ranks + 1] offsets of the results that come back
  std::vector<int32_t> pos;       // [tokens, topk] where each of my choices comes back
  // Where slot, source, sequence or segment change in expert order, or kMaxPiece rows are full.
  std::vector<int64_t> pieces;

  // choices[r] [tokens, topk]: the slots that rank r's tokens chose, ascending by expert. Every
  // rank has them all. segments: of a rank's tokens.
  ExchangePlan(const std::vector<std::vector<int32_t>>& choices, int64_t topk, int64_t slots,
      int me, const Pieces& segments);
  ExchangePlan() = default;
};

}  // namespace duet
