// Multi-head Latent Attention (DeepSeek-V2, section 2.1; DeepSeek-V3, section 2.1.1), hand-written
// F, I and W.
//
//   q          = x Wq  or  RMSNorm(x Wqa) Wqb            [tokens, heads * (nope + rope)]
//   latent, kr = split(x Wkva)                           [tokens, kv_lora], [tokens, rope]
//   kn, v      = split(RMSNorm(latent) Wkvb)  per head   [tokens, heads * (nope + v)]
//   q, k       = (qn, RoPE(qr)), (kn, RoPE(kr))
//   y          = concat_heads(softmax(q k^T / sqrt(nope + rope), causal) v) Wo  [tokens, d_model]
//
// On CUDA the scores [query, key] are never in memory (rows/fused_attention.h). On the CPU they are
// formed for as many heads at a time as kScoreBytes allows, and formed again in I instead of being
// kept.
// Read next: swiglu.h.
#pragma once
#include "model/context.h"

namespace duet {

inline constexpr int64_t kScoreBytes = 512 << 10;  // for each core: half of a usual L2 cache

class Attention {
 public:
  // What F leaves for I, and I for W, of one microbatch.
  struct Saved {
    Buf qa;          // [tokens, q_lora], only with q_lora_rank
    Normed qa_norm;  // of it
    Buf q, k;        // [tokens, heads * (nope + rope)] turned
    Buf kva;         // [tokens, kv_lora + rope] latent and rotary key before turning
    Normed latent;   // [tokens, kv_lora]
    Buf kv;          // [tokens, heads * (nope + v)]
    Buf mix;         // [tokens, heads * v] softmax(...) v
    Buf stats;       // [tokens, heads * 2] on CUDA: of the scores, for I to make them again
    Buf dq, dqa_normed, dqa, dkv, dlatent, dkva;  // gradients of the same names, of the same shapes
  };

  Attention(const Context& context, Params& params, const std::string& prefix);

  // x, y [tokens, d_model]
  Buf forward(Saved& saved, const Tensor& x) const;
  // dx [tokens, d_model]
  Buf backward_input(Saved& saved, const Tensor& dy) const;
  // x and dy as before
  void backward_weight(Saved& saved, const Tensor& x, const Tensor& dy) const;

 private:
  void mix_heads(Saved& saved) const;
  void mix_heads_backward(Saved& saved, const Tensor& dmix, const Tensor& dk) const;
  template <class Fn>
  void for_head_chunks(const Saved& saved, double scale, int matrices, Fn fn) const;
  struct HeadChunk;
  // FLOP of a causal product for each dim: all pairs of query and key, half of them used, 2 FLOP
  int64_t score_pairs() const { return context_.tokens() * context_.seq_len * c_.n_heads; }

  const Context& context_;
  const ModelConfig& c_;
  HeadShape shape_;
  Buf cos_, sin_;  // [seq_len, rope / 2]
  Param *q_proj_ = nullptr, *q_a_ = nullptr, *q_a_norm_ = nullptr, *q_b_ = nullptr;
  Param *kv_a_, *kv_a_norm_, *kv_b_, *o_;
};

}  // namespace duet
