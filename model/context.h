// Context: what the parts of a chunk share, and F, I and W of a linear layer and
// of RMSNorm.
// Read next: attention.h.
#pragma once
#include <algorithm>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/machine/device.h"
#include "model/machine/recorder.h"
#include "model/param.h"
#include "model/rows/attention.h"

namespace duet {

struct Context {
  Device& device;
  const ModelConfig& config;
  Dtype dtype;        // compute type of weights and activations
  int64_t seq_len;    // tokens of a sequence
  int64_t sequences;  // of a microbatch
  // gradient of the objective for a token's cross-entropy: 1 / tokens of the global batch
  double loss_scale = 1;
  // and for a sequence's balance loss: alpha / sequences of the global batch
  double balance_scale = 0;
  int64_t segment_tokens = 128;  // of a sequence, whose gradients are summed as one (grid.h)
  Recorder* recorder = nullptr;  // of what happens when; null: nothing is recorded

  Pieces pieces() const { return {sequences, seq_len, std::min(segment_tokens, seq_len)}; }
  int64_t tokens() const { return seq_len * sequences; }  // of a microbatch
  Stream& stream() const { return device.compute(); }
  // [tokens, cols] or [rows, cols]
  Buf activation(int64_t cols) const { return activation(tokens(), cols); }
  Buf activation(int64_t rows, int64_t cols) const {
    return device.buffer(rows, cols, dtype, Use::activations);
  }
  // What travels between stages: activations, or their gradients. [tokens, d_model]
  Buf message() const { return device.buffer(tokens(), config.d_model, dtype, Use::messages); }
  // [tokens, cols] in the accumulation type
  Buf row_stats(int64_t cols = 1) const {
    return device.buffer(tokens(), cols, acc_dtype(dtype), Use::activations);
  }
};

// x [tokens, in], y [tokens, out]; the weight is [in, out].
inline void linear_f(const Context& context, const Tensor& x, const Param& w, const Tensor& y) {
  context.device.gemm({.form = Form::NN, .a = x, .b = w.weight, .c = y});
}
// dx = dy W^T, or dx += ...
inline void linear_i(const Context& context, const Tensor& dy, const Param& w, const Tensor& dx,
    bool accumulate = false) {
  context.device.gemm(
      {.form = Form::NT, .a = dy, .b = w.weight, .c = dx, .accumulate = accumulate});
}
// dW += x^T dy, exactly (grid.h).
void linear_w(const Context& context, const Tensor& x, const Tensor& dy, const Param& w);

// RMSNorm of x, which the caller keeps. [tokens, n] twice, [tokens, 1]
struct Normed {
  Tensor x;
  Buf y, rstd;
};
Normed norm_f(const Context& context, const Tensor& x, const Param& gain);
// dx = residual + the gradient for x. dy, dx, residual (or null) [tokens, n]
void norm_i(const Context& context, const Normed& norm, const Param& gain, const Tensor& dy,
    const Tensor& dx, const Tensor& residual = {});
// The gradient of the gain, added exactly.
void norm_w(const Context& context, const Normed& norm, const Tensor& dy, const Param& gain);

// An fp32, bf16 or fp64 tensor to host floats, one row behind the other. Synchronizes.
std::vector<float> to_host(Stream& stream, const Tensor& x);

}  // namespace duet
