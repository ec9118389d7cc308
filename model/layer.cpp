// See layer.h and feed_forward.h.
#include "model/layer.h"

#include "model/machine/launch.h"
#include "model/rows/list.h"
#include "model/swiglu.h"

namespace duet {

static std::string layer_prefix(int64_t index) { return cat("model.layers.", index, "."); }

Layer::Layer(const Context& context, Params& params, int64_t index, const MakeFeedForward& make_ffn)
    : context_(context), input_norm_(params.vector(layer_prefix(index) + "input_layernorm.weight",
                             context.config.d_model, Init::ones)),
      attention_(context, params, layer_prefix(index) + "self_attn."),
      post_norm_(params.vector(layer_prefix(index) + "post_attention_layernorm.weight",
          context.config.d_model, Init::ones)),
      ffn_(make_ffn(params, layer_prefix(index) + "mlp.")) {}

void Layer::run(Phase phase, Saved& s, Buf& flow) const {
  switch (phase) {
    case Phase::attention_f: return attention_f(s, std::move(flow));
    case Phase::attention_i: flow = attention_i(s); return;
    case Phase::attention_w: return attention_w(s);
    case Phase::combine_i:
      s.dy = std::move(flow);
      s.ffn->dy = s.dy;
      break;
    default: break;
  }
  ffn_->run(phase, *s.ffn);
  if (phase == Phase::combine_f) flow = std::move(s.ffn->y);
}

void Layer::attention_f(Saved& s, Buf x) const {
  const int64_t d = context_.config.d_model;
  s.x = std::move(x);
  s.x_norm = norm_f(context_, s.x, input_norm_);
  Buf delta = attention_.forward(s.attention, s.x_norm.y);
  s.h = context_.activation(d);
  s.h_norm = {s.h, context_.activation(d), context_.row_stats()};
  launch<AddRmsNormF>(context_.stream(), s.x->rows,
      {.x = s.x,
          .delta = delta,
          .gain = post_norm_.weight,
          .h = s.h,
          .y = s.h_norm.y,
          .rstd = s.h_norm.rstd,
          .eps = ModelConfig::kNormEps});
  s.ffn = ffn_->make_saved();
  s.ffn->microbatch = s.microbatch;
  s.ffn->x = s.h_norm.y;
  s.ffn->residual = s.h;
}

Buf Layer::attention_i(Saved& s) const {
  s.dh = context_.activation(context_.config.d_model);
  norm_i(context_, s.h_norm, post_norm_, s.ffn->dx, s.dh, s.dy);
  s.dx_normed = attention_.backward_input(s.attention, s.dh);
  Buf dx = context_.activation(context_.config.d_model);
  norm_i(context_, s.x_norm, input_norm_, s.dx_normed, dx, s.dh);
  return dx;
}

void Layer::attention_w(Saved& s) const {
  norm_w(context_, s.h_norm, s.ffn->dx, post_norm_);
  attention_.backward_weight(s.attention, s.x_norm.y, s.dh);
  norm_w(context_, s.x_norm, s.dx_normed, input_norm_);
}

// --- the dense feed-forward ----------------------------------------------------------------------

namespace {

class Dense : public FeedForward {
 public:
  Dense(const Context& context, Params& params, const std::string& prefix)
      : context_(context), swiglu_(context, params, std::span(&prefix, 1), context.config.d_ff) {}

  std::unique_ptr<Saved> make_saved() const override { return std::make_unique<DenseSaved>(); }
  void run(Phase phase, Saved& saved) override {
    DenseSaved& s = static_cast<DenseSaved&>(saved);
    switch (phase) {
      case Phase::experts_f: s.y = swiglu_.forward(s.swiglu, s.x); break;
      case Phase::combine_f:
        launch<Add>(context_.stream(), s.y->rows, {.x = s.residual, .y = s.y});
        break;
      case Phase::experts_i: s.dx = swiglu_.backward_input(s.swiglu, s.dy); break;
      case Phase::experts_w:
        swiglu_.backward_weight(s.swiglu, s.x, s.dy, context_.pieces().bounds());
        break;
      default: break;
    }
  }

 private:
  struct DenseSaved : Saved {
    Swiglu::Saved swiglu;
  };

  const Context& context_;
  Swiglu swiglu_;
};

}  // namespace

std::unique_ptr<FeedForward> make_dense(
    const Context& context, Params& params, const std::string& prefix) {
  return std::make_unique<Dense>(context, params, prefix);
}

}  // namespace duet
