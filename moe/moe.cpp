// See moe.h.
#include "moe/moe.h"

#include "model/launch.h"
#include "model/swiglu.h"
#include "moe/dispatch_plan.h"
#include "moe/rows/list.h"

namespace duet {

struct Moe::Parts {
  Param &gate, &bias;
  std::unique_ptr<Swiglu> shared;  // null without shared experts
  Swiglu routed;
  RouterShape shape;
};

struct Moe::MoeSaved : FeedForward::Saved {
  Buf scores, total;          // [tokens, experts] affinities, later the logits' gradient; [tokens, 1] their sum
  Buf topk_idx, topk_w;       // [tokens, topk]
  Buf f;                      // [sequences, experts] for the balance loss
  DispatchPlan plan;
  Buf pos, token;             // the plan on the device
  Buf rows, y_rows, dx_rows;  // [tokens * topk, d_model] in expert order: inputs; outputs, then their gradient; gradient of inputs
  Buf y_shared, dx;           // [tokens, d_model]
  Swiglu::Saved shared, routed;
  Tensor dy;                  // the caller's
};

Moe::MoeSaved& Moe::of(Saved& saved) { return static_cast<MoeSaved&>(saved); }

static std::vector<std::string> expert_prefixes(const std::string& prefix, int64_t n) {
  std::vector<std::string> names;
  for (int64_t e = 0; e < n; ++e) names.push_back(cat(prefix, "experts.", e, "."));
  return names;
}

Moe::Moe(const Context& context, Params& params, const std::string& prefix, int microbatches)
    : context_(context), load_(size_t(context.config.n_routed)) {
  const ModelConfig& c = context.config;
  Param& gate = params.matrix(prefix + "gate.weight", c.d_model, c.n_routed);
  Param& bias = params.vector(prefix + "gate.e_score_correction_bias", c.n_routed, Init::zeros, false);
  const std::string shared = prefix + "shared_experts.";
  parts_.reset(new Parts{
      gate, bias,
      c.n_shared ? std::make_unique<Swiglu>(context, params, std::span(&shared, 1), c.n_shared * c.d_expert) : nullptr,
      Swiglu(context, params, expert_prefixes(prefix, c.n_routed), c.d_expert),
      {.experts = int(c.n_routed), .topk = int(c.topk), .groups = int(c.n_group), .topk_groups = int(c.topk_group),
       .scaling = c.routed_scaling}});
  balance_host_ = context.device.host_buffer(microbatches, context.sequences, acc_dtype(context.dtype));
}

Moe::~Moe() = default;

// --- forward -------------------------------------------------------------------------------------------------------------------

void Moe::route(MoeSaved& s, int microbatch, const Tensor& x) {
  Stream& stream = context_.stream();
  const ModelConfig& c = context_.config;
  const Dtype acc = acc_dtype(context_.dtype);
  const auto buffer = [&](int64_t rows, int64_t cols, Dtype t) { return context_.device.buffer(rows, cols, t, Use::activations); };
  s.scores = buffer(x.rows, c.n_routed, acc);
  s.total = buffer(x.rows, 1, acc);
  s.topk_idx = buffer(x.rows, c.topk, Dtype::i32);
  s.topk_w = buffer(x.rows, c.topk, acc);
  s.f = buffer(context_.sequences, c.n_routed, acc);
  Buf plain = buffer(x.rows, c.topk, Dtype::i32), scratch = buffer(x.rows, c.n_routed + c.n_group, acc);
  Buf share = buffer(context_.sequences, c.n_routed, acc), loss = buffer(context_.sequences, 1, acc);
  linear_f(stream, x, parts_->gate, s.scores);
  launch<RouterF>(stream, x.rows, {.x = s.scores, .bias = parts_->bias.master, .topk_idx = s.topk_idx, .topk_w = s.topk_w,
                                   .plain_idx = plain, .total = s.total, .scratch = scratch, .shape = parts_->shape});
  launch<BalanceLossF>(stream, context_.sequences, {.x = s.scores, .total = s.total, .plain_idx = plain, .f = s.f, .p = share,
                                                    .loss = loss, .seq_len = context_.seq_len});
  stream.copy(balance_host_->row_slice(microbatch, 1).data, loss->data, size_t(loss->bytes()));
}

std::unique_ptr<FeedForward::Saved> Moe::dispatch_f(int microbatch, const Tensor& x) {
  Stream& stream = context_.stream();
  const ModelConfig& c = context_.config;
  auto saved = std::make_unique<MoeSaved>();
  MoeSaved& s = *saved;
  route(s, microbatch, x);

  Buf idx = context_.device.host_buffer(x.rows, c.topk, Dtype::i32);
  stream.copy(idx->data, s.topk_idx->data, size_t(idx->bytes()));
  auto chosen = context_.device.make_event();
  stream.record(*chosen);
  if (parts_->shared) {
    const int64_t all[2] = {0, x.rows};
    s.y_shared = parts_->shared->forward(s.shared, x, all);
  }
  chosen->synchronize();
  s.plan = DispatchPlan(std::span(idx->row<int32_t>(0), size_t(idx->size())), c.topk, c.n_routed);
  for (size_t e = 0; e < load_.size(); ++e) load_[e] += s.plan.offsets[e + 1] - s.plan.offsets[e];

  s.pos = upload(context_, s.plan.pos);
  s.token = upload(context_, s.plan.token);
  s.rows = context_.device.buffer(s.token->rows, c.d_model, context_.dtype, Use::activations);
  launch<GatherRows>(stream, s.rows->rows, {.x = x, .index = s.token, .y = s.rows});
  return saved;
}

void Moe::experts_f(Saved& saved, const Tensor&) {
  MoeSaved& s = of(saved);
  s.y_rows = parts_->routed.forward(s.routed, s.rows, s.plan.offsets);
}

Buf Moe::combine_f(Saved& saved, const Tensor& residual) {
  MoeSaved& s = of(saved);
  Buf y = context_.activation(residual.cols);
  launch<CombineF>(context_.stream(), y->rows,
                   {.x = s.y_rows, .pos = s.pos->reshape(y->rows, context_.config.topk), .w = s.topk_w,
                    .shared = s.y_shared ? *s.y_shared : Tensor(), .residual = residual, .y = y});
  s.y_shared = Buf();
  return y;
}

// --- backward ------------------------------------------------------------------------------------------------------------------

void Moe::combine_i(Saved& saved, const Tensor& dy) {
  MoeSaved& s = of(saved);
  const int64_t topk = context_.config.topk;
  s.dy = dy;
  Buf dw = context_.device.buffer(dy.rows, topk, s.topk_w->dtype, Use::activations);
  launch<CombineB>(context_.stream(), dy.rows,
                   {.x = s.y_rows, .dy = dy, .pos = s.pos->reshape(dy.rows, topk), .w = s.topk_w, .dw = dw});
  launch<RouterB>(context_.stream(), dy.rows,
                  {.x = s.scores, .topk_idx = s.topk_idx, .dw = dw, .total = s.total, .f = s.f, .shape = parts_->shape,
                   .seq_len = context_.seq_len, .balance = context_.balance_scale});
  if (s.scores->dtype != context_.dtype) {  // the GEMMs of I and W want both sides in the compute type
    Buf cast = context_.activation(s.scores->cols);
    launch<CastRows>(context_.stream(), dy.rows, {.x = cast, .from = s.scores});
    s.scores = std::move(cast);
  }
}

void Moe::experts_i(Saved& saved) {
  MoeSaved& s = of(saved);
  if (parts_->shared) {
    const int64_t all[2] = {0, s.dy.rows};
    s.dx = parts_->shared->backward_input(s.shared, s.dy, all);
    linear_i(context_.stream(), s.scores, parts_->gate, s.dx, true);
  } else {
    s.dx = context_.activation(s.dy.cols);
    linear_i(context_.stream(), s.scores, parts_->gate, s.dx);
  }
  s.dx_rows = parts_->routed.backward_input(s.routed, s.y_rows, s.plan.offsets);
}

Buf Moe::dispatch_i(Saved& saved) {
  MoeSaved& s = of(saved);
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
  parts_->routed.backward_weight(s.routed, s.rows, s.y_rows, s.plan.offsets, half);
}

// --- load, balance -------------------------------------------------------------------------------------------------------------

void Moe::clear_load() { std::fill(load_.begin(), load_.end(), 0); }

std::vector<double> Moe::balance_loss() const {
  std::vector<double> sums;
  for (int64_t m = 0; m < balance_host_->rows; ++m) {
    double sum = 0;
    for (int64_t i = 0; i < balance_host_->cols; ++i)
      sum += balance_host_->dtype == Dtype::f64 ? balance_host_->row<double>(m)[i] : double(balance_host_->row<float>(m)[i]);
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
