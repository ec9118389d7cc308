// See moe.h.
#include "moe/moe.h"

#include <algorithm>
#include <numeric>

#include "model/machine/launch.h"
#include "model/rows/ends.h"
#include "moe/rows/list.h"

namespace duet {

struct Moe::MoeSaved : FeedForward::Saved {
  const Tensor* chosen_experts() const override { return &*topk_idx; }
  // [tokens, experts] affinities, later the logits' gradient; [tokens, 1] their sum
  Buf scores, total;
  Buf topk_idx, topk_w;           // [tokens, topk]
  Buf f;                          // [sequences, experts] for the balance loss
  Buf choices, host_choices;      // [ranks * tokens, topk] everyone's topk_idx
  std::unique_ptr<Event> chosen;  // host_choices has them
  ExchangePlan plan;
  Buf pos;                         // [tokens, topk] rows of `returned`
  Buf out, in;                     // [rows, d_model] on their way between ranks
  std::unique_ptr<Event> arrived;  // `in` has them
  Buf rows, y_rows;                // [rows, d_model] in expert order: inputs; gradient of outputs
  Buf returned;                    // [tokens * topk, d_model] the outputs, as they came back
  Buf y_shared;                    // [tokens, d_model]
  Swiglu::Saved shared, routed;
};

// Of the experts in a rank's slots.
static std::vector<std::string> expert_prefixes(
    const std::string& prefix, const ExpertPlacement& placement, int rank) {
  std::vector<std::string> names;
  for (int s = 0; s < placement.slots_per_gpu(); ++s)
    names.push_back(cat(
        prefix, "experts.", placement.phy2log[size_t(rank * placement.slots_per_gpu() + s)], "."));
  return names;
}

Moe::Moe(const Context& context, Params& params, Params& expert_params, const std::string& prefix,
    const Options& o)
    : context_(context), options_(o), placement_(o.placement), me_(o.group ? o.group->rank() : 0),
      slots_(placement_.slots_per_gpu()), prefix_(prefix), expert_params_(expert_params),
      first_param_(expert_params.all().size()), shape_{.experts = int(context.config.n_routed),
                                                    .topk = int(context.config.topk),
                                                    .groups = int(context.config.n_group),
                                                    .topk_groups = int(context.config.topk_group),
                                                    .scaling = context.config.routed_scaling},
      gate_(params.matrix(prefix + "gate.weight", context.config.d_model, context.config.n_routed)),
      bias_(params.vector(
          prefix + "gate.e_score_correction_bias", context.config.n_routed, Init::zeros, false)),
      routed_(context, expert_params, expert_prefixes(prefix, placement_, me_),
          context.config.d_expert),
      load_(size_t(context.config.n_routed)), work_(alone() ? 0 : size_t(placement_.gpus) + 1),
      balance_host_(
          context.device.host_buffer(o.microbatches, context.sequences, acc_dtype(context.dtype))),
      bias_host_(context.device.host_buffer(1, context.config.n_routed, acc_dtype(context.dtype))) {
  DUET_CHECK(placement_.gpus == (o.group ? o.group->size() : 1),
      "placement: expected a GPU for each rank of the group, found ", placement_.gpus);
  const ModelConfig& c = context.config;
  const std::string shared = prefix + "shared_experts.";
  if (c.n_shared > 0)
    shared_.emplace(context, params, std::span(&shared, 1), c.n_shared * c.d_expert);
}

std::unique_ptr<FeedForward::Saved> Moe::make_saved() const { return std::make_unique<MoeSaved>(); }

void Moe::run(Phase phase, Saved& saved) {
  MoeSaved& s = static_cast<MoeSaved&>(saved);
  switch (phase) {
    case Phase::router_f: return router_f(s);
    case Phase::dispatch_f: return alone() ? void() : dispatch_f(s);
    case Phase::shared_f:
      if (shared_) s.y_shared = shared_->forward(s.shared, s.x);
      return;
    case Phase::experts_f: return experts_f(s);
    case Phase::combine_f: return combine_f(s);
    case Phase::combine_i: return combine_i(s);
    case Phase::shared_i:
      s.dx = shared_ ? shared_->backward_input(s.shared, s.dy) : context_.activation(s.dy.cols);
      return linear_i(context_, s.scores, gate_, s.dx, shared_.has_value());
    case Phase::experts_i: return experts_i(s);
    case Phase::dispatch_i: return dispatch_i(s);
    case Phase::experts_w:
      linear_w(context_, s.x, s.scores, gate_);
      if (shared_) shared_->backward_weight(s.shared, s.x, s.dy, context_.pieces().bounds());
      return routed_.backward_weight(
          s.routed, s.rows, s.y_rows, s.plan.pieces, s.plan.local.offsets);
    case Phase::attention_f:
    case Phase::attention_i:
    case Phase::attention_w: return;
  }
}

// --- forward -------------------------------------------------------------------------------------

void Moe::router_f(MoeSaved& s) {
  Stream& stream = context_.stream();
  const int64_t tokens = s.x.rows, experts = shape_.experts, topk = shape_.topk;
  const auto buffer = [&](int64_t rows, int64_t cols, Dtype dtype) {
    return context_.device.buffer(rows, cols, dtype, Use::activations);
  };
  const Dtype acc = acc_dtype(context_.dtype);
  s.scores = context_.row_stats(experts);
  s.total = context_.row_stats();
  s.topk_idx = buffer(tokens, topk, Dtype::i32);
  s.topk_w = context_.row_stats(topk);
  s.f = buffer(context_.sequences, experts, acc);
  Buf plain = buffer(tokens, topk, Dtype::i32);
  Buf scratch = context_.row_stats(experts + shape_.groups);
  const int64_t run = context_.device.is_cuda() ? 32 : context_.seq_len,
                runs = (context_.seq_len + run - 1) / run;
  Buf sums = buffer(context_.sequences * runs, 2 * experts, acc);
  Buf share = buffer(context_.sequences, experts, acc), loss = buffer(context_.sequences, 1, acc);
  linear_f(context_, s.x, gate_, s.scores);
  launch<RouterF>(stream, tokens,
      {.x = s.scores,
          .bias = bias_.master,
          .topk_idx = s.topk_idx,
          .topk_w = s.topk_w,
          .plain_idx = plain,
          .total = s.total,
          .scratch = scratch,
          .shape = shape_,
          .balanced_over = options_.balanced ? context_.seq_len : 0});
  gather_choices(s);
  launch_tiles<BalanceSums>(stream, sums->rows,
      {.x = s.scores,
          .total = s.total,
          .plain_idx = plain,
          .sums = sums,
          .seq_len = context_.seq_len,
          .run = run});
  launch<BalanceLossF>(stream, context_.sequences,
      {.x = sums,
          .f = s.f,
          .p = share,
          .loss = loss,
          .runs = runs,
          .seq_len = context_.seq_len,
          .topk = topk});
  stream.copy(balance_host_->row_slice(s.microbatch, 1).data, loss->data, size_t(loss->bytes()));
}

// This rank's choices leave; everyone's come to the host.
void Moe::gather_choices(MoeSaved& s) {
  const int64_t ranks = placement_.gpus;
  s.host_choices =
      context_.device.host_buffer(ranks * s.topk_idx->rows, s.topk_idx->cols, Dtype::i32);
  s.chosen = context_.device.make_event();
  Stream& stream = alone() ? context_.stream() : comm_after_compute();
  if (!alone()) {
    s.choices = context_.device.buffer(
        s.host_choices->rows, s.host_choices->cols, Dtype::i32, Use::activations);
    const Scope seen = scope(stream, "comm", "choices", (ranks - 1) * s.topk_idx->bytes());
    options_.group->all_gather(stream, s.topk_idx, s.choices);
  }
  stream.copy(s.host_choices->data, alone() ? s.topk_idx->data : s.choices->data,
      size_t(s.host_choices->bytes()));
  stream.record(*s.chosen);
}

// Of each rank [tokens * topk] logical experts.
std::vector<std::vector<int32_t>> Moe::wait_for_choices(MoeSaved& s) {
  const Scope seen = scope(context_.stream(), "wait", "choices");
  s.chosen->synchronize();
  const int32_t* all = s.host_choices->row<int32_t>(0);
  std::vector<std::vector<int32_t>> choices;
  for (int r = 0; r < placement_.gpus; ++r, all += s.topk_idx->size())
    choices.emplace_back(all, all + s.topk_idx->size());
  s.choices = Buf();
  s.host_choices = Buf();
  return choices;
}

void Moe::dispatch_f(MoeSaved& s) {
  std::vector<std::vector<int32_t>> choices = wait_for_choices(s);
  for (int32_t e : choices[size_t(me_)]) ++load_[size_t(e)];
  if (placement_.max_count > 1 && options_.split == ReplicaSplit::segment)
    choose_slots_by_segment(choices, shape_.topk, placement_, context_.pieces());
  else
    choose_slots(choices, placement_, options_.ranks_per_node);
  count_work(choices);
  s.plan = ExchangePlan(choices, shape_.topk, slots_, me_, context_.pieces());
  s.pos = context_.device.upload(s.plan.pos, Use::activations);
  if (!alone())
    send(s, "dispatch F", gather_rows(s.x, s.plan.leave.token), s.plan.leave.offsets,
        s.plan.received);
}

void Moe::experts_f(MoeSaved& s) {
  if (alone()) dispatch_f(s);
  const Buf received = receive(s);
  s.rows = gather_rows(alone() ? s.x : *received, s.plan.local.token);
  s.y_rows = routed_.forward(s.routed, s.rows, s.plan.local.offsets);
  send(s, "combine F", in_order(std::move(s.y_rows), s.plan.back.token), s.plan.back.offsets,
      s.plan.returned);
}

void Moe::combine_f(MoeSaved& s) {
  s.returned = receive(s);
  s.y = context_.activation(s.residual.cols);
  launch<CombineF>(context_.stream(), s.y->rows,
      {.x = s.returned,
          .pos = s.pos->reshape(s.y->rows, shape_.topk),
          .w = s.topk_w,
          .shared = s.y_shared,
          .residual = s.residual,
          .y = s.y});
  s.y_shared = Buf();
}

// --- rows between ranks --------------------------------------------------------------------------

Scope Moe::scope(Stream& stream, const char* track, const char* name, int64_t bytes) const {
  return Scope(context_.recorder, stream,
      {.name = name, .track = track, .layer = options_.layer, .bytes = bytes});
}

// Where messages go: the comm stream, from now on behind what is enqueued on the compute stream.
Stream& Moe::comm_after_compute() const {
  if (!options_.comm) return context_.stream();
  auto ready = context_.device.make_event();
  context_.stream().record(*ready);
  options_.comm->wait(*ready);
  return *options_.comm;
}

// Rows out to and in from the ranks of the group; alone they are here.
void Moe::send(MoeSaved& s, const char* name, Buf rows, const Offsets& out, const Offsets& in) {
  if (alone()) {
    s.in = std::move(rows);
    return;
  }
  const int64_t d_model = context_.config.d_model, others = out.back() - (out[me_ + 1] - out[me_]);
  s.out = std::move(rows);
  s.in = context_.activation(in.back(), d_model);
  s.arrived = context_.device.make_event();
  Stream& comm = comm_after_compute();
  {
    const Scope seen = scope(comm, "comm", name, others * d_model * dtype_size(context_.dtype));
    options_.group->all_to_all_v(comm, s.out, out, s.in, in);
  }
  comm.record(*s.arrived);
}

Buf Moe::receive(MoeSaved& s) {
  if (alone()) return std::move(s.in);
  const Scope seen = scope(context_.stream(), "wait", "all-to-all");
  context_.stream().wait(*s.arrived);
  s.arrived.reset();
  s.out = Buf();
  return std::move(s.in);
}

Buf Moe::gather_rows(const Tensor& x, const std::vector<int32_t>& index) const {
  Buf rows = context_.activation(int64_t(index.size()), x.cols);
  launch<GatherRows>(context_.stream(), rows->rows,
      {.x = x, .index = context_.device.upload(index, Use::activations), .y = rows});
  return rows;
}

// Rows from expert order to that of their way back, or the reverse; alone they are the same.
Buf Moe::in_order(Buf rows, const std::vector<int32_t>& index) const {
  return alone() ? std::move(rows) : gather_rows(rows, index);
}

// --- backward ------------------------------------------------------------------------------------

void Moe::combine_i(MoeSaved& s) {
  Buf dw = context_.row_stats(shape_.topk);
  launch<CombineI>(context_.stream(), s.dy.rows,
      {.x = s.returned,
          .dy = s.dy,
          .pos = s.pos->reshape(s.dy.rows, shape_.topk),
          .w = s.topk_w,
          .dw = dw});
  send(s, "combine I", std::move(s.returned), s.plan.returned, s.plan.back.offsets);
  launch<RouterI>(context_.stream(), s.dy.rows,
      {.x = s.scores,
          .topk_idx = s.topk_idx,
          .dw = dw,
          .total = s.total,
          .f = s.f,
          .shape = shape_,
          .seq_len = context_.seq_len,
          .balance = context_.balance_scale});
  // the GEMMs of I and W want both sides in the compute type
  if (s.scores->dtype != context_.dtype) {
    Buf cast = context_.activation(s.scores->cols);
    launch<CastRows>(context_.stream(), s.dy.rows, {.x = cast, .from = s.scores});
    s.scores = std::move(cast);
  }
}

void Moe::experts_i(MoeSaved& s) {
  s.y_rows = in_order(receive(s), s.plan.back.pos);
  Buf dx_rows = routed_.backward_input(s.routed, s.y_rows, s.plan.local.offsets);
  send(s, "dispatch I", in_order(std::move(dx_rows), s.plan.back.token), s.plan.back.offsets,
      s.plan.returned);
}

void Moe::dispatch_i(MoeSaved& s) {
  const Buf dx_rows = receive(s);
  launch<DispatchI>(context_.stream(), s.dx->rows,
      {.x = dx_rows, .pos = s.pos->reshape(s.dx->rows, shape_.topk), .dx = s.dx});
}

// --- load, balance -------------------------------------------------------------------------------

void Moe::clear_load() {
  std::fill(load_.begin(), load_.end(), 0);
  std::fill(work_.begin(), work_.end(), 0);
}

void Moe::count_work(const std::vector<std::vector<int32_t>>& choices) {
  if (alone()) return;
  std::vector<int64_t> of_slot(choices.size() * size_t(slots_)), rows;
  for (const std::vector<int32_t>& of_rank : choices)
    for (int32_t slot : of_rank) ++of_slot[size_t(slot)];
  for (auto slot = of_slot.begin(); slot != of_slot.end(); slot += slots_)
    rows.push_back(std::accumulate(slot, slot + slots_, int64_t(0)));
  rows.push_back(*std::max_element(rows.begin(), rows.end()));
  for (size_t i = 0; i < rows.size(); ++i) work_[i] += rows[i];
}

// --- placement -----------------------------------------------------------------------------------

std::array<Param*, 3> Moe::slot(int64_t s) {
  const auto param = [&](int64_t matrix) {
    return &expert_params_.all()[first_param_ + size_t(matrix * slots_ + s)];
  };
  return {param(0), param(1), param(2)};
}

void Moe::set_placement(ExpertPlacement placement) {
  DUET_CHECK(placement.gpus == placement_.gpus && placement.replicas() == placement_.replicas(),
      "expected ", placement_.replicas(), " slots on ", placement_.gpus, " ranks, found ",
      placement.replicas(), " on ", placement.gpus);
  placement_ = std::move(placement);
  const std::vector<std::string> prefixes = expert_prefixes(prefix_, placement_, me_);
  for (int64_t s = 0; s < slots_; ++s)
    for (Param* p : slot(s)) {
      const size_t after_number = p->name.find('.', prefix_.size() + sizeof "experts." - 1);
      p->name = prefixes[size_t(s)] + p->name.substr(after_number + 1);
    }
}

void Moe::update_bias(const std::vector<int64_t>& load, double gamma) {
  const int64_t total = std::accumulate(load.begin(), load.end(), int64_t(0));
  Stream& stream = context_.stream();
  const Tensor bias = bias_.master;
  const Tensor host = bias_host_;
  stream.copy(host.data, bias.data, size_t(bias.bytes()));
  stream.host([host, load, total, gamma] {
    for (int64_t e = 0; e < host.cols; ++e) {
      const int64_t excess = load[size_t(e)] * host.cols - total;  // load - mean, exactly
      if (excess != 0) host.set(e, host.get(e) + (excess > 0 ? -gamma : gamma));
    }
  });
  stream.copy(bias.data, host.data, size_t(bias.bytes()));
}

}  // namespace duet
