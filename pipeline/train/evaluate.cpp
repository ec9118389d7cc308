// Forward only: validation and sampling. See trainer.h.
#include <algorithm>

#include "comm/gather_named.h"
#include "pipeline/train/trainer.h"

namespace duet {

// The forwards of microbatches 0 .. n-1, each freed when it is done.
static void run_forwards(Trainer& t, int64_t n, const Executor::Tokens& tokens) {
  std::vector<Action> list;
  for (const Action& a : t.job.forward_only.ranks[size_t(t.pp_rank)])
    if (a.microbatch < n) list.push_back(a);
  t.executor.run(list, tokens);
  t.context.stream().synchronize();
}

double validation_loss(Trainer& t) {
  const Job& job = t.job;
  const int64_t n = std::min(job.options.val_sequences, job.batches->val_sequences());
  double sum = 0;
  for (auto& [s, stage] : t.stages) {
    stage->on_logits({});
    stage->on_layer({});
  }
  const int64_t at_once = job.layout.dp * job.options.micro_batch_size;
  for (int64_t done = 0; done < n;) {
    const int64_t microbatches =
        std::min<int64_t>(job.forward_microbatches, (n - done + at_once - 1) / at_once);
    run_forwards(t, microbatches, [&](int m) {
      // the last microbatches are filled up with sequences that do not count
      return t.microbatch(m, [&](int64_t i, std::span<int32_t> tokens) {
        job.batches->val_sequence((done + i) % n, tokens);
      });
    });
    const std::map<std::string, std::vector<double>> mine = {{"loss", t.losses(microbatches)}};
    for (double loss : sum_over_ranks(gather_named(t.world, mine).at("loss")))
      if (done++ < n) sum += loss;
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
  run_forwards(t, 1, [&](int) { return batch; });
  for (const std::vector<float>& logits : t.world.gather_vectors(mine))
    if (!logits.empty()) return logits;
  throw Error("sampling: expected a rank with logits, found none");
}

}  // namespace duet
