// See stage.h.
#include "pipeline/train/stage.h"

#include <span>

namespace duet {

// Outside pairs, on a GPU: it computes the shared experts while the host plans what goes where. On
// the CPU the host computes them, while the tokens travel.
static constexpr Phase kSharedFirst[] = {Phase::attention_f, Phase::router_f, Phase::shared_f,
    Phase::dispatch_f, Phase::experts_f, Phase::combine_f};

Stage::Stage(const Context& context, const StageOptions& o)
    : context_(context), options_(o), saved_(size_t(o.microbatches)) {
  if (o.layer_begin == 0) embedding_.emplace(context, params_);
  layers_.reserve(size_t(o.layer_end - o.layer_begin));
  for (int64_t l = o.layer_begin; l < o.layer_end; ++l)
    layers_.emplace_back(context, params_, l,
        [&](Params& params, const std::string& prefix) -> std::unique_ptr<FeedForward> {
          if (context.config.dense(l)) return make_dense(context, params, prefix);
          Moe::Options of_layer = o.moe;
          of_layer.microbatches = o.microbatches;
          of_layer.layer = l;
          of_layer.placement = o.placement(l);
          auto moe = std::make_unique<Moe>(context, params, expert_params_, prefix, of_layer);
          moe_.push_back(moe.get());
          return moe;
        });
  if (o.layer_end == context.config.n_layers) {
    head_.emplace(context, params_);
    loss_host_ =
        context.device.host_buffer(o.microbatches, context.tokens(), acc_dtype(context.dtype));
  }
  for (Params* set : param_sets()) set->allocate(context.device, context.dtype, o.seed);
}

Scope Stage::scope(const char* name, int microbatch, int64_t layer) const {
  return Scope(
      context_.recorder, context_.stream(), {name, "compute", options_.index, microbatch, layer});
}

Stage::Saved& Stage::saved(int microbatch) {
  auto& saved = saved_[size_t(microbatch)];
  DUET_CHECK(
      saved, "backward of microbatch ", microbatch, ": expected activations of it, found none");
  return *saved;
}

void Stage::run(Phase phase, int microbatch, int layer) {
  if (layer < 0 || layer >= layers()) return;
  Saved& s = saved(microbatch);
  const Scope scope = this->scope(phase_name(phase), microbatch, options_.layer_begin + layer);
  layers_[size_t(layer)].run(phase, s.layers[size_t(layer)], s.flow);
  if (phase == Phase::combine_f && watch_.layer)
    watch_.layer(microbatch, options_.layer_begin + layer, s.flow,
        s.layers[size_t(layer)].ffn->chosen_experts());
  if (phase == Phase::attention_w) s.layers.pop_back();  // the last to need it
}

Buf Stage::forward(int microbatch, Buf x, const Microbatch& tokens) {
  begin_forward(microbatch, std::move(x), tokens);
  const std::span<const Phase> phases = context_.device.is_cuda() ? kSharedFirst : kForward;
  for (int l = 0; l < layers(); ++l)
    for (Phase phase : phases) run(phase, microbatch, l);
  return end_forward(microbatch, tokens);
}

void Stage::begin_forward(int microbatch, Buf x, const Microbatch& tokens) {
  auto& saved = saved_[size_t(microbatch)];
  DUET_CHECK(
      !saved, "forward of microbatch ", microbatch, ": expected no activations of it, found some");
  saved = std::make_unique<Saved>();
  saved->layers.resize(layers_.size());
  for (Layer::Saved& layer : saved->layers) layer.microbatch = microbatch;
  saved->flow = std::move(x);
  if (!embedding_) return;
  const Scope scope = this->scope("embedding F", microbatch);
  saved->flow = embedding_->forward(saved->embedding, tokens.inputs);
}

Buf Stage::end_forward(int microbatch, const Microbatch& tokens) {
  Saved& s = saved(microbatch);
  if (!head_) return std::move(s.flow);
  const Scope scope = this->scope("head F", microbatch);
  head_->forward(s.head, std::move(s.flow));
  if (watch_.logits) watch_.logits(microbatch, s.head.logits);
  head_->loss(s.head, tokens.targets, loss_host_->row_slice(microbatch, 1));
  return Buf();
}

Buf Stage::backward_input(int microbatch, Buf dy) {
  begin_backward(microbatch, std::move(dy));
  for (int l = layers(); l-- > 0;)
    for (Phase phase : kBackwardInput) run(phase, microbatch, l);
  return end_backward(microbatch);
}

void Stage::begin_backward(int microbatch, Buf dy) {
  Saved& s = saved(microbatch);
  s.flow = std::move(dy);
  if (!head_) return;
  const Scope scope = this->scope("head I", microbatch);
  s.flow = head_->backward_input(s.head);
}

Buf Stage::end_backward(int microbatch) {
  Saved& s = saved(microbatch);
  if (embedding_) embedding_->backward_input(s.embedding, std::move(s.flow));
  return std::move(s.flow);
}

void Stage::backward_weight(int microbatch) {
  Saved& s = saved(microbatch);
  const Scope scope = this->scope(s.layers.empty() ? "ends W" : "W", microbatch);
  if (head_) head_->backward_weight(s.head);
  for (int l = int(s.layers.size()); l-- > 0;)
    for (Phase phase : kBackwardWeight) run(phase, microbatch, l);
  if (embedding_) embedding_->backward_weight(s.embedding);
  saved_[size_t(microbatch)].reset();
}

std::vector<double> Stage::losses(int microbatch) const {
  std::vector<double> sums;
  const Tensor row = loss_host_->row_slice(microbatch, 1);
  for (int64_t t = 0; t < row.cols; ++t) {
    if (t % context_.seq_len == 0) sums.push_back(0);
    sums.back() += row.get(t);
  }
  return sums;
}

void Stage::begin_step() {
  for (Params* set : param_sets()) set->zero_grad(context_.stream());
  for (Moe* moe : moe_) moe->clear_load();
}

}  // namespace duet
