// See swiglu.h.
#include "model/swiglu.h"

#include "model/machine/launch.h"
#include "model/rows/list.h"

namespace duet {

Swiglu::Swiglu(
    const Context& context, Params& params, std::span<const std::string> prefixes, int64_t width)
    : context_(context), width_(width), stride_(Params::stride(context.config.d_model, width)) {
  const int64_t d = context.config.d_model;
  const auto declare = [&](const char* name, int64_t in, int64_t out) {
    Param* first = nullptr;
    for (const std::string& prefix : prefixes) {
      Param& p = params.matrix(prefix + name, in, out);
      if (!first) first = &p;
    }
    return first;
  };
  gate_ = declare("gate_proj.weight", d, width);
  up_ = declare("up_proj.weight", d, width);
  down_ = declare("down_proj.weight", width, d);
}

Buf Swiglu::forward(Saved& s, const Tensor& x, std::span<const int64_t> offsets) const {
  Stream& stream = context_.stream();
  const auto buffer = [&](int64_t cols) {
    return context_.device.buffer(x.rows, cols, context_.dtype, Use::activations);
  };
  s.gate = buffer(width_);
  s.up = buffer(width_);
  Buf act = buffer(width_), y = buffer(x.cols);
  stream.grouped_gemm(
      {.form = Form::NN, .a = x, .b = gate_->weight, .c = s.gate, .stride_b = stride_}, offsets);
  stream.grouped_gemm(
      {.form = Form::NN, .a = x, .b = up_->weight, .c = s.up, .stride_b = stride_}, offsets);
  launch<SwigluF>(stream, x.rows, {.x = s.gate, .up = s.up, .act = act});
  stream.grouped_gemm(
      {.form = Form::NN, .a = act, .b = down_->weight, .c = y, .stride_b = stride_}, offsets);
  return y;
}

Buf Swiglu::backward_input(Saved& s, const Tensor& dy, std::span<const int64_t> offsets) const {
  Stream& stream = context_.stream();
  s.act = context_.device.buffer(dy.rows, width_, context_.dtype, Use::activations);
  Buf dx = context_.device.buffer(dy.rows, dy.cols, context_.dtype, Use::activations);
  stream.grouped_gemm(
      {.form = Form::NT, .a = dy, .b = down_->weight, .c = s.act, .stride_b = stride_}, offsets);
  launch<SwigluB>(stream, dy.rows, {.x = s.gate, .up = s.up, .act = s.act});
  stream.grouped_gemm(
      {.form = Form::NT, .a = s.gate, .b = gate_->weight, .c = dx, .stride_b = stride_}, offsets);
  stream.grouped_gemm({.form = Form::NT,
                          .a = s.up,
                          .b = up_->weight,
                          .c = dx,
                          .accumulate = true,
                          .stride_b = stride_},
      offsets);
  return dx;
}

void Swiglu::backward_weight(
    Saved& s, const Tensor& x, const Tensor& dy, std::span<const int64_t> offsets, int half) const {
  const auto product = [&](const Tensor& a, const Tensor& b, const Param* w) {
    context_.stream().grouped_gemm({.form = Form::TN,
                                       .a = a,
                                       .b = b,
                                       .c = w->grad[half],
                                       .accumulate = true,
                                       .stride_c = stride_},
        offsets);
  };
  product(x, s.gate, gate_);
  product(x, s.up, up_);
  product(s.act, dy, down_);
  s = Saved();
}

}  // namespace duet
