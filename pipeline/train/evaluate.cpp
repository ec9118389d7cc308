// Forward only: validation and sampling. See trainer.h.
#include <algorithm>

#include "comm/gather_named.h"
#include "pipeline/train/trainer.h"

namespace duet {

double validation_loss(Trainer& t) {
  const Job& job = t.job;
  const int64_t n = std::min(job.options.val_sequences, job.batches->val_sequences());
  double sum = 0;
  for (auto& [s, stage] : t.stages) stage->on_logits({});
  for (int64_t done = 0; done < n;) {
    t.executor.run(job.forward_only.ranks[size_t(t.pp_rank)], [&](int m) {
      // the last round is filled up with sequences that do not count
      return t.microbatch(m, [&](int64_t i, std::span<int32_t> tokens) {
        job.batches->val_sequence((done + i) % n, tokens);
      });
    });
    t.context.stream().synchronize();
    const std::map<std::string, std::vector<double>> mine = {
        {"loss", t.losses(job.forward_microbatches)}};
    for (double loss : sum_over_ranks(gather_named(t.world, mine).at("loss")))
      if (done++ < n) sum += loss;
    for (auto& [s, stage] : t.stages)
      for (int m = 0; m < job.forward_microbatches; ++m) stage->drop(m);
  }
  return sum / double(n * job.options.seq_len);
}

std::vector<float> next_token_logits(Trainer& t, std::span<const int32_t> context) {
  const size_t used = std::min(context.size(), size_t(t.context.seq_len));
  DUET_CHECK(used > 0, "expected at least one token of context, found none");
  Microbatch batch;
  // what follows the context does not reach back: attention is causal
  batch.inputs.assign(size_t(t.context.tokens()), 0);
  batch.targets = batch.inputs;
  std::copy(context.end() - ptrdiff_t(used), context.end(), batch.inputs.begin());
  std::vector<float> mine;
  for (auto& [s, stage] : t.stages)
    stage->on_logits([&](int, const Tensor& all) {
      mine = to_host(t.context.stream(), all.row_slice(int64_t(used) - 1, 1));
    });
  std::vector<Action> one;  // microbatch 0 alone
  for (const Action& a : t.job.forward_only.ranks[size_t(t.pp_rank)])
    if (a.microbatch == 0) one.push_back(a);
  t.executor.run(one, [&](int) { return batch; });
  t.context.stream().synchronize();
  for (auto& [s, stage] : t.stages) stage->drop(0);
  for (const std::vector<float>& logits : t.world.gather_vectors(mine))
    if (!logits.empty()) return logits;
  throw Error("sampling: expected a rank with logits, found none");
}

}  // namespace duet
