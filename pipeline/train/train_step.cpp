// A training step. See trainer.h.
#include <cmath>
#include <numeric>

#include "comm/gather_named.h"
#include "model/base/clock.h"
#include "model/machine/launch.h"
#include "moe/migration.h"
#include "pipeline/checkpoint/dump.h"
#include "pipeline/train/trainer.h"

namespace duet {
namespace {

// --- gradients -----------------------------------------------------------------------------------

// DualPipe's two copies of a part of the model each have one half of the microbatches: they swap,
// so that both have both. All messages are posted before the first is waited for: the two ranks of
// a pair list their stages in different orders.
void swap_mirrored_halves(Trainer& t) {
  const Schedule& s = t.job.schedule;
  Stream& stream = t.context.stream();
  Scope scope(t.context.recorder, stream, {"swap halves", "comm"});
  std::vector<Request> in, out;
  for (auto& [virtual_stage, stage] : t.stages) {
    const int other = (virtual_stage + s.stages() / 2) % s.stages(),
              mine = virtual_stage >= s.stages() / 2;
    const int peer = s.rank_of[size_t(other)], part = s.model_stage(virtual_stage);
    for (int set : {0, 1}) {
      const Params& params = *stage->param_sets()[size_t(set)];
      in.push_back(t.pipeline.irecv(
          stream, params.grad_arena(1 - mine), peer, {Tag::W, 2 * part + set, 1 - mine}));
      out.push_back(
          t.pipeline.isend(stream, params.grad_arena(mine), peer, {Tag::W, 2 * part + set, mine}));
    }
  }
  for (const Request& request : in) t.pipeline.wait(stream, request);
  for (const Request& request : out) request.wait();
}

void reduce_gradients(Trainer& t) {
  // elements reduced at a time, so that scratch memory stays small
  constexpr int64_t kBucket = 4 << 20;
  Stream& stream = t.context.stream();
  if (t.job.schedule.two_directions) swap_mirrored_halves(t);
  for (auto& [s, stage] : t.stages)
    for (auto [set, ranks] : {std::pair(&stage->params(), &t.replicas),
             std::pair(&stage->experts(), &t.expert_replicas)}) {
      {
        Scope scope(t.context.recorder, stream, {"add halves", "compute", s});
        set->add_halves(stream);
      }
      if (set == &stage->experts())
        for (Moe* moe : stage->moe())
          if (moe) sum_replicas(t.experts, t.device, *moe);
      if (ranks->size() == 1) continue;
      const Tensor grad = set->grad_arena(0);
      Scope scope(
          t.context.recorder, stream, {"reduce gradients", "comm", s, -1, -1, grad.bytes()});
      Buf scratch = t.device.buffer(
          1, ranks->scratch_size(std::min(kBucket, grad.cols)), grad.dtype, Use::messages);
      for (int64_t at = 0; at < grad.cols; at += kBucket) {
        const int64_t n = std::min(kBucket, grad.cols - at);
        ranks->all_reduce(stream, grad.col_slice(at, n).reshape(1, n), scratch);
      }
    }
}

// --- numbers -------------------------------------------------------------------------------------

// What a rank knows of a step. Of "square NAME" several ranks may have copies, of the others parts,
// in vectors of one length each.
using Facts = std::map<std::string, std::vector<double>>;

template <class T> void add_to(std::vector<double>& sum, const std::vector<T>& values) {
  sum.resize(values.size());
  for (size_t i = 0; i < values.size(); ++i) sum[i] += double(values[i]);
}

Facts facts_of_step(Trainer& t) {
  Facts facts;
  const int microbatches = int(t.job.options.microbatches), dp = t.job.layout.dp;
  for (auto& [s, stage] : t.stages) {
    Scope scope(t.context.recorder, t.context.stream(), {"gradient norm", "compute", s});
    for (Params* set : stage->param_sets()) {
      const Comm& copies = set == &stage->params() ? t.replicas : t.expert_replicas;
      if (copies.rank() != 0) continue;  // who has copies of all that the first one has
      const std::vector<double> squares = set->squares(t.context.stream());
      auto square = squares.begin();
      for (const Param& p : set->all())
        if (p.trained) facts["square " + p.name] = {*square++};
    }
  }
  t.for_each_moe([&](int64_t layer, const Moe& moe, int stage) {
    add_to(facts[cat("load ", layer)], moe.load());
    add_to(facts[cat("work ", layer)], moe.work());
    std::vector<double>& balance = facts[cat("balance ", layer)];  // by place in the global batch
    balance.resize(size_t(microbatches * dp));
    const std::vector<double> of_microbatch = moe.balance_loss();
    for (int m = 0; m < microbatches; ++m)
      if (t.job.schedule.visits(stage, m))
        balance[size_t(m * dp + t.dp_rank)] = of_microbatch[size_t(m)];
  });
  facts["loss"] = t.losses(microbatches);
  return facts;
}

// What all ranks know of the step, in `r`.
void add_up(Trainer& t, const Facts& facts, StepResult& r) {
  Gathered<std::vector<double>> all;
  {
    Scope scope(t.context.recorder, t.context.stream(), {"exchange losses and norms", "wait"});
    all = gather_named(t.world, facts);
  }
  for (const auto& [rank, stop] : all.at("stop")) r.stop = std::max(r.stop, int(stop[0]));
  r.given_up = all.contains("given up");
  if (r.given_up) return;
  const auto sum = [&](const std::string& name) { return sum_over_ranks(all.at(name)); };
  const auto total = [](const std::vector<double>& values, double first = 0) {
    return std::accumulate(values.begin(), values.end(), first);
  };
  double squares = 0, done = 0, possible = 0;
  for (const auto& [name, copies] : all)
    if (name.starts_with("square ")) squares += copies[0].second[0];
  r.grad_norm = std::sqrt(squares);
  r.loss = total(sum("loss")) / double(r.tokens);
  r.idle = sum("idle")[0] / t.world.size();
  r.traffic = {int64_t(sum("bytes")[0]), int64_t(sum("bytes")[1])};
  for (int64_t layer : t.moe_layers()) {
    r.balance_loss = total(sum(cat("balance ", layer)), r.balance_loss);
    const std::vector<double> tokens = sum(cat("load ", layer));
    std::vector<double> work = sum(cat("work ", layer));
    LayerLoad& load = r.loads.emplace_back(LayerLoad{layer, {tokens.begin(), tokens.end()}});
    if (work.empty()) continue;
    for (double& w : work) w /= t.job.layout.ep;        // each rank of a group reports for all
    const double most = t.job.layout.ep * work.back();  // of the busiest rank
    work.pop_back();
    load.tokens_per_rank.assign(work.begin(), work.end());
    if (most > 0) load.balancedness = total(work) / most;
    done += total(work);
    possible += most;
  }
  if (possible > 0) r.balancedness = done / possible;
  r.balance_loss /= double(t.job.global_sequences());
}

void update(Trainer& t, const StepResult& r) {
  const TrainOptions& o = t.job.options;
  AdamWOptions adamw = o.adamw;
  adamw.lr = r.lr;
  const double clip = o.clip > 0 && r.grad_norm > o.clip ? o.clip / r.grad_norm : 1.0;
  for (auto& [s, stage] : t.stages) {
    Scope scope(t.context.recorder, t.context.stream(), {"AdamW", "compute", s});
    for (Params* set : stage->param_sets()) set->adamw(t.context.stream(), adamw, clip, r.step);
  }
  if (o.bias_update_speed == 0) return;
  t.for_each_moe([&](int64_t layer, Moe& moe, int) {
    const size_t index = size_t(layer - t.job.config.first_k_dense);
    moe.update_bias(r.loads[index].tokens_per_expert, o.bias_update_speed);
  });
}

}  // namespace

StepResult train_step(Trainer& t, int64_t step, const StepHooks& hooks) {
  const Job& job = t.job;
  const double begin = seconds_now();
  t.device.flops = 0;
  t.world.take_traffic();  // what was sent between steps is no step's
  t.context.recorder = hooks.recorder;
  StepResult r{.step = step,
      .lr = job.options.lr_at(step),
      .tokens = job.global_sequences() * job.options.seq_len};
  std::optional<StepDump> dump;
  if (!hooks.dump.empty()) dump.emplace(t.context);
  std::optional<Scope> whole;
  whole.emplace(t.context.recorder, t.context.stream(), Mark{"step", "step"});
  const auto batch = [&](int m) {
    return t.microbatch(m, [&](int64_t i, std::span<int32_t> tokens) {
      job.batches->sequence(job.options.seed, step - 1, i, tokens);
    });
  };
  for (auto& [s, stage] : t.stages) {
    Scope scope(t.context.recorder, t.context.stream(), {"zero gradients", "compute", s});
    stage->begin_step();
    std::function<void(int, const Tensor&)> take_logits;
    if (dump && stage->options().head)
      take_logits = [&](int m, const Tensor& logits) {
        dump->add(m * job.layout.dp + t.dp_rank, batch(m), logits);
      };
    stage->on_logits(take_logits);
  }
  const bool gave_up = t.executor.run(job.schedule.ranks[size_t(t.pp_rank)], batch,
      job.layout.ep == 1 ? hooks.give_up : std::function<bool()>());
  t.context.stream().synchronize();
  const double schedule_seconds = seconds_now() - begin;

  reduce_gradients(t);
  Facts facts = gave_up ? Facts() : facts_of_step(t);
  if (gave_up) facts["given up"] = {1};
  facts["stop"] = {double(hooks.stop())};
  facts["idle"] = {t.executor.waited() / schedule_seconds};
  const Traffic sent = t.world.take_traffic();
  facts["bytes"] = {double(sent.intra), double(sent.inter)};
  add_up(t, facts, r);
  if (r.given_up) {
    t.context.recorder = nullptr;
    return r;
  }
  if (!std::isfinite(r.loss) || !std::isfinite(r.grad_norm))
    throw Error(cat("step ", r.step, ": the loss is ", r.loss, " and the gradient norm ",
        r.grad_norm, ", expected finite numbers; no weight was changed"));
  if (dump) {
    for (Params* set : t.param_sets()) dump->add(*set);
    dump->write(t.world, hooks.dump, r.loss);
  }
  update(t, r);
  whole.reset();
  rebalance(t, r);
  t.context.stream().synchronize();
  t.context.recorder = nullptr;
  r.seconds = seconds_now() - begin;
  r.flops = t.device.flops;
  return r;
}

}  // namespace duet
