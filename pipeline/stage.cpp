// See stage.h.
#include "pipeline/stage.h"

namespace duet {

Stage::Stage(const Context& context, const StageOptions& o)
    : context_(context), options_(o), moe_(size_t(o.layer_end - o.layer_begin)), saved_(size_t(o.microbatches)) {
  if (o.embedding) embedding_.emplace(context, params_);
  layers_.reserve(moe_.size());
  for (int64_t l = o.layer_begin; l < o.layer_end; ++l)
    layers_.emplace_back(context, params_, l, [&](Params& params, const std::string& prefix) -> std::unique_ptr<FeedForward> {
      if (context.config.dense(l)) return make_dense(context, params, prefix);
      auto moe = std::make_unique<Moe>(context, params, experts_, prefix, Moe::Options{o.microbatches, o.experts});
      moe_[size_t(l - o.layer_begin)] = moe.get();
      return moe;
    });
  if (o.head) {
    head_.emplace(context, params_);
    loss_host_ = context.device.host_buffer(o.microbatches, context.tokens(), acc_dtype(context.dtype));
  }
  for (Params* set : param_sets()) set->allocate(context.device, context.dtype, o.seed);
}

Buf Stage::forward(int microbatch, Buf x, const Microbatch& tokens) {
  auto& saved = saved_[size_t(microbatch)];
  DUET_CHECK(!saved, "forward of microbatch ", microbatch, ": expected no activations of it, found some");
  saved = std::make_unique<Saved>();
  saved->layers.resize(layers_.size());
  if (embedding_) x = embedding_->forward(saved->embedding, tokens.inputs);
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer::Saved& s = saved->layers[l];
    layers_[l].attention_f(s, std::move(x));
    layers_[l].dispatch_f(s, microbatch);
    layers_[l].experts_f(s);
    x = layers_[l].combine_f(s);
  }
  if (!head_) return x;
  head_->forward(saved->head, std::move(x));
  if (on_logits_) on_logits_(microbatch, saved->head.logits);
  head_->loss(saved->head, tokens.targets, loss_host_->row_slice(microbatch, 1));
  return Buf();
}

Buf Stage::backward_input(int microbatch, Buf dy) {
  auto& saved = saved_[size_t(microbatch)];
  DUET_CHECK(saved, "backward of microbatch ", microbatch, ": expected activations of it, found none");
  if (head_) dy = head_->backward_input(saved->head);
  for (size_t l = layers_.size(); l-- > 0;) {
    Layer::Saved& s = saved->layers[l];
    layers_[l].combine_i(s, std::move(dy));
    layers_[l].experts_i(s);
    layers_[l].dispatch_i(s);
    dy = layers_[l].attention_i(s);
  }
  if (!embedding_) return dy;
  embedding_->backward_input(saved->embedding, std::move(dy));
  return Buf();
}

void Stage::backward_weight(int microbatch) {
  saved_[size_t(microbatch)]->weight_ready = true;
  int& next = next_weight_[half(microbatch)];
  const int end = half(microbatch) == 0 ? options_.microbatches / 2 : options_.microbatches;
  while (next < end && saved_[size_t(next)] && saved_[size_t(next)]->weight_ready) weight_now(next++);
  int held = 0;
  for (const auto& saved : saved_) held += saved && saved->weight_ready;
  held_ = std::max(held_, held);
}

void Stage::weight_now(int microbatch) {
  auto& saved = saved_[size_t(microbatch)];
  if (head_) head_->backward_weight(saved->head, half(microbatch));
  for (size_t l = layers_.size(); l-- > 0;) {
    layers_[l].experts_w(saved->layers[l], half(microbatch));
    layers_[l].attention_w(saved->layers[l], half(microbatch));
  }
  if (embedding_) embedding_->backward_weight(saved->embedding, half(microbatch));
  saved.reset();
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
