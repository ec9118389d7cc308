// A training step. See trainer.h; what a trainer does between steps is in trainer_state.cpp.
#include "pipeline/train/trainer.h"

#include <chrono>
#include <cmath>

#include "model/machine/launch.h"
#include "moe/migration.h"

namespace duet {

static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Trainer::Trainer(const Job& job, Comm& world, Device& device)
    : job_(job), o_(job.options), world_(world), device_(device),
      channels_(world, device, message_pairs(job)),
      pipeline_(world.group(job.layout.pipeline_of(world.rank()))),
      replicas_(world.group(job.layout.replicas_of(world.rank()))),
      experts_(world.group(job.layout.experts_of(world.rank()))),
      expert_replicas_(world.group(job.layout.expert_replicas_of(world.rank()))),
      dp_rank_(job.layout.dp_rank(world.rank())),
      pp_rank_(job.layout.pp_rank(world.rank())), context_{device, job.config, o_.dtype, o_.seq_len,
                                                      o_.micro_batch_size} {
  context_.loss_scale = 1 / double(job.global_sequences() * o_.seq_len);
  context_.balance_scale = o_.balance_loss / double(job.global_sequences());
  if (o_.overlap && experts_.size() > 1) comm_ = std::make_unique<CommStream>(world, device);
  std::vector<int64_t> moe_layers;
  for (int64_t l = job.config.first_k_dense; l < job.config.n_layers; ++l) moe_layers.push_back(l);
  monitor_ = std::make_unique<LoadMonitor>(job.balancer, moe_layers);
  check_same_plans(world, 0, monitor_->hash());
  make_stages();
  executor_ = std::make_unique<Executor>(job.schedule, pipeline_, context_, stages_, o_.overlap);
  make_report();
}

void Trainer::make_stages() {
  const Schedule& s = job_.schedule;
  for (int stage = 0; stage < s.stages(); ++stage) {
    if (s.rank_of[size_t(stage)] != pp_rank_) continue;
    const int part = s.model_stage(stage);
    stages_[stage] = std::make_unique<Stage>(context_,
        StageOptions{.index = stage,
            .layer_begin = job_.layer_bounds[size_t(part)],
            .layer_end = job_.layer_bounds[size_t(part) + 1],
            .embedding = part == 0,
            .head = part == s.model_stages() - 1,
            .microbatches = int(o_.microbatches),
            .seed = o_.seed,
            .moe = {.group = experts_.size() > 1 ? &experts_ : nullptr,
                .comm = comm_ ? &static_cast<Stream&>(*comm_) : nullptr,
                .ranks_per_node = job_.balancer.ranks_per_node(),
                .balanced = o_.force_balanced_routing},
            .placement = [this](int64_t l) { return monitor_->placement(l); }});
  }
}

// --- the global batch ----------------------------------------------------------------------------

// sequences of seq_len + 1 tokens
Microbatch Trainer::pack(std::span<const int32_t> tokens) const {
  Microbatch batch;
  for (size_t at = 0; at < tokens.size(); at += size_t(o_.seq_len) + 1) {
    const auto one = tokens.subspan(at, size_t(o_.seq_len) + 1);
    batch.inputs.insert(batch.inputs.end(), one.begin(), one.end() - 1);
    batch.targets.insert(batch.targets.end(), one.begin() + 1, one.end());
  }
  return batch;
}

Microbatch Trainer::microbatch(int64_t step, int64_t m) const {
  const size_t length = size_t(o_.seq_len) + 1;
  std::vector<int32_t> tokens(length * size_t(o_.micro_batch_size));
  for (int64_t j = 0; j < o_.micro_batch_size; ++j)
    job_.batches->sequence(o_.seed, step - 1,
        sequence_index(m, dp_rank_, job_.layout.dp, o_.micro_batch_size, j),
        std::span(tokens).subspan(size_t(j) * length, length));
  return pack(tokens);
}

// The stage of this rank that computes the losses of a microbatch, or null.
Stage* Trainer::head_stage(int microbatch) {
  const auto found = stages_.find(job_.schedule.last_stage(microbatch));
  return found == stages_.end() ? nullptr : found->second.get();
}

// --- a step --------------------------------------------------------------------------------------

StepResult Trainer::step(int64_t step, const StepHooks& hooks) {
  const double begin = now();
  device_.flops = 0;
  world_.take_traffic();  // what was sent between steps is no step's
  context_.recorder = hooks.recorder;
  StepResult result{
      .step = step, .lr = o_.lr_at(step), .tokens = job_.global_sequences() * o_.seq_len};
  std::unique_ptr<StepDump> dump;
  if (!hooks.dump.empty()) dump = std::make_unique<StepDump>(context_);
  std::optional<Scope> whole;
  whole.emplace(context_.recorder, context_.stream(), Mark{"step", "step"});
  for (auto& [s, stage] : stages_) {
    Scope scope(context_.recorder, context_.stream(), {"zero gradients", "compute", s});
    stage->begin_step();
    std::function<void(int, const Tensor&)> take_logits;
    if (dump && stage->options().head)
      take_logits = [&](int m, const Tensor& logits) {
        dump->add(m * job_.layout.dp + dp_rank_, microbatch(step, m), logits);
      };
    stage->on_logits(take_logits);
  }
  executor_->run(job_.schedule.ranks[size_t(pp_rank_)], [&](int m) { return microbatch(step, m); });
  context_.stream().synchronize();
  const double schedule_seconds = now() - begin;

  reduce_gradients();
  finish_step(result, hooks.asked_to_stop, schedule_seconds);
  if (dump) {
    for (auto& [s, stage] : stages_)
      for (Params* set : stage->param_sets()) dump->add(*set);
    dump->write(world_, hooks.dump, result.loss);
  }
  update(result);
  whole.reset();
  rebalance(result);
  context_.stream().synchronize();
  context_.recorder = nullptr;
  result.seconds = now() - begin;
  result.flops = device_.flops;
  return result;
}

// DualPipe's two copies of a part of the model each have one half of the microbatches: they swap,
// so that both have both. All messages are posted before the first is waited for: the two ranks of
// a pair list their stages in different orders.
void Trainer::swap_mirrored_halves() {
  const Schedule& s = job_.schedule;
  Stream& stream = context_.stream();
  Scope scope(context_.recorder, stream, {"swap halves", "comm"});
  std::vector<Request> in, out;
  for (auto& [virtual_stage, stage] : stages_) {
    const int other = (virtual_stage + s.stages() / 2) % s.stages(),
              mine = virtual_stage >= s.stages() / 2;
    const int peer = s.rank_of[size_t(other)], part = s.model_stage(virtual_stage);
    for (int set : {0, 1}) {
      const Params& params = *stage->param_sets()[size_t(set)];
      in.push_back(pipeline_.irecv(
          stream, params.grad_arena(1 - mine), peer, {Tag::W, 2 * part + set, 1 - mine}));
      out.push_back(
          pipeline_.isend(stream, params.grad_arena(mine), peer, {Tag::W, 2 * part + set, mine}));
    }
  }
  for (const Request& request : in) pipeline_.wait(stream, request);
  for (const Request& request : out) request.wait();
}

void Trainer::reduce_gradients() {
  // elements reduced at a time, so that scratch memory stays small
  constexpr int64_t kBucket = 4 << 20;
  if (job_.schedule.two_directions) swap_mirrored_halves();
  for (auto& [s, stage] : stages_)
    for (auto [set, ranks] : {std::pair(&stage->params(), &replicas_),
             std::pair(&stage->experts(), &expert_replicas_)}) {
      {
        Scope scope(context_.recorder, context_.stream(), {"add halves", "compute", s});
        set->add_halves(context_.stream());
      }
      if (set == &stage->experts())
        for (Moe* moe : stage->moe())
          if (moe) sum_replicas(experts_, device_, *moe);
      if (ranks->size() == 1) continue;
      const Tensor grad = set->grad_arena(0);
      Scope scope(context_.recorder, context_.stream(),
          {"reduce gradients", "comm", s, -1, -1, grad.bytes()});
      Buf scratch = device_.buffer(
          1, ranks->scratch_size(std::min(kBucket, grad.cols)), grad.dtype, Use::messages);
      for (int64_t at = 0; at < grad.cols; at += kBucket) {
        const int64_t n = std::min(kBucket, grad.cols - at);
        ranks->all_reduce(context_.stream(), grad.col_slice(at, n).reshape(1, n), scratch);
      }
    }
}

// The keys of the report, in the order in which finish_step collects their values. A number in a
// key is padded, so that the order of keys is the order of sums: losses by global sequence, squares
// by name.
static std::string key(const char* kind, int64_t a, int64_t b = 0) {
  return format("%s%012lld/%06lld", kind, (long long)a, (long long)b);
}

void Trainer::make_report() {
  std::vector<std::string> keys;
  for (auto& [s, stage] : stages_) {
    for (Params* set : stage->param_sets())
      for (const Param& p : set->all())
        if (p.trained) keys.push_back("square " + p.name);
    for (size_t l = 0; l < stage->moe().size(); ++l) {
      if (!stage->moe()[l]) continue;
      const int64_t layer = stage->options().layer_begin + int64_t(l);
      for (int64_t e = 0; e < job_.config.n_routed; ++e) keys.push_back(key("load ", layer, e));
      for (size_t i = 0; i < stage->moe()[l]->work().size(); ++i)
        keys.push_back(key("work ", layer, int64_t(i)));
      for (int m = 0; m < o_.microbatches; ++m)
        if (job_.schedule.visits(s, m))
          keys.push_back(key("balance ", layer, m * job_.layout.dp + dp_rank_));
    }
  }
  for (int m = 0; m < o_.microbatches; ++m)
    if (head_stage(m))
      for (int64_t j = 0; j < o_.micro_batch_size; ++j)
        keys.push_back(
            key("loss ", sequence_index(m, dp_rank_, job_.layout.dp, o_.micro_batch_size, j)));
  keys.push_back("stop");
  keys.push_back("idle");
  keys.push_back("bytes_intra");
  keys.push_back("bytes_inter");
  report_ = std::make_unique<StepReport>(world_, keys);
}

void Trainer::finish_step(
    StepResult& r, const std::function<bool()>& asked_to_stop, double schedule_seconds) {
  std::vector<double> values;
  for (auto& [s, stage] : stages_) {
    Scope scope(context_.recorder, context_.stream(), {"gradient norm", "compute", s});
    for (Params* set : stage->param_sets())
      // synchronizes
      for (double square : set->squares(context_.stream())) values.push_back(square);
    for (Moe* moe : stage->moe()) {
      if (!moe) continue;
      values.insert(values.end(), moe->load().begin(), moe->load().end());
      values.insert(values.end(), moe->work().begin(), moe->work().end());
      const std::vector<double> balance = moe->balance_loss();
      for (int m = 0; m < o_.microbatches; ++m)
        if (job_.schedule.visits(s, m)) values.push_back(balance[size_t(m)]);
    }
  }
  for (int m = 0; m < o_.microbatches; ++m)
    if (Stage* head = head_stage(m))
      for (double loss : head->losses(m)) values.push_back(loss);
  values.push_back(asked_to_stop());
  values.push_back(executor_->waited() / schedule_seconds);
  const Traffic sent = world_.take_traffic();
  values.push_back(double(sent.intra));
  values.push_back(double(sent.inter));
  {
    Scope scope(context_.recorder, context_.stream(), {"exchange losses and norms", "wait"});
    report_->exchange(values);
  }

  double squares = 0;
  report_->for_each("square ", [&](const std::string&, double first, double) { squares += first; });
  report_->for_each("loss ", [&](const std::string&, double first, double) { r.loss += first; });
  report_->for_each(
      "balance ", [&](const std::string&, double first, double) { r.balance_loss += first; });
  report_->for_each("stop", [&](const std::string&, double, double sum) { r.stop = sum > 0; });
  report_->for_each(
      "idle", [&](const std::string&, double, double sum) { r.idle = sum / world_.size(); });
  report_->for_each("bytes_intra",
      [&](const std::string&, double, double sum) { r.traffic.intra = int64_t(sum); });
  report_->for_each("bytes_inter",
      [&](const std::string&, double, double sum) { r.traffic.inter = int64_t(sum); });
  report_->for_each("load ", [&](const std::string& k, double, double sum) {
    const int64_t layer = std::stoll(k.substr(5));
    if (r.loads.empty() || r.loads.back().layer != layer) r.loads.push_back({layer, {}});
    r.loads.back().tokens_per_expert.push_back(int64_t(sum));
  });
  // of each layer: tokens of its ranks, and of the busiest; each rank of a group reports for all
  std::vector<double> work;
  report_->for_each("work ",
      [&](const std::string&, double, double sum) { work.push_back(sum / job_.layout.ep); });
  double done = 0, possible = 0;
  for (size_t l = 0, at = 0; at < work.size(); ++l, ++at) {
    double sum = 0;
    for (int rank = 0; rank < job_.layout.ep; ++rank) {
      r.loads[l].tokens_per_rank.push_back(int64_t(work[at]));
      sum += work[at++];
    }
    const double most = job_.layout.ep * work[at];
    if (most > 0) r.loads[l].balancedness = sum / most;
    done += sum;
    possible += most;
  }
  if (possible > 0) r.balancedness = done / possible;
  r.loss /= double(r.tokens);
  r.balance_loss /= double(job_.global_sequences());
  r.grad_norm = std::sqrt(squares);
  if (!std::isfinite(r.loss) || !std::isfinite(r.grad_norm))
    throw Error(cat("step ", r.step, ": the loss is ", r.loss, " and the gradient norm ",
        r.grad_norm, ", expected finite numbers; no weight was changed"));
}

void Trainer::update(StepResult& r) {
  AdamWOptions adamw = o_.adamw;
  adamw.lr = r.lr;
  const bool clip = o_.clip > 0 && r.grad_norm > o_.clip;
  for (auto& [s, stage] : stages_) {
    Scope scope(context_.recorder, context_.stream(), {"AdamW", "compute", s});
    for (Params* set : stage->param_sets())
      set->adamw(context_.stream(), adamw, clip ? o_.clip / r.grad_norm : 1.0, r.step);
    if (o_.bias_update_speed == 0) continue;
    for (const LayerLoad& load : r.loads) {
      const int64_t l = load.layer - stage->options().layer_begin;
      if (l >= 0 && l < int64_t(stage->moe().size()))
        stage->moe()[size_t(l)]->update_bias(load.tokens_per_expert, o_.bias_update_speed);
    }
  }
}

}  // namespace duet
