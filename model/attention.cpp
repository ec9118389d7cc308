// See attention.h.
#include "model/attention.h"

#include <algorithm>
#include <cmath>

#include "model/machine/launch.h"
#include "model/rows/fused_attention.h"
#include "model/rows/list.h"

namespace duet {

// cos and sin of position * theta^(-2j/rope), computed on the host so that every device has the
// same bits.
static Buf angles(const Context& context, double (*fn)(double)) {
  const ModelConfig& c = context.config;
  const Dtype acc = acc_dtype(context.dtype);
  Buf host = context.device.host_buffer(context.seq_len, c.qk_rope_head_dim / 2, acc);
  for (int64_t t = 0; t < host->rows; ++t)
    for (int64_t j = 0; j < host->cols; ++j)
      host->set(t * host->cols + j,
          fn(double(t) * std::pow(c.rope_theta, -2.0 * double(j) / double(c.qk_rope_head_dim))));
  Buf table = context.device.buffer(host->rows, host->cols, acc, Use::scratch);
  context.stream().copy(table->data, host->data, size_t(host->bytes()));
  context.stream().synchronize();
  return table;
}

Attention::Attention(const Context& context, Params& params, const std::string& prefix)
    : context_(context), c_(context.config), cos_(angles(context, std::cos)),
      sin_(angles(context, std::sin)) {
  const int64_t heads = c_.n_heads;
  require(!context.device.is_cuda() ||
          (c_.qk_head_dim() <= kMostQueryDims && c_.v_head_dim <= kMostValueDims),
      "qk_nope_head_dim + qk_rope_head_dim, v_head_dim: found ", c_.qk_head_dim(), ", ",
      c_.v_head_dim, ", allowed with --device cuda: at most ", kMostQueryDims, ", ",
      kMostValueDims);
  shape_ = {.heads = int(heads),
      .nope = int(c_.qk_nope_head_dim),
      .rope = int(c_.qk_rope_head_dim),
      .v = int(c_.v_head_dim),
      .seq_len = context.seq_len,
      .cos = cos_,
      .sin = sin_};
  if (c_.q_lora_rank > 0) {
    q_a_ = &params.matrix(prefix + "q_a_proj.weight", c_.d_model, c_.q_lora_rank);
    q_a_norm_ = &params.vector(prefix + "q_a_layernorm.weight", c_.q_lora_rank, Init::ones);
    q_b_ = &params.matrix(prefix + "q_b_proj.weight", c_.q_lora_rank, heads * c_.qk_head_dim());
  } else {
    q_proj_ = &params.matrix(prefix + "q_proj.weight", c_.d_model, heads * c_.qk_head_dim());
  }
  kv_a_ = &params.matrix(
      prefix + "kv_a_proj_with_mqa.weight", c_.d_model, c_.kv_lora_rank + c_.qk_rope_head_dim);
  kv_a_norm_ = &params.vector(prefix + "kv_a_layernorm.weight", c_.kv_lora_rank, Init::ones);
  kv_b_ = &params.matrix(
      prefix + "kv_b_proj.weight", c_.kv_lora_rank, heads * (c_.qk_nope_head_dim + c_.v_head_dim));
  o_ = &params.matrix(prefix + "o_proj.weight", heads * c_.v_head_dim, c_.d_model);
}

Buf Attention::forward(Saved& s, const Tensor& x) const {
  Stream& stream = context_.stream();
  const int64_t tokens = context_.tokens();

  s.q = context_.activation(c_.n_heads * c_.qk_head_dim());
  if (q_proj_) {
    linear_f(context_, x, *q_proj_, s.q);
  } else {
    s.qa = context_.activation(c_.q_lora_rank);
    linear_f(context_, x, *q_a_, s.qa);
    s.qa_norm = norm_f(context_, s.qa, *q_a_norm_);
    linear_f(context_, s.qa_norm.y, *q_b_, s.q);
  }
  launch<RopeQuery>(stream, tokens, {.x = s.q, .shape = shape_, .sign = 1});

  s.kva = context_.activation(c_.kv_lora_rank + c_.qk_rope_head_dim);
  s.kv = context_.activation(c_.n_heads * (c_.qk_nope_head_dim + c_.v_head_dim));
  s.k = context_.activation(c_.n_heads * c_.qk_head_dim());
  linear_f(context_, x, *kv_a_, s.kva);
  s.latent = norm_f(context_, s.kva->col_slice(0, c_.kv_lora_rank), *kv_a_norm_);
  linear_f(context_, s.latent.y, *kv_b_, s.kv);
  launch<KeyF>(stream, tokens,
      {.x = s.kv,
          .rotary = s.kva->col_slice(c_.kv_lora_rank, c_.qk_rope_head_dim),
          .k = s.k,
          .shape = shape_});

  s.mix = context_.activation(c_.n_heads * c_.v_head_dim);
  mix_heads(s);
  Buf y = context_.activation(c_.d_model);
  linear_f(context_, s.mix, *o_, y);
  return y;
}

Buf Attention::backward_input(Saved& s, const Tensor& dy) const {
  Stream& stream = context_.stream();
  const int64_t tokens = context_.tokens();

  Buf dmix = context_.activation(s.mix->cols), dk = context_.activation(s.k->cols);
  linear_i(context_, dy, *o_, dmix);
  s.dq = context_.activation(s.q->cols);
  s.dkv = context_.activation(s.kv->cols);
  mix_heads_backward(s, dmix, dk);

  s.dkva = context_.activation(s.kva->cols);
  s.dlatent = context_.activation(c_.kv_lora_rank);
  launch<KeyI>(stream, tokens,
      {.x = dk,
          .dkv = s.dkv,
          .drotary = s.dkva->col_slice(c_.kv_lora_rank, c_.qk_rope_head_dim),
          .shape = shape_});
  linear_i(context_, s.dkv, *kv_b_, s.dlatent);
  norm_i(context_, s.latent, *kv_a_norm_, s.dlatent, s.dkva->col_slice(0, c_.kv_lora_rank));

  Buf dx = context_.activation(c_.d_model);
  linear_i(context_, s.dkva, *kv_a_, dx);
  launch<RopeQuery>(stream, tokens, {.x = s.dq, .shape = shape_, .sign = -1});
  if (q_proj_) {
    linear_i(context_, s.dq, *q_proj_, dx, true);
  } else {
    s.dqa_normed = context_.activation(c_.q_lora_rank);
    s.dqa = context_.activation(c_.q_lora_rank);
    linear_i(context_, s.dq, *q_b_, s.dqa_normed);
    norm_i(context_, s.qa_norm, *q_a_norm_, s.dqa_normed, s.dqa);
    linear_i(context_, s.dqa, *q_a_, dx, true);
  }
  s.q = Buf();
  s.k = Buf();
  s.kv = Buf();
  s.stats = Buf();
  return dx;
}

void Attention::backward_weight(Saved& s, const Tensor& x, const Tensor& dy) const {
  linear_w(context_, s.mix, dy, *o_);
  linear_w(context_, s.latent.y, s.dkv, *kv_b_);
  norm_w(context_, s.latent, s.dlatent, *kv_a_norm_);
  linear_w(context_, x, s.dkva, *kv_a_);
  if (q_proj_) {
    linear_w(context_, x, s.dq, *q_proj_);
  } else {
    linear_w(context_, s.qa_norm.y, s.dq, *q_b_);
    norm_w(context_, s.qa_norm, s.dqa_normed, *q_a_norm_);
    linear_w(context_, x, s.dqa, *q_a_);
  }
  s = Saved();
}

// --- the [query, key] part: a sequence at a time, and of its heads as many as fit ----------------

// Matrices of some heads: the first one's, and how many elements further the next one's begins.
struct HeadMatrices {
  Tensor first;
  int64_t next;
};

// Some heads of one sequence.
struct Attention::HeadChunk {
  Device& device;
  int64_t token, seq_len, head, heads, all_heads;
  // Their part of x [tokens, all_heads * dims], without the first `skip` dims of each.
  HeadMatrices of(const Tensor& x, int64_t skip = 0) const {
    const int64_t dims = x.cols / all_heads;
    return {x.row_slice(token, seq_len).col_slice(head * dims + skip, dims - skip), dims};
  }
  void gemm(Form form, double alpha, const HeadMatrices& a, const HeadMatrices& b,
      const HeadMatrices& c) const {
    device.gemm({.form = form,
        .a = a.first,
        .b = b.first,
        .c = c.first,
        .alpha = alpha,
        .batch = int(heads),
        .stride_a = a.next,
        .stride_b = b.next,
        .stride_c = c.next,
        .causal = true});
  }
};

// fn(chunk, P, room for dP), each [seq_len, seq_len] a head: P is the softmax of the scores.
template <class Fn>
void Attention::for_head_chunks(const Saved& s, double scale, int matrices, Fn fn) const {
  const int64_t n = context_.seq_len, bytes = n * n * dtype_size(context_.dtype) * matrices;
  const int64_t at_once =
      std::clamp<int64_t>(kScoreBytes * context_.device.threads() / bytes, 1, c_.n_heads);
  const Buf room = context_.device.buffer(matrices * at_once * n, n, context_.dtype, Use::scratch);
  const HeadMatrices p{room->row_slice(0, n), n * n},
      dp{room->row_slice((matrices - 1) * at_once * n, n), n * n};
  for (int64_t sequence = 0; sequence < context_.sequences; ++sequence)
    for (int64_t head = 0; head < c_.n_heads; head += at_once) {
      const HeadChunk h{
          context_.device, sequence * n, n, head, std::min(at_once, c_.n_heads - head), c_.n_heads};
      h.gemm(Form::NT, scale, h.of(s.q), h.of(s.k), p);
      launch<CausalSoftmaxF>(context_.stream(), h.heads * n, {.x = p.first});
      fn(h, p, dp);
    }
}

void Attention::mix_heads(Saved& s) const {
  if (context_.device.is_cuda()) {
    context_.device.flops += score_pairs() * (c_.qk_head_dim() + c_.v_head_dim);
    s.stats = context_.row_stats(c_.n_heads * 2);
    return launch<FusedAttentionF>(context_.stream(), context_.tokens(),
        {.x = s.q, .k = s.k, .kv = s.kv, .mix = s.mix, .stats = s.stats, .shape = shape_});
  }
  const double scale = 1 / std::sqrt(double(c_.qk_head_dim()));
  for_head_chunks(s, scale, 1, [&](const HeadChunk& h, const HeadMatrices& p, const HeadMatrices&) {
    h.gemm(Form::NN, 1, p, h.of(s.kv, c_.qk_nope_head_dim), h.of(s.mix));
  });
}

void Attention::mix_heads_backward(Saved& s, const Tensor& dmix, const Tensor& dk) const {
  Stream& stream = context_.stream();
  if (context_.device.is_cuda()) {
    context_.device.flops += score_pairs() * (3 * c_.qk_head_dim() + 2 * c_.v_head_dim);
    return launch<FusedAttentionI>(stream, context_.tokens(),
        {.x = s.q,
            .k = s.k,
            .kv = s.kv,
            .mix = s.mix,
            .stats = s.stats,
            .dmix = dmix,
            .dq = s.dq,
            .dk = dk,
            .dkv = s.dkv,
            .shape = shape_});
  }
  const int64_t nope = c_.qk_nope_head_dim;
  const double scale = 1 / std::sqrt(double(c_.qk_head_dim()));
  for_head_chunks(
      s, scale, 2, [&](const HeadChunk& h, const HeadMatrices& p, const HeadMatrices& dp) {
        h.gemm(Form::TN, 1, p, h.of(dmix), h.of(s.dkv, nope));  // dV = P^T dO
        h.gemm(Form::NT, 1, h.of(dmix), h.of(s.kv, nope), dp);  // dP = dO V^T
        launch<CausalSoftmaxI>(stream, h.heads * h.seq_len, {.x = p.first, .dp = dp.first});
        h.gemm(Form::NN, scale, dp, h.of(s.k), h.of(s.dq));  // dQ = dS K
        h.gemm(Form::TN, scale, dp, h.of(s.q), h.of(dk));    // dK = dS^T Q
      });
}

}  // namespace duet
