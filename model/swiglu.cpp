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

// c = a W, or a W^T, for each network. A batch of 2: with gates and with ups.
void Swiglu::product(Gemm gemm, Offsets offsets, int batch) const {
  gemm.batch = batch;
  gemm.stride_b = stride_;
  gemm.stride_c = gemm.a.rows * width_;
  gemm.groups = offsets;
  context_.device.gemm(gemm);
}

Buf Swiglu::forward(Saved& s, const Tensor& x, Offsets offsets) const {
  s.gate_up = context_.activation(2 * x.rows, width_);
  Buf act = context_.activation(x.rows, width_), y = context_.activation(x.rows, x.cols);
  product({Form::NN, x, gate_->weight, gate(s)}, offsets, 2);
  launch<SwigluF>(context_.stream(), x.rows, {.x = gate(s), .up = up(s), .act = act});
  product({Form::NN, act, down_->weight, y}, offsets);
  return y;
}

Buf Swiglu::backward_input(Saved& s, const Tensor& dy, Offsets offsets) const {
  s.act = context_.activation(dy.rows, width_);
  Buf dx = context_.activation(dy.rows, dy.cols);
  product({Form::NT, dy, down_->weight, s.act}, offsets);
  launch<SwigluI>(context_.stream(), dy.rows, {.x = gate(s), .up = up(s), .act = s.act});
  product({Form::NT, gate(s), gate_->weight, dx}, offsets);
  product({Form::NT, up(s), up_->weight, dx, true}, offsets);
  return dx;
}

void Swiglu::backward_weight(
    Saved& s, const Tensor& x, const Tensor& dy, Offsets pieces, Offsets offsets) const {
  const auto product = [&](const Tensor& a, const Tensor& b, const Param* w, int batch) {
    Gemm gemm{Form::TN, a, b, w->grad, true};
    gemm.batch = batch;
    gemm.stride_b = b.size();
    gemm.stride_c = stride_;
    gemm.pieces = pieces;
    gemm.groups = offsets;
    context_.device.gemm(gemm);
  };
  product(x, gate(s), gate_, 2);
  product(s.act, dy, down_, 1);
  s = Saved();
}

}  // namespace duet
