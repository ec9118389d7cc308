// Making a trainer, and what is done with it beside steps: forward only, and experts on the move.
// See trainer.h.
#include "pipeline/train/trainer.h"

#include <algorithm>

#include "comm/gather_named.h"
#include "moe/migration.h"
#include "pipeline/schedule/add_comms.h"

namespace duet {

static void make_stages(Trainer& t) {
  const Job& job = t.job;
  const Schedule& s = job.schedule;
  StageOptions o{.microbatches = int(job.options.microbatches), .seed = job.options.seed};
  o.moe.group = t.expert_parallel.size() > 1 ? &t.expert_parallel : nullptr;
  o.moe.comm = t.comm ? &static_cast<Stream&>(*t.comm) : nullptr;
  o.moe.ranks_per_node = job.options.balancer.ranks_per_node();
  o.moe.split = job.options.replica_split;
  o.moe.balanced = job.options.force_balanced_routing;
  o.placement = [&t](int64_t layer) { return t.monitor.placement(layer); };
  for (o.index = 0; o.index < s.stages(); ++o.index) {
    if (s.rank_of[size_t(o.index)] != t.pp_rank) continue;
    const int part = s.model_stage(o.index);
    o.layer_begin = job.layer_bounds[size_t(part)];
    o.layer_end = job.layer_bounds[size_t(part) + 1];
    t.stages[o.index] = std::make_unique<Stage>(t.context, o);
  }
}

// One group after the other: those of a schedule's two directions may overlap.
static std::map<std::vector<int>, Trainer::Copies> group_copies(const Job& job, Comm& world) {
  const Layout& layout = job.layout;
  const int me = world.rank();
  std::map<std::vector<int>, Trainer::Copies> copies;
  for (int part = 0; part < job.schedule.model_stages(); ++part) {
    const std::vector<int> pp_ranks = job.schedule.ranks_of(part);
    if (copies.contains(pp_ranks)) continue;
    const bool mine = std::ranges::count(pp_ranks, layout.pp_rank(me)) > 0;
    const auto group = [&](const std::vector<int>& ranks) {
      return world.group(mine ? ranks : std::vector<int>{me});
    };
    copies.emplace(pp_ranks,
        Trainer::Copies{
            group(layout.copies_of(pp_ranks)), group(layout.expert_copies_of(me, pp_ranks))});
  }
  return copies;
}

Trainer::Trainer(const Job& job, Comm& world, Device& device)
    : job(job), world(world), device(device), dp_rank(job.layout.dp_rank(world.rank())),
      pp_rank(job.layout.pp_rank(world.rank())),
      channels(world, device, message_pairs(job), Carries::host_values),
      pipeline(world.group(job.layout.pipeline_of(world.rank()), Carries::host_values)),
      expert_parallel(world.group(job.layout.expert_parallel_of(world.rank()))),
      copies(group_copies(job, world)),
      context{device, job.config, *job.options.dtype, job.options.seq_len,
          job.options.micro_batch_size, 1 / double(job.global_sequences() * job.options.seq_len),
          job.options.balance_loss / double(job.global_sequences()), job.options.segment_tokens},
      monitor(job.options.balancer, moe_layers()),
      executor(job.schedule, pipeline, context, computing(stages), job.options.overlap) {
  if (job.options.overlap && expert_parallel.size() > 1) comm.emplace(world, device);
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

// --- forward only --------------------------------------------------------------------------------

// The forwards of microbatches 0 .. n-1, each freed when it is done. Each rank goes through its own
// in order of microbatch, then stage: an order in which no rank can wait for ever.
static void run_forwards(Trainer& t, int64_t n, const Executor::Tokens& tokens) {
  Schedule s = t.job.compute;
  s.ranks.assign(size_t(s.pp), {});
  for (int m = 0; m < n; ++m)
    for (int stage = s.first_stage(m); stage <= s.last_stage(m); ++stage)
      s.ranks[size_t(s.rank_of[size_t(stage)])].push_back({Kind::F, stage, m});
  t.executor.run(add_comms(s).ranks[size_t(t.pp_rank)], tokens);
  t.context.stream().synchronize();
}

double validation_loss(Trainer& t) {
  const Job& job = t.job;
  const int64_t n = std::min(job.options.val_sequences, job.batches->val_sequences());
  double sum = 0;
  for (auto& [s, stage] : t.stages) stage->watch({});
  const int64_t at_once = job.layout.dp * job.options.micro_batch_size;
  for (int64_t done = 0; done < n;) {
    const int64_t microbatches =
        std::min(job.options.microbatches / job.compute.weight_copies(),  // of one direction
            (n - done + at_once - 1) / at_once);
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
    stage->watch({.logits = [&](int, const Tensor& all) {
      mine = to_host(t.context.stream(), all.row_slice(int64_t(used) - 1, 1));
    }});
  run_forwards(t, 1, [&](int) { return batch; });
  for (const std::vector<float>& logits : t.world.gather_vectors(mine))
    if (!logits.empty()) return logits;
  throw Error("sampling: expected a rank with logits, found none");
}

// --- experts on the move -------------------------------------------------------------------------
// Planning is in moe/load_monitor.h, moving in moe/migration.h.

void rebalance(Trainer& t, StepResult& r) {
  for (const LayerLoad& load : r.loads) t.monitor.add(load.layer, load.tokens_per_expert);
  if (!t.monitor.due(r.step)) return;
  std::map<int64_t, ExpertPlacement> next;
  uint64_t hash = 0;
  for (LayerLoad& load : r.loads) {
    load.replan = t.monitor.propose(load.layer);
    hash = hash * 0x100000001b3u + load.replan->placement.hash();
    if (!load.replan->skipped) next[load.layer] = load.replan->placement;
  }
  check_same_plans(t.world, r.step, hash);
  place_experts(t, next);
}

void place_experts(Trainer& t, const std::map<int64_t, ExpertPlacement>& placements) {
  if (placements.empty()) return;
  t.for_each_moe([&](int64_t layer, Moe& moe, int) {
    if (const auto found = placements.find(layer); found != placements.end())
      migrate(t.expert_parallel, t.device, moe, found->second);
  });
  for (auto& [s, stage] : t.stages) stage->expert_params().masters_changed(t.context.stream());
  for (const auto& [layer, placement] : placements) t.monitor.set_placement(layer, placement);
}

}  // namespace duet
