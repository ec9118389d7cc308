// DispatchPlan: which row goes where when tokens are brought into expert order. Plain host arithmetic on the router's choice, so
// that CPU and CUDA, and every rank, do the same; dropless: no capacity factor, every (token, expert) has a row.
//
// Expert order: by expert, and within an expert by token. Read next: moe.h.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace duet {

struct DispatchPlan {
  std::vector<int64_t> offsets;  // [experts + 1] expert e has rows offsets[e] .. offsets[e+1]-1
  std::vector<int32_t> token;    // [rows] the token of each row; rows = tokens * topk
  std::vector<int32_t> pos;      // [tokens, topk] the row of each choice

  // topk_idx [tokens, topk], each token's experts ascending.
  DispatchPlan(std::span<const int32_t> topk_idx, int64_t topk, int64_t experts);
  DispatchPlan() = default;
};

}  // namespace duet
