// Making a trainer. See trainer.h; what a step does with it is in train_step.cpp.
#include "pipeline/train/trainer.h"

#include <algorithm>

namespace duet {

static void make_stages(Trainer& t) {
  const Job& job = t.job;
  const Schedule& s = job.schedule;
  StageOptions o{.microbatches = int(job.options.microbatches), .seed = job.options.seed};
  o.moe.group = t.experts.size() > 1 ? &t.experts : nullptr;
  o.moe.comm = t.comm ? &static_cast<Stream&>(*t.comm) : nullptr;
  o.moe.ranks_per_node = job.balancer.ranks_per_node();
  o.moe.split = job.options.replica_split;
  o.moe.balanced = job.options.force_balanced_routing;
  o.placement = [&t](int64_t layer) { return t.monitor.placement(layer); };
  for (o.index = 0; o.index < s.stages(); ++o.index) {
    if (s.rank_of[size_t(o.index)] != t.pp_rank) continue;
    const int part = s.model_stage(o.index);
    o.layer_begin = job.layer_bounds[size_t(part)];
    o.layer_end = job.layer_bounds[size_t(part) + 1];
    o.embedding = part == 0;
    o.head = part == s.model_stages() - 1;
    t.stages[o.index] = std::make_unique<Stage>(t.context, o);
  }
}

Trainer::Trainer(const Job& job, Comm& world, Device& device)
    : job(job), world(world), device(device), dp_rank(job.layout.dp_rank(world.rank())),
      pp_rank(job.layout.pp_rank(world.rank())),
      channels(world, device, message_pairs(job), Carries::host_values),
      pipeline(world.group(job.layout.pipeline_of(world.rank()), Carries::host_values)),
      replicas(world.group(job.layout.replicas_of(world.rank()))),
      experts(world.group(job.layout.experts_of(world.rank()))),
      expert_replicas(world.group(job.layout.expert_replicas_of(world.rank()))),
      context{device, job.config, *job.options.dtype, job.options.seq_len,
          job.options.micro_batch_size, 1 / double(job.global_sequences() * job.options.seq_len),
          job.options.balance_loss / double(job.global_sequences()), job.options.segment_tokens},
      monitor(job.balancer, moe_layers()),
      executor(job.schedule, pipeline, context, model_stages, job.options.overlap) {
  if (job.options.overlap && experts.size() > 1) comm.emplace(world, device);
  check_same_plans(world, 0, monitor.hash());
  make_stages(*this);
}

std::vector<Params*> Trainer::param_sets() const {
  std::vector<Params*> all;
  for (const auto& [s, stage] : stages)
    for (Params* set : stage->param_sets()) all.push_back(set);
  return all;
}

std::vector<int64_t> Trainer::moe_layers() const {
  std::vector<int64_t> layers;
  for (int64_t l = job.config.first_k_dense; l < job.config.n_layers; ++l) layers.push_back(l);
  return layers;
}

Microbatch Trainer::microbatch(int m, const Sequence& sequence) const {
  const TrainOptions& o = job.options;
  Microbatch batch;
  std::vector<int32_t> tokens(size_t(o.seq_len) + 1);
  for (int64_t j = 0; j < o.micro_batch_size; ++j) {
    sequence(sequence_index(m, dp_rank, job.layout.dp, o.micro_batch_size, j), tokens);
    batch.inputs.insert(batch.inputs.end(), tokens.begin(), tokens.end() - 1);
    batch.targets.insert(batch.targets.end(), tokens.begin() + 1, tokens.end());
  }
  return batch;
}

std::vector<double> Trainer::losses(int64_t n) const {
  const int64_t dp = job.layout.dp, size = job.options.micro_batch_size;
  std::vector<double> all(size_t(n * dp * size), 0.0);
  for (int m = 0; m < n; ++m)
    if (const auto last = stages.find(job.schedule.last_stage(m)); last != stages.end()) {
      const std::vector<double> mine = last->second->losses(m);
      std::copy(mine.begin(), mine.end(), &all[size_t(sequence_index(m, dp_rank, dp, size, 0))]);
    }
  return all;
}

}  // namespace duet
