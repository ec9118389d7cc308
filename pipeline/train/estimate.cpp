// See estimate.h.
#include "pipeline/train/estimate.h"

#include <algorithm>

#include "model/machine/limits.h"

namespace duet {

namespace {

std::string gib(double bytes) { return format("%.1f GiB", bytes / (1 << 30)); }

}  // namespace

Need need_of(const Job& job) {
  const TrainOptions& o = job.options;
  const ModelConfig& c = job.config;
  const Layout& l = job.layout;
  const double here = find_launch().ranks > 1 ? 1. / l.world() : 1;  // part of the ranks
  const double expert = 3 * double(c.d_model) * double(c.d_expert),
               moe_layers = double(std::max<int64_t>(0, c.n_layers - c.first_k_dense));
  const double routed = moe_layers * double(c.n_routed) * expert,
               replicas = moe_layers * double(o.redundant_experts) * expert;
  const double parameters =
      here * l.dp * (double(c.parameters()) - routed + (routed + replicas) / l.ep);
  const double size = o.dtype == Dtype::bf16 ? 2 : 4;
  const double tokens = here * l.dp * double(o.seq_len) * double(o.micro_batch_size);
  Need need;
  const bool computes = o.device == DeviceKind::cpu && o.rehearse.empty();
  const int64_t threads = computes ? threads_per_rank(job) : 1;
  need.threads = job.run.transport == Wire::local ? l.world() * threads : threads;
  if (!o.rehearse.empty()) {  // messages alone
    need.activations = l.pp * tokens * size * double(c.d_model);
    return need;
  }
  need.weights = parameters * (size == 4 ? 4 : 2 + 4);  // bf16 has fp32 masters
  need.gradients = need.moments = 8 * parameters;
  // of one microbatch: what flows into the two halves of each layer, and the logits
  need.activations =
      tokens * size * (2 * double(c.n_layers) * double(c.d_model) + double(c.vocab_size));
  return need;
}

void check_fits(const Job& job) {
  const TrainOptions& o = job.options;
  const Need need = need_of(job);
  const double threads = usable_threads(), memory = usable_memory();
  require(double(need.threads) <= threads, "--dp, --pp, --threads: found ", job.layout.dp, " x ",
      job.layout.pp, " ranks, which need at least ", need.threads, " threads, allowed: ", threads,
      " on this machine");
  if (o.device != DeviceKind::cpu || need.all() <= memory) return;
  const std::string model = o.init.empty() ? "--preset, --model" : o.init;
  const bool one_fits = job.layout.dp > 1 && need.all() / job.layout.dp <= memory;
  const bool tokens = need.activations > need.all() / 2;
  throw UsageError(cat(one_fits ? "--dp"
          : tokens              ? "--seq-len, --micro-batch-size"
                                : model,
      ": found a job that needs at least ", gib(need.all()), " (weights ", gib(need.weights),
      ", gradients ", gib(need.gradients), ", moments ", gib(need.moments), ", activations ",
      gib(need.activations), "), allowed: what fits into the ", gib(memory), " of this machine"));
}

}  // namespace duet
