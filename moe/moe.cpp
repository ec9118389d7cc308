// See moe.h.
#include "moe/moe.h"

#include <algorithm>
#include <numeric>

#include "model/machine/launch.h"
#include "model/rows/ends.h"
#include "model/swiglu.h"
#include "moe/eplb_quota.h"
#include "moe/rows/list.h"

namespace duet {

struct Moe::Parts {
  Param &gate, &bias;
  std::unique_ptr<Swiglu> shared;  // null without shared experts
  Swiglu routed;
  RouterShape shape;
};

// Rows on their way between ranks.
struct Moe::Moving {
  Buf out, in;  // [rows, d_model]
  std::unique_ptr<Event> arrived;
};

struct Moe::MoeSaved : FeedForward::Saved {
  // [tokens, experts] affinities, later the logits' gradient; [tokens, 1] their sum
  Buf scores, total;
  Buf topk_idx, topk_w;                    // [tokens, topk]
  Buf f;                                   // [sequences, experts] for the balance loss
  Buf choices, host_choices;               // [ranks * tokens, topk] everyone's topk_idx
  std::unique_ptr<Event> chosen;           // host_choices has them
  DispatchPlan plan;                       // all experts here: tokens to rows
  std::unique_ptr<ExchangePlan> exchange;  // experts elsewhere too
  Moving moving;
  // [tokens, topk] rows of `returned` (of `y_rows` where all experts are here)
  Buf pos;
  // [rows, d_model] in expert order: inputs; outputs, then their gradient; gradient of inputs
  Buf rows, y_rows, dx_rows;
  // [tokens * topk, d_model] results as they came back; only with other ranks
  Buf returned;
  Buf y_shared, dx;  // [tokens, d_model]
  Swiglu::Saved shared, routed;
  Tensor dy;  // the caller's
};

Moe::MoeSaved& Moe::of(Saved& saved) { return static_cast<MoeSaved&>(saved); }

static ExpertPlacement in_order(const Context& context, Comm* group) {
  std::vector<int32_t> slots(size_t(context.config.n_routed));
  std::iota(slots.begin(), slots.end(), 0);
  return ExpertPlacement(slots, int(slots.size()), group ? group->size() : 1);
}

// Of the experts in a rank's slots.
static std::vector<std::string> expert_prefixes(
    const std::string& prefix, const ExpertPlacement& placement, int rank) {
  std::vector<std::string> names;
  for (int s = 0; s < placement.slots_per_gpu(); ++s)
    names.push_back(cat(
        prefix, "experts.", placement.phy2log[size_t(rank * placement.slots_per_gpu() + s)], "."));
  return names;
}

Moe::Moe(const Context& context, Params& params, Params& experts, const std::string& prefix,
    const Options& o)
    : context_(context), options_(o),
      placement_(o.placement.replicas() ? o.placement : in_order(context, o.group)),
      slots_(placement_.slots_per_gpu()), prefix_(prefix), experts_(experts),
      first_param_(experts.all().size()), load_(size_t(context.config.n_routed)),
      work_(o.group ? size_t(o.group->size()) + 1 : 0) {
  DUET_CHECK(placement_.gpus == (o.group ? o.group->size() : 1),
      "placement: expected a GPU for each rank of the group, found ", placement_.gpus);
  const ModelConfig& c = context.config;
  Param& gate = params.matrix(prefix + "gate.weight", c.d_model, c.n_routed);
  Param& bias =
      params.vector(prefix + "gate.e_score_correction_bias", c.n_routed, Init::zeros, false);
  const std::string shared = prefix + "shared_experts.";
  parts_.reset(new Parts{gate, bias,
      c.n_shared ? std::make_unique<Swiglu>(
                       context, params, std::span(&shared, 1), c.n_shared * c.d_expert)
                 : nullptr,
      Swiglu(context, experts, expert_prefixes(prefix, placement_, o.group ? o.group->rank() : 0),
          c.d_expert),
      {.experts = int(c.n_routed),
          .topk = int(c.topk),
          .groups = int(c.n_group),
          .topk_groups = int(c.topk_group),
          .scaling = c.routed_scaling}});
  balance_host_ =
      context.device.host_buffer(o.microbatches, context.sequences, acc_dtype(context.dtype));
}

Moe::~Moe() = default;

// --- forward -------------------------------------------------------------------------------------

std::unique_ptr<FeedForward::Saved> Moe::route_f(int microbatch, const Tensor& x) {
  auto saved = std::make_unique<MoeSaved>();
  MoeSaved& s = *saved;
  Stream& stream = context_.stream();
  const ModelConfig& c = context_.config;
  const Dtype acc = acc_dtype(context_.dtype);
  const auto buffer = [&](int64_t rows, int64_t cols, Dtype t) {
    return context_.device.buffer(rows, cols, t, Use::activations);
  };
  s.scores = buffer(x.rows, c.n_routed, acc);
  s.total = buffer(x.rows, 1, acc);
  s.topk_idx = buffer(x.rows, c.topk, Dtype::i32);
  s.topk_w = buffer(x.rows, c.topk, acc);
  s.f = buffer(context_.sequences, c.n_routed, acc);
  Buf plain = buffer(x.rows, c.topk, Dtype::i32),
      scratch = buffer(x.rows, c.n_routed + c.n_group, acc);
  Buf share = buffer(context_.sequences, c.n_routed, acc),
      loss = buffer(context_.sequences, 1, acc);
  linear_f(stream, x, parts_->gate, s.scores);
  launch<RouterF>(stream, x.rows,
      {.x = s.scores,
          .bias = parts_->bias.master,
          .topk_idx = s.topk_idx,
          .topk_w = s.topk_w,
          .plain_idx = plain,
          .total = s.total,
          .scratch = scratch,
          .shape = parts_->shape,
          .balanced = options_.balanced});
  gather_choices(s);
  launch<BalanceLossF>(stream, context_.sequences,
      {.x = s.scores,
          .total = s.total,
          .plain_idx = plain,
          .f = s.f,
          .p = share,
          .loss = loss,
          .seq_len = context_.seq_len});
  stream.copy(balance_host_->row_slice(microbatch, 1).data, loss->data, size_t(loss->bytes()));
  return saved;
}

// This rank's choices leave; everyone's come to the host.
void Moe::gather_choices(MoeSaved& s) {
  const int64_t ranks = placement_.gpus;
  s.host_choices =
      context_.device.host_buffer(ranks * s.topk_idx->rows, s.topk_idx->cols, Dtype::i32);
  s.chosen = context_.device.make_event();
  Stream& stream = options_.group ? comm_after_compute() : context_.stream();
  if (options_.group) {
    s.choices = context_.device.buffer(
        s.host_choices->rows, s.host_choices->cols, Dtype::i32, Use::activations);
    const Scope scope(context_.recorder, stream,
        {.name = "choices",
            .lane = "comm",
            .layer = options_.layer,
            .bytes = (ranks - 1) * s.topk_idx->bytes()});
    options_.group->all_gather(stream, s.topk_idx, s.choices);
  }
  stream.copy(s.host_choices->data, options_.group ? s.choices->data : s.topk_idx->data,
      size_t(s.host_choices->bytes()));
  stream.record(*s.chosen);
}

// Of each rank [tokens * topk] logical experts.
std::vector<std::vector<int32_t>> Moe::wait_for_choices(MoeSaved& s) {
  const Scope scope(context_.recorder, context_.stream(),
      {.name = "choices", .lane = "wait", .layer = options_.layer});
  s.chosen->synchronize();
  const int32_t* all = s.host_choices->row<int32_t>(0);
  std::vector<std::vector<int32_t>> choices;
  for (int r = 0; r < placement_.gpus; ++r, all += s.topk_idx->size())
    choices.emplace_back(all, all + s.topk_idx->size());
  s.choices = Buf();
  s.host_choices = Buf();
  return choices;
}

void Moe::dispatch_f(Saved& saved, const Tensor& x) {
  MoeSaved& s = of(saved);
  const int64_t topk = context_.config.topk;
  const int me = options_.group ? options_.group->rank() : 0;
  std::vector<std::vector<int32_t>> choices = wait_for_choices(s);
  for (int32_t e : choices[size_t(me)]) ++load_[size_t(e)];
  if (options_.group) {
    choose_slots(
        choices, placement_, options_.ranks_per_node ? options_.ranks_per_node : placement_.gpus);
    count_work(choices);
    s.exchange = std::make_unique<ExchangePlan>(choices, topk, slots_, me);
    s.pos = upload(context_, s.exchange->pos);
    send(s.moving, "dispatch F", gather_rows(x, s.exchange->send_token), s.exchange->sent,
        s.exchange->received);
  } else {
    for (int32_t& e : choices[0]) e = placement_.slots_of(e)[0];
    s.plan = DispatchPlan(choices[0], topk, slots_);
    s.pos = upload(context_, s.plan.pos);
    s.rows = gather_rows(x, s.plan.token);
  }
}

void Moe::shared_f(Saved& saved, const Tensor& x) {
  const int64_t all[2] = {0, x.rows};
  if (parts_->shared) of(saved).y_shared = parts_->shared->forward(of(saved).shared, x, all);
}

// Where messages go: the comm stream, from now on behind what is enqueued on the compute stream.
Stream& Moe::comm_after_compute() const {
  if (!options_.comm) return context_.stream();
  auto ready = context_.device.make_event();
  context_.stream().record(*ready);
  options_.comm->wait(*ready);
  return *options_.comm;
}

// Rows out to and in from the ranks of the group.
void Moe::send(Moving& m, const char* name, Buf rows, const std::vector<int64_t>& out,
    const std::vector<int64_t>& in) {
  m.out = std::move(rows);
  m.in =
      context_.device.buffer(in.back(), context_.config.d_model, context_.dtype, Use::activations);
  m.arrived = context_.device.make_event();
  Stream& comm = comm_after_compute();
  {
    const size_t me = size_t(options_.group->rank());
    const int64_t bytes = (out.back() - (out[me + 1] - out[me])) * context_.config.d_model *
        dtype_size(context_.dtype);
    Scope scope(context_.recorder, comm,
        {.name = name, .lane = "comm", .layer = options_.layer, .bytes = bytes});
    options_.group->all_to_all_v(comm, m.out, out, m.in, in);
  }
  comm.record(*m.arrived);
}

Buf Moe::receive(Moving& m) {
  Scope scope(context_.recorder, context_.stream(),
      {.name = "all-to-all", .lane = "wait", .layer = options_.layer});
  context_.stream().wait(*m.arrived);
  m.arrived.reset();
  m.out = Buf();
  return std::move(m.in);
}

Buf Moe::gather_rows(const Tensor& x, const std::vector<int32_t>& index) {
  Buf rows =
      context_.device.buffer(int64_t(index.size()), x.cols, context_.dtype, Use::activations);
  launch<GatherRows>(
      context_.stream(), rows->rows, {.x = x, .index = upload(context_, index), .y = rows});
  return rows;
}

const DispatchPlan& Moe::local(const MoeSaved& s) const {
  return s.exchange ? s.exchange->local : s.plan;
}

void Moe::experts_f(Saved& saved, const Tensor&) {
  MoeSaved& s = of(saved);
  const ExchangePlan* plan = s.exchange.get();
  if (plan) s.rows = gather_rows(receive(s.moving), plan->local.token);
  s.y_rows = parts_->routed.forward(s.routed, s.rows, local(s).offsets);
  if (!plan) return;
  send(s.moving, "combine F", gather_rows(s.y_rows, plan->back_row), plan->back_sent,
      plan->back_received);
}

Buf Moe::combine_f(Saved& saved, const Tensor& residual) {
  MoeSaved& s = of(saved);
  if (s.exchange) {
    s.returned = receive(s.moving);
    s.y_rows = Buf();
  }
  Buf y = context_.activation(residual.cols);
  launch<CombineF>(context_.stream(), y->rows,
      {.x = s.exchange ? s.returned : s.y_rows,
          .pos = s.pos->reshape(y->rows, context_.config.topk),
          .w = s.topk_w,
          .shared = s.y_shared ? *s.y_shared : Tensor(),
          .residual = residual,
          .y = y});
  s.y_shared = Buf();
  return y;
}

// --- backward ------------------------------------------------------------------------------------

void Moe::combine_i(Saved& saved, const Tensor& dy) {
  MoeSaved& s = of(saved);
  const int64_t topk = context_.config.topk;
  s.dy = dy;
  Buf dw = context_.device.buffer(dy.rows, topk, s.topk_w->dtype, Use::activations);
  launch<CombineB>(context_.stream(), dy.rows,
      {.x = s.exchange ? s.returned : s.y_rows,
          .dy = dy,
          .pos = s.pos->reshape(dy.rows, topk),
          .w = s.topk_w,
          .dw = dw});
  if (const ExchangePlan* plan = s.exchange.get())  // the way of combine, backwards
    send(s.moving, "combine I", std::move(s.returned), plan->back_received, plan->back_sent);
  launch<RouterB>(context_.stream(), dy.rows,
      {.x = s.scores,
          .topk_idx = s.topk_idx,
          .dw = dw,
          .total = s.total,
          .f = s.f,
          .shape = parts_->shape,
          .seq_len = context_.seq_len,
          .balance = context_.balance_scale});
  // the GEMMs of I and W want both sides in the compute type
  if (s.scores->dtype != context_.dtype) {
    Buf cast = context_.activation(s.scores->cols);
    launch<CastRows>(context_.stream(), dy.rows, {.x = cast, .from = s.scores});
    s.scores = std::move(cast);
  }
}

void Moe::shared_i(Saved& saved) {
  MoeSaved& s = of(saved);
  if (parts_->shared) {
    const int64_t all[2] = {0, s.dy.rows};
    s.dx = parts_->shared->backward_input(s.shared, s.dy, all);
  } else {
    s.dx = context_.activation(s.dy.cols);
  }
  linear_i(context_.stream(), s.scores, parts_->gate, s.dx, parts_->shared != nullptr);
}

void Moe::experts_i(Saved& saved) {
  MoeSaved& s = of(saved);
  const ExchangePlan* plan = s.exchange.get();
  if (plan) s.y_rows = gather_rows(receive(s.moving), plan->back_from);
  s.dx_rows = parts_->routed.backward_input(s.routed, s.y_rows, local(s).offsets);
  if (!plan) return;
  // The way of dispatch, backwards: a token's experts here first become one row.
  Buf here =
      context_.device.buffer(plan->received.back(), s.dx->cols, context_.dtype, Use::activations);
  context_.stream().zero(here->data, size_t(here->bytes()));
  launch<DispatchB>(context_.stream(), here->rows,
      {.x = s.dx_rows,
          .pos = upload(context_, plan->local.pos)->reshape(here->rows, context_.config.topk),
          .dx = here});
  s.dx_rows = Buf();
  send(s.moving, "dispatch I", std::move(here), plan->received, plan->sent);
}

Buf Moe::dispatch_i(Saved& saved) {
  MoeSaved& s = of(saved);
  if (s.exchange) {
    s.dx_rows = receive(s.moving);
    s.pos = upload(context_, s.exchange->send_pos);
  }
  launch<DispatchB>(context_.stream(), s.dx->rows,
      {.x = s.dx_rows, .pos = s.pos->reshape(s.dx->rows, context_.config.topk), .dx = s.dx});
  s.dx_rows = Buf();
  return std::move(s.dx);
}

void Moe::experts_w(Saved& saved, const Tensor& x, const Tensor& dy, int half) {
  MoeSaved& s = of(saved);
  linear_w(context_.stream(), x, s.scores, parts_->gate, half);
  if (parts_->shared) {
    const int64_t all[2] = {0, x.rows};
    parts_->shared->backward_weight(s.shared, x, dy, all, half);
  }
  parts_->routed.backward_weight(s.routed, s.rows, s.y_rows, local(s).offsets, half);
}

// --- load, balance -------------------------------------------------------------------------------

void Moe::clear_load() {
  std::fill(load_.begin(), load_.end(), 0);
  std::fill(work_.begin(), work_.end(), 0);
}

void Moe::count_work(const std::vector<std::vector<int32_t>>& choices) {
  std::vector<int64_t> rows(choices.size(), 0);
  for (const std::vector<int32_t>& of_rank : choices)
    for (int32_t slot : of_rank) ++rows[size_t(slot / slots_)];
  rows.push_back(*std::max_element(rows.begin(), rows.end()));
  for (size_t i = 0; i < rows.size(); ++i) work_[i] += rows[i];
}

// --- placement -----------------------------------------------------------------------------------

std::array<Param*, 3> Moe::slot(int64_t s) {
  const auto param = [&](int64_t matrix) {
    return &experts_.all()[first_param_ + size_t(matrix * slots_ + s)];
  };
  return {param(0), param(1), param(2)};
}

void Moe::set_placement(ExpertPlacement placement) {
  DUET_CHECK(placement.gpus == placement_.gpus && placement.replicas() == placement_.replicas(),
      "expected ", placement_.replicas(), " slots on ", placement_.gpus, " ranks, found ",
      placement.replicas(), " on ", placement.gpus);
  placement_ = std::move(placement);
  const std::vector<std::string> prefixes =
      expert_prefixes(prefix_, placement_, options_.group ? options_.group->rank() : 0);
  for (int64_t s = 0; s < slots_; ++s)
    for (Param* p : slot(s)) {
      const size_t after_number = p->name.find('.', prefix_.size() + sizeof "experts." - 1);
      p->name = prefixes[size_t(s)] + p->name.substr(after_number + 1);
    }
}

std::vector<double> Moe::balance_loss() const {
  std::vector<double> sums;
  for (int64_t m = 0; m < balance_host_->rows; ++m) {
    double sum = 0;
    for (int64_t i = 0; i < balance_host_->cols; ++i)
      sum += balance_host_->get(m * balance_host_->cols + i);
    sums.push_back(sum);
  }
  return sums;
}

void Moe::update_bias(const std::vector<int64_t>& load, double gamma) {
  int64_t total = 0;
  for (int64_t n : load) total += n;
  Stream& stream = context_.stream();
  Buf host = context_.device.host_buffer(1, int64_t(load.size()), parts_->bias.master.dtype);
  const auto move = [&](auto* bias) {
    stream.copy(bias, parts_->bias.master.data, size_t(host->bytes()));
    stream.synchronize();
    for (size_t e = 0; e < load.size(); ++e) {
      const int64_t excess = load[e] * int64_t(load.size()) - total;  // load - mean, exactly
      if (excess != 0) bias[e] += excess > 0 ? -gamma : gamma;
    }
    stream.copy(parts_->bias.master.data, bias, size_t(host->bytes()));
    stream.synchronize();
  };
  if (host->dtype == Dtype::f64)
    move(host->row<double>(0));
  else
    move(host->row<float>(0));
}

}  // namespace duet
