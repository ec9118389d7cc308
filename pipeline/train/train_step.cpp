// A training step. See trainer.h.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "comm/gather_named.h"
#include "model/base/clock.h"
#include "model/machine/launch.h"
#include "model/rows/list.h"
#include "moe/migration.h"
#include "pipeline/checkpoint/dump.h"
#include "pipeline/train/trainer.h"

namespace duet {
namespace {

// --- gradients -----------------------------------------------------------------------------------

// The parts of the model on this rank, by number and set (Stage::param_sets), the order in which
// all ranks that have a part reduce it. Stages, as DualPipe's mirrored ranks list them in opposite
// orders; more than one where a rank has both copies of two directions.
std::map<std::pair<int, int>, std::vector<Stage*>> parts_of(const Trainer& t) {
  std::map<std::pair<int, int>, std::vector<Stage*>> parts;
  for (const auto& [s, stage] : t.stages)
    for (int set : {0, 1})
      if (stage->param_sets()[size_t(set)]->elements() > 0)
        parts[{t.job.schedule.model_stage(s), set}].push_back(stage.get());
  return parts;
}

// elements reduced at a time: caches hold them, and scratch is small
constexpr int64_t kBucket = 1 << 20;

void reduce_over_ranks(Trainer& t, Comm& ranks, const Tensor& grad, int stage) {
  if (ranks.size() == 1) return;
  Stream& stream = t.context.stream();
  Scope scope(
      t.context.recorder, stream, {"reduce gradients", "comm", stage, -1, -1, grad.bytes()});
  Buf scratch = t.device.buffer(
      1, ranks.scratch_size(std::min(kBucket, grad.cols)), Dtype::f64, Use::messages);
  for (int64_t at = 0; at < grad.cols; at += kBucket) {
    const int64_t n = std::min(kBucket, grad.cols - at);
    ranks.all_reduce(stream, grad.col_slice(at, n).reshape(1, n), scratch);
  }
}

// Gradients are exact sums: the replicas of an expert and all copies of a part of the model, those
// of data-parallel ranks and of two directions, add up in whatever order.
void reduce_gradients(Trainer& t) {
  Stream& stream = t.context.stream();
  for (const auto& [key, stages] : parts_of(t)) {
    const auto [part, set] = key;
    std::vector<Tensor> grads;
    for (Stage* stage : stages) {
      Params& params = *stage->param_sets()[size_t(set)];
      if (t.world.size() > 1) params.look(stream, Params::Look::before);
      for (Moe* moe : stage->moe())
        if (set == 1) sum_replicas(t.expert_parallel, t.device, *moe);
      grads.push_back(params.grad_arena().reshape(params.elements() / kBlockAlign, kBlockAlign));
    }
    const Tensor& sum = grads[0];
    for (size_t i = 1; i < grads.size(); ++i)
      launch<Add>(stream, sum.rows, {.x = grads[i], .y = sum});
    reduce_over_ranks(
        t, t.copies_of(part, set), sum.reshape(1, sum.size()), stages[0]->options().index);
    for (size_t i = 1; i < grads.size(); ++i)
      stream.copy(grads[i].data, sum.data, size_t(sum.bytes()));
  }
}

// --- numbers -------------------------------------------------------------------------------------

// What a rank knows of a step, in vectors of one length each: of "square NAME" copies, of "largest"
// its own, of the others parts.
using Facts = std::map<std::string, std::vector<double>>;

template <class T> void add_to(std::vector<double>& sum, const std::vector<T>& values) {
  sum.resize(values.size());
  for (size_t i = 0; i < values.size(); ++i) sum[i] += double(values[i]);
}

Facts facts_of_step(Trainer& t, bool gave_up) {
  const Traffic sent = std::exchange(t.world.traffic(), {});
  Facts facts = {{"bytes", {double(sent.intra), double(sent.inter)}}};
  if (gave_up) {
    facts["given up"] = {1};
    return facts;
  }
  const int microbatches = int(t.job.options.microbatches), dp = t.job.layout.dp;
  const int size = int(t.job.options.micro_batch_size);
  std::vector<Params*> first;  // sets whose copies, on other ranks, are copies of these
  for (const auto& [key, stages] : parts_of(t)) {
    const auto [part, set] = key;
    if (t.copies_of(part, set).rank() != 0) continue;
    Scope scope(t.context.recorder, t.context.stream(),
        {"gradient norm", "compute", stages[0]->options().index});
    first.push_back(stages[0]->param_sets()[size_t(set)]);
    first.back()->look(t.context.stream(), Params::Look::finished);
  }
  t.context.stream().synchronize();
  for (Params* set : first) {
    const std::vector<double> squares = set->squares();
    auto square = squares.begin();
    for (const Param& p : set->all())
      if (p.trained) facts["square " + p.name] = {*square++};
  }
  double& largest = facts["largest"].emplace_back(0);
  for (const Params* set : t.param_sets()) largest = std::max(largest, set->largest_gradient());
  t.for_each_moe([&](int64_t layer, const Moe& moe, int stage) {
    add_to(facts[cat("load ", layer)], moe.load());
    add_to(facts[cat("work ", layer)], moe.work());
    std::vector<double>& balance = facts[cat("balance ", layer)];  // by place in the global batch
    balance.resize(size_t(t.job.global_sequences()));
    for (int m = 0; m < microbatches; ++m)
      for (int j = 0; j < size && t.job.schedule.visits(stage, m); ++j)
        balance[size_t(sequence_index(m, t.dp_rank, dp, size, j))] = moe.balance_loss(m, j);
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
  for (const auto& [rank, largest] : all.at("largest"))
    r.largest_gradient = std::max(r.largest_gradient, largest[0]);
  r.idle = sum("idle")[0] / t.world.size();
  t.long_steps = sum("seconds")[0] > t.world.size();
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

// Whether this rank gives the step up: ranks that exchange tokens agree, before each computation.
// That is asked where the last step took long (another one is soon over), and not over emulated
// links, whose times it would change.
bool gives_up(Trainer& t, const StepHooks& hooks) {
  if (!hooks.give_up || t.expert_parallel.size() == 1) return hooks.give_up && hooks.give_up();
  if (!t.long_steps || t.job.run.link.emulated()) return false;
  const Traffic sent = t.world.traffic();
  const std::vector<int> all = t.expert_parallel.gather_values(int(hooks.give_up()));
  t.world.traffic() = sent;  // metrics do not tell how long a step took
  return std::find(all.begin(), all.end(), 1) != all.end();
}

// What the stage computes in forward goes into the dump, if there is one.
void take_activations(Stage& stage, StepDump* dump, const Executor::Tokens& batch, Trainer& t) {
  stage.watch({});
  if (!dump) return;
  const auto index = [&t](int m) { return m * t.job.layout.dp + t.dp_rank; };
  stage.watch({.logits = [=](int m, const Tensor& x) { dump->add(index(m), batch(m), x); },
      .layer = [=](int m, int64_t layer, const Tensor& y,
                   const Tensor* chosen) { dump->add(index(m), layer, y, chosen); }});
}

}  // namespace

std::string near_the_limit(int64_t step, double largest_gradient) {
  if (largest_gradient < kGridLimit / 16) return "";
  return format(
      "step %lld: a sum of gradients came to %.3g; up to %.0f in a microbatch and %.0f in a step, "
      "its order cannot matter (model/machine/grid.h)",
      (long long)step, largest_gradient, kGridCallLimit, kGridLimit);
}

StepResult train_step(Trainer& t, int64_t step, const StepHooks& hooks) {
  const Job& job = t.job;
  const double begin = seconds_now();
  t.device.flops = 0;
  t.world.traffic() = {};  // what was sent between steps is no step's
  t.context.recorder = hooks.recorder;
  StepResult r{.step = step,
      .lr = job.options.lr_at(step),
      .tokens = job.global_sequences() * job.options.seq_len};
  std::optional<StepDump> dump;
  if (!hooks.dump.empty()) dump.emplace(t.context);
  std::optional<Scope> whole;
  whole.emplace(t.context.recorder, t.context.stream(), Activity{"step", "step"});
  const auto batch = [&](int m) {
    return t.microbatch(m, [&](int64_t i, std::span<int32_t> tokens) {
      job.batches->sequence(job.options.seed, step - 1, i, tokens);
    });
  };
  for (auto& [s, stage] : t.stages) {
    Scope scope(t.context.recorder, t.context.stream(), {"zero gradients", "compute", s});
    stage->begin_step();
    take_activations(*stage, dump ? &*dump : nullptr, batch, t);
  }
  const bool gave_up = t.executor.run(
      job.schedule.ranks[size_t(t.pp_rank)], batch, [&] { return gives_up(t, hooks); });
  t.context.stream().synchronize();
  const double schedule_seconds = seconds_now() - begin;

  reduce_gradients(t);
  Facts facts = facts_of_step(t, gave_up);
  facts["stop"] = {double(hooks.stop())};
  facts["idle"] = {t.executor.idle()};
  facts["seconds"] = {schedule_seconds};
  add_up(t, facts, r);
  if (r.given_up) {
    t.context.recorder = nullptr;
    return r;
  }
  if (!std::isfinite(r.loss) || !std::isfinite(r.grad_norm))
    throw Error(cat("step ", r.step, ": the loss is ", r.loss, " and the gradient norm ",
        r.grad_norm, ", expected finite numbers; no weight was changed"));
  hooks.on_gradients();
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
