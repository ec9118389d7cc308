// See stage.h.
#include "pipeline/train/stage.h"

namespace duet {

Stage::Stage(const Context& context, const StageOptions& o)
    : context_(context), options_(o), moe_(size_t(o.layer_end - o.layer_begin)),
      saved_(size_t(o.microbatches)) {
  if (o.embedding) embedding_.emplace(context, params_);
  layers_.reserve(moe_.size());
  for (int64_t l = o.layer_begin; l < o.layer_end; ++l)
    layers_.emplace_back(context, params_, l,
        [&](Params& params, const std::string& prefix) -> std::unique_ptr<FeedForward> {
          if (context.config.dense(l)) return make_dense(context, params, prefix);
          Moe::Options of_layer = o.moe;
          of_layer.microbatches = o.microbatches;
          of_layer.layer = l;
          if (o.placement) of_layer.placement = o.placement(l);
          auto moe = std::make_unique<Moe>(context, params, experts_, prefix, of_layer);
          moe_[size_t(l - o.layer_begin)] = moe.get();
          return moe;
        });
  if (o.head) {
    head_.emplace(context, params_);
    loss_host_ =
        context.device.host_buffer(o.microbatches, context.tokens(), acc_dtype(context.dtype));
  }
  for (Params* set : param_sets()) set->allocate(context.device, context.dtype, o.seed);
}

Scope Stage::scope(const char* name, int microbatch, int64_t layer) const {
  return Scope(context_.recorder, context_.stream(),
      {.name = name,
          .lane = "compute",
          .stage = options_.index,
          .microbatch = microbatch,
          .layer = layer < 0 ? -1 : options_.layer_begin + layer});
}

Stage::Saved& Stage::saved(int microbatch) {
  auto& saved = saved_[size_t(microbatch)];
  DUET_CHECK(
      saved, "backward of microbatch ", microbatch, ": expected activations of it, found none");
  return *saved;
}

// --- forward -------------------------------------------------------------------------------------

Buf Stage::forward(int microbatch, Buf x, const Microbatch& tokens) {
  ForwardPass pass(*this, microbatch, std::move(x), tokens);
  for (size_t l = 0; l < layers(); ++l) {
    pass.attention();
    pass.dispatch();
    pass.shared();
    pass.experts();
  }
  return pass.finish();
}

Stage::ForwardPass::ForwardPass(Stage& stage, int microbatch, Buf x, const Microbatch& tokens)
    : stage_(stage), microbatch_(microbatch), tokens_(tokens), x_(std::move(x)) {
  auto& saved = stage.saved_[size_t(microbatch)];
  DUET_CHECK(
      !saved, "forward of microbatch ", microbatch, ": expected no activations of it, found some");
  saved = std::make_unique<Saved>();
  saved->layers.resize(stage.layers());
  if (!stage.embedding_) return;
  const Scope scope = stage.scope("embedding F", microbatch);
  x_ = stage.embedding_->forward(saved->embedding, tokens.inputs);
}

void Stage::ForwardPass::attention() {
  Saved& saved = stage_.saved(microbatch_);
  if (layer_ > 0) {
    const Scope scope = stage_.scope("combine F", microbatch_, int64_t(layer_) - 1);
    x_ = stage_.layers_[layer_ - 1].combine_f(saved.layers[layer_ - 1]);
  }
  {
    const Scope scope = stage_.scope("attention F", microbatch_, int64_t(layer_));
    stage_.layers_[layer_].attention_f(saved.layers[layer_], std::move(x_));
  }
  const Scope scope = stage_.scope("router F", microbatch_, int64_t(layer_));
  stage_.layers_[layer_].route_f(saved.layers[layer_], microbatch_);
}

void Stage::ForwardPass::dispatch() {
  const Scope scope = stage_.scope("dispatch F", microbatch_, int64_t(layer_));
  stage_.layers_[layer_].dispatch_f(stage_.saved(microbatch_).layers[layer_]);
}

void Stage::ForwardPass::shared() {
  const Scope scope = stage_.scope("shared F", microbatch_, int64_t(layer_));
  stage_.layers_[layer_].shared_f(stage_.saved(microbatch_).layers[layer_]);
}

void Stage::ForwardPass::experts() {
  const Scope scope = stage_.scope("experts F", microbatch_, int64_t(layer_));
  stage_.layers_[layer_].experts_f(stage_.saved(microbatch_).layers[layer_]);
  ++layer_;
}

Buf Stage::ForwardPass::finish() {
  Saved& saved = stage_.saved(microbatch_);
  if (layer_ > 0) {
    const Scope scope = stage_.scope("combine F", microbatch_, int64_t(layer_) - 1);
    x_ = stage_.layers_[layer_ - 1].combine_f(saved.layers[layer_ - 1]);
  }
  if (!stage_.head_) return std::move(x_);
  const Scope scope = stage_.scope("head F", microbatch_);
  stage_.head_->forward(saved.head, std::move(x_));
  if (stage_.on_logits_) stage_.on_logits_(microbatch_, saved.head.logits);
  stage_.head_->loss(saved.head, tokens_.targets, stage_.loss_host_->row_slice(microbatch_, 1));
  return Buf();
}

// --- backward ------------------------------------------------------------------------------------

Buf Stage::backward_input(int microbatch, Buf dy) {
  BackwardPass pass(*this, microbatch, std::move(dy), false);
  for (size_t l = 0; l < layers(); ++l) {
    pass.combine();
    pass.shared();
    pass.experts();
    pass.attention();
  }
  return pass.finish();
}

Stage::BackwardPass::BackwardPass(Stage& stage, int microbatch, Buf dy, bool weights)
    : stage_(stage), microbatch_(microbatch), weights_(weights && stage.weight_is_due(microbatch)),
      dy_(std::move(dy)), layer_(stage.layers()) {
  if (!stage.head_) return;
  const Scope scope = stage.scope("head I", microbatch);
  dy_ = stage.head_->backward_input(stage.saved(microbatch).head);
}

void Stage::BackwardPass::combine() {
  --layer_;
  const Scope scope = stage_.scope("combine I", microbatch_, int64_t(layer_));
  stage_.layers_[layer_].combine_i(stage_.saved(microbatch_).layers[layer_], std::move(dy_));
}

void Stage::BackwardPass::shared() {
  const Scope scope = stage_.scope("shared I", microbatch_, int64_t(layer_));
  stage_.layers_[layer_].shared_i(stage_.saved(microbatch_).layers[layer_]);
}

void Stage::BackwardPass::experts() {
  Layer::Saved& saved = stage_.saved(microbatch_).layers[layer_];
  {
    const Scope scope = stage_.scope("experts I", microbatch_, int64_t(layer_));
    stage_.layers_[layer_].experts_i(saved);
  }
  if (!weights_) return;
  const Scope scope = stage_.scope("experts W", microbatch_, int64_t(layer_));
  stage_.layers_[layer_].experts_w(saved, stage_.half(microbatch_));
}

void Stage::BackwardPass::attention() {
  Layer::Saved& saved = stage_.saved(microbatch_).layers[layer_];
  {
    const Scope scope = stage_.scope("dispatch I", microbatch_, int64_t(layer_));
    stage_.layers_[layer_].dispatch_i(saved);
  }
  {
    const Scope scope = stage_.scope("attention I", microbatch_, int64_t(layer_));
    dy_ = stage_.layers_[layer_].attention_i(saved);
  }
  if (!weights_) return;
  const Scope scope = stage_.scope("attention W", microbatch_, int64_t(layer_));
  stage_.layers_[layer_].attention_w(saved, stage_.half(microbatch_));
}

Buf Stage::BackwardPass::finish() {
  Saved& saved = stage_.saved(microbatch_);
  if (stage_.embedding_) stage_.embedding_->backward_input(saved.embedding, std::move(dy_));
  if (weights_) {
    const Scope scope = stage_.scope("ends W", microbatch_);
    if (stage_.head_) stage_.head_->backward_weight(saved.head, stage_.half(microbatch_));
    if (stage_.embedding_)
      stage_.embedding_->backward_weight(saved.embedding, stage_.half(microbatch_));
    stage_.saved_[size_t(microbatch_)].reset();
    ++stage_.next_weight_[stage_.half(microbatch_)];
    stage_.weights_due(stage_.half(microbatch_));
  }
  return std::move(dy_);
}

// --- weights -------------------------------------------------------------------------------------

void Stage::backward_weight(int microbatch) {
  if (!saved_[size_t(microbatch)]) return;  // done by a BackwardPass with weights
  saved_[size_t(microbatch)]->weight_ready = true;
  weights_due(half(microbatch));
  int held = 0;
  for (const auto& saved : saved_) held += saved && saved->weight_ready;
  held_ = std::max(held_, held);
}

// Does the W of a half that are ready, as far as they come in ascending order.
void Stage::weights_due(int half) {
  const int end = half == 0 ? options_.microbatches / 2 : options_.microbatches;
  for (int& m = next_weight_[half]; m < end && saved_[size_t(m)] && saved_[size_t(m)]->weight_ready;
       ++m) {
    const Scope of_head = scope("W", m);
    auto& saved = saved_[size_t(m)];
    if (head_) head_->backward_weight(saved->head, half);
    for (size_t l = layers(); l-- > 0;) {
      {
        const Scope experts = scope("experts W", m, int64_t(l));
        layers_[l].experts_w(saved->layers[l], half);
      }
      const Scope attention = scope("attention W", m, int64_t(l));
      layers_[l].attention_w(saved->layers[l], half);
    }
    if (embedding_) embedding_->backward_weight(saved->embedding, half);
    saved.reset();
  }
}

std::vector<double> Stage::losses(int microbatch) const {
  std::vector<double> sums;
  const Tensor row = loss_host_->row_slice(microbatch, 1);
  for (int64_t t = 0; t < row.cols; ++t) {
    if (t % context_.seq_len == 0) sums.push_back(0);
    sums.back() += row.dtype == Dtype::f64 ? row.row<double>(0)[t] : double(row.row<float>(0)[t]);
  }
  return sums;
}

void Stage::begin_step() {
  for (Params* set : param_sets()) set->zero_grad(context_.stream());
  for (Moe* moe : moe_)
    if (moe) moe->clear_load();
  next_weight_[0] = 0;
  next_weight_[1] = options_.microbatches / 2;
  held_ = 0;
}

}  // namespace duet
