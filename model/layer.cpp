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

void Layer::attention_f(Saved& s, Buf x) const {
  Stream& stream = context_.stream();
  const int64_t d = context_.config.d_model;
  s.x = std::move(x);
  s.x_normed = context_.activation(d);
  s.x_rstd = context_.row_stats();
  launch<RmsNormF>(stream, s.x->rows,
      {.x = s.x,
          .gain = input_norm_.weight,
          .y = s.x_normed,
          .rstd = s.x_rstd,
          .eps = ModelConfig::kNormEps});
  Buf delta = attention_.forward(s.attention, s.x_normed);
  s.h = context_.activation(d);
  s.h_normed = context_.activation(d);
  s.h_rstd = context_.row_stats();
  launch<AddRmsNormF>(stream, s.x->rows,
      {.x = s.x,
          .delta = delta,
          .gain = post_norm_.weight,
          .h = s.h,
          .y = s.h_normed,
          .rstd = s.h_rstd,
          .eps = ModelConfig::kNormEps});
}

Buf Layer::combine_f(Saved& s) const { return ffn_->combine_f(*s.ffn, s.h); }

void Layer::combine_i(Saved& s, Buf dy) const {
  s.dy = std::move(dy);
  ffn_->combine_i(*s.ffn, s.dy);
}

Buf Layer::attention_i(Saved& s) const {
  Stream& stream = context_.stream();
  s.dh = context_.activation(context_.config.d_model);
  launch<RmsNormB>(stream, s.h->rows,
      {.x = s.h,
          .gain = post_norm_.weight,
          .rstd = s.h_rstd,
          .dy = s.dh_normed,
          .residual = s.dy,
          .dx = s.dh});
  s.dx_normed = attention_.backward_input(s.attention, s.dh);
  Buf dx = context_.activation(context_.config.d_model);
  launch<RmsNormB>(stream, s.x->rows,
      {.x = s.x,
          .gain = input_norm_.weight,
          .rstd = s.x_rstd,
          .dy = s.dx_normed,
          .residual = s.dh,
          .dx = dx});
  return dx;
}

void Layer::experts_w(Saved& s, int half) const { ffn_->experts_w(*s.ffn, s.h_normed, s.dy, half); }

void Layer::attention_w(Saved& s, int half) const {
  norm_w(context_, s.h, s.h_rstd, s.dh_normed, post_norm_, half);
  attention_.backward_weight(s.attention, s.x_normed, s.dh, half);
  norm_w(context_, s.x, s.x_rstd, s.dx_normed, input_norm_, half);
  s = Saved();
}

// --- the dense feed-forward ----------------------------------------------------------------------

namespace {

class Dense : public FeedForward {
 public:
  Dense(const Context& context, Params& params, const std::string& prefix)
      : context_(context), swiglu_(context, params, std::span(&prefix, 1), context.config.d_ff),
        all_{0, context.tokens()} {}

  std::unique_ptr<Saved> route_f(int, const Tensor&) override {
    return std::make_unique<DenseSaved>();
  }
  void dispatch_f(Saved&, const Tensor&) override {}
  void shared_f(Saved&, const Tensor&) override {}
  void experts_f(Saved& saved, const Tensor& x) override {
    of(saved).y = swiglu_.forward(of(saved).swiglu, x, all_);
  }
  Buf combine_f(Saved& saved, const Tensor& residual) override {
    launch<Add>(context_.stream(), residual.rows, {.x = residual, .y = of(saved).y});
    return std::move(of(saved).y);
  }

  void combine_i(Saved& saved, const Tensor& dy) override { of(saved).dy = dy; }
  void shared_i(Saved&) override {}
  void experts_i(Saved& saved) override {
    of(saved).dx = swiglu_.backward_input(of(saved).swiglu, of(saved).dy, all_);
  }
  Buf dispatch_i(Saved& saved) override { return std::move(of(saved).dx); }

  void experts_w(Saved& saved, const Tensor& x, const Tensor& dy, int half) override {
    swiglu_.backward_weight(of(saved).swiglu, x, dy, all_, half);
  }

 private:
  struct DenseSaved : Saved {
    Swiglu::Saved swiglu;
    Buf y, dx;  // [tokens, d_model]
    Tensor dy;
  };
  static DenseSaved& of(Saved& saved) { return static_cast<DenseSaved&>(saved); }

  const Context& context_;
  Swiglu swiglu_;
  int64_t all_[2];
};

}  // namespace

std::unique_ptr<FeedForward> make_dense(
    const Context& context, Params& params, const std::string& prefix) {
  return std::make_unique<Dense>(context, params, prefix);
}

}  // namespace duet
