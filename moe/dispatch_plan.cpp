// See dispatch_plan.h. A counting sort.
#include "moe/dispatch_plan.h"

namespace duet {

DispatchPlan::DispatchPlan(std::span<const int32_t> topk_idx, int64_t topk, int64_t experts)
    : offsets(size_t(experts) + 1), token(topk_idx.size()), pos(topk_idx.size()) {
  for (int32_t e : topk_idx) ++offsets[size_t(e) + 1];
  for (int64_t e = 0; e < experts; ++e) offsets[size_t(e) + 1] += offsets[size_t(e)];
  std::vector<int64_t> next(offsets.begin(), offsets.end() - 1);
  for (size_t i = 0; i < topk_idx.size(); ++i) {
    const int64_t row = next[size_t(topk_idx[i])]++;
    pos[i] = int32_t(row);
    token[size_t(row)] = int32_t(int64_t(i) / topk);
  }
}

}  // namespace duet
