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
  launch<KeyB>(stream, tokens,
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

// Some heads of one sequence: views into the [tokens, heads * dims] tensors, and one batched GEMM
// over the heads.
struct Attention::HeadChunk {
  int64_t token, head, heads, seq_len;
  // Head `head` of a tensor that has per_head columns a head, of which this is `cols` from `col`
  // on.
  Tensor of(const Tensor& x, int64_t per_head, int64_t col, int64_t cols) const {
    return x.row_slice(token, seq_len).col_slice(head * per_head + col, cols);
  }
  // [heads * seq_len, seq_len]
  Tensor scores(const Buf& buf) const { return buf->row_slice(0, heads * seq_len); }
};

template <class Fn> void Attention::for_head_chunks(int matrices, Fn fn) const {
  const int64_t n = context_.seq_len, bytes = n * n * dtype_size(context_.dtype) * matrices;
  const int64_t at_once =
      std::clamp<int64_t>(kScoreBytes * context_.device.threads() / bytes, 1, c_.n_heads);
  Buf p = context_.device.buffer(at_once * n, n, context_.dtype, Use::scratch);
  Buf dp =
      matrices > 1 ? context_.device.buffer(at_once * n, n, context_.dtype, Use::scratch) : Buf();
  for (int64_t sequence = 0; sequence < context_.sequences; ++sequence)
    for (int64_t head = 0; head < c_.n_heads; head += at_once) {
      const HeadChunk chunk{sequence * n, head, std::min(at_once, c_.n_heads - head), n};
      fn(chunk, chunk.scores(p), dp ? chunk.scores(dp) : Tensor());
    }
}

// One causal GEMM per head of a chunk. A stride is the distance from one head to the next, in
// elements.
static void heads_gemm(Stream& stream, Form form, int64_t heads, double alpha,
    std::pair<Tensor, int64_t> a, std::pair<Tensor, int64_t> b, std::pair<Tensor, int64_t> c) {
  stream.device().gemm({.form = form,
      .a = a.first,
      .b = b.first,
      .c = c.first,
      .alpha = alpha,
      .batch = int(heads),
      .stride_a = a.second,
      .stride_b = b.second,
      .stride_c = c.second,
      .causal = true});
}

void Attention::mix_heads(Saved& s) const {
  Stream& stream = context_.stream();
  if (context_.device.is_cuda()) {
    context_.device.flops += score_pairs() * (c_.qk_head_dim() + c_.v_head_dim);
    s.stats = context_.row_stats(c_.n_heads * 2);
    return launch_fused<FusedAttentionF>(stream, context_.tokens(),
        {.x = s.q, .k = s.k, .kv = s.kv, .mix = s.mix, .stats = s.stats, .shape = shape_});
  }
  const int64_t n = context_.seq_len, qk = c_.qk_head_dim(), nope = c_.qk_nope_head_dim,
                v = c_.v_head_dim;
  const double scale = 1 / std::sqrt(double(qk));
  for_head_chunks(1, [&](const HeadChunk& h, const Tensor& p, const Tensor&) {
    const Tensor one = p.row_slice(0, n);  // the first head's scores [seq_len, seq_len]
    heads_gemm(stream, Form::NT, h.heads, scale, {h.of(s.q, qk, 0, qk), qk},
        {h.of(s.k, qk, 0, qk), qk}, {one, n * n});
    launch<CausalSoftmaxF>(stream, p.rows, {.x = p});
    heads_gemm(stream, Form::NN, h.heads, 1, {one, n * n},
        {h.of(s.kv, nope + v, nope, v), nope + v}, {h.of(s.mix, v, 0, v), v});
  });
}

void Attention::mix_heads_backward(Saved& s, const Tensor& dmix, const Tensor& dk) const {
  Stream& stream = context_.stream();
  if (context_.device.is_cuda()) {
    context_.device.flops += score_pairs() * (3 * c_.qk_head_dim() + 2 * c_.v_head_dim);
    return launch_fused<FusedAttentionB>(stream, context_.tokens(),
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
  const int64_t n = context_.seq_len, qk = c_.qk_head_dim(), nope = c_.qk_nope_head_dim,
                v = c_.v_head_dim;
  const double scale = 1 / std::sqrt(double(qk));
  for_head_chunks(2, [&](const HeadChunk& h, const Tensor& p, const Tensor& dp) {
    const Tensor one = p.row_slice(0, n), done = dp.row_slice(0, n);
    const std::pair q{h.of(s.q, qk, 0, qk), qk}, k{h.of(s.k, qk, 0, qk), qk};
    const std::pair value{h.of(s.kv, nope + v, nope, v), nope + v},
        dvalue{h.of(s.dkv, nope + v, nope, v), nope + v};
    const std::pair dout{h.of(dmix, v, 0, v), v};
    heads_gemm(stream, Form::NT, h.heads, scale, q, k, {one, n * n});
    launch<CausalSoftmaxF>(stream, p.rows, {.x = p});
    heads_gemm(stream, Form::TN, h.heads, 1, {one, n * n}, dout, dvalue);  // dV = P^T dO
    heads_gemm(stream, Form::NT, h.heads, 1, dout, value, {done, n * n});  // dP = dO V^T
    launch<CausalSoftmaxB>(stream, p.rows, {.x = p, .dp = dp});
    // dQ = dS K
    heads_gemm(stream, Form::NN, h.heads, scale, {done, n * n}, k, {h.of(s.dq, qk, 0, qk), qk});
    // dK = dS^T Q
    heads_gemm(stream, Form::TN, h.heads, scale, {done, n * n}, q, {h.of(dk, qk, 0, qk), qk});
  });
}

}  // namespace duet
