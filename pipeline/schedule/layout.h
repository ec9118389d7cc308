// Layout: who is who among the ranks, and which layers a stage has.
//
// World size = dp x pp. Rank = pp_rank * dp + dp_rank: the ranks of one stage, which reduce
// gradients among themselves (and exchange tokens, where experts are sharded), are neighbours.
// Read next: checkpoint/durable.h.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace duet {

struct Layout {
  int dp = 1, pp = 1;
  // divides dp: the experts are spread over ep neighbours among the data-parallel ranks
  int ep = 1;
  int world() const { return dp * pp; }
  int dp_rank(int rank) const { return rank % dp; }
  int pp_rank(int rank) const { return rank / dp; }
  int rank(int pp_rank, int dp_rank) const { return pp_rank * dp + dp_rank; }
  // the ranks with the same dp_rank, by pp_rank
  std::vector<int> pipeline_of(int r) const { return every(dp, dp_rank(r), pp); }
  // of the ranks with the same pp_rank, the ones that together have all experts
  std::vector<int> expert_parallel_of(int r) const { return every(1, r - dp_rank(r) % ep, ep); }
  // the ranks that have a part of the model, which those of these pp_ranks have; and of them the
  // ones that have the same of its experts as r
  std::vector<int> copies_of(const std::vector<int>& pp_ranks) const {
    return every_of(pp_ranks, 1, 0);
  }
  std::vector<int> expert_copies_of(int r, const std::vector<int>& pp_ranks) const {
    return every_of(pp_ranks, ep, dp_rank(r) % ep);
  }

 private:
  static std::vector<int> every(int step, int first, int n) {
    std::vector<int> ranks;
    for (int i = 0; i < n; ++i) ranks.push_back(first + i * step);
    return ranks;
  }
  std::vector<int> every_of(const std::vector<int>& pp_ranks, int step, int first) const {
    std::vector<int> ranks;
    for (int p : pp_ranks)
      for (int r : every(step, rank(p, first), dp / step)) ranks.push_back(r);
    return ranks;
  }
};

// Cuts the layers into `stages` consecutive parts, at least one layer each: [stages + 1]
// boundaries. By the GEMM work of a token, the head counted, so that the largest part is as small
// as possible (of equal ones the earlier parts are the larger); or as `split` says, the layers of
// each stage. Throws UsageError that names --split or --pp.
std::vector<int64_t> split_layers(
    const ModelConfig& config, int64_t seq_len, int stages, const std::vector<int64_t>& split);
std::vector<int64_t> parse_split(const std::string& text);  // "3,4,4,3"; throws UsageError

}  // namespace duet
