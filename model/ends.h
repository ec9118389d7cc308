// The two ends of the model: Embedding (tokens in) and Head (final norm, output projection, fused
// cross-entropy). Not here: the layers between them (layer.h).
// Read next: feed_forward.h.
#pragma once
#include <span>

#include "model/context.h"

namespace duet {

class Embedding {
 public:
  struct Saved {
    Buf ids;                      // [tokens, 1] i32 on the device
    std::vector<int32_t> tokens;  // the same on the host
    Buf dy;                       // [tokens, d_model]
  };
  Embedding(const Context& context, Params& params);

  Buf forward(Saved& saved, std::span<const int32_t> tokens) const;  // y [tokens, d_model]
  void backward_input(Saved& saved, Buf dy) const { saved.dy = std::move(dy); }
  void backward_weight(Saved& saved) const;

 private:
  const Context& context_;
  Param& table_;
};

class Head {
 public:
  struct Saved {
    Buf x;          // [tokens, d_model]
    Normed norm;    // of x
    Buf padded;     // [tokens, padded vocab]
    Tensor logits;  // [tokens, vocab] of these; after loss() their gradient
    Buf dx_normed;  // [tokens, d_model]
  };
  Head(const Context& context, Params& params);

  void forward(Saved& saved, Buf x);  // fills saved.logits
  // Cross-entropy of each token, in nats, into loss_host [tokens, 1] (accumulation type, valid once
  // the stream is synchronized); turns saved.logits into the gradient of the objective.
  void loss(Saved& saved, std::span<const int32_t> targets, const Tensor& loss_host) const;
  Buf backward_input(Saved& saved) const;  // dx [tokens, d_model]
  void backward_weight(Saved& saved) const;

 private:
  Tensor weight() const { return padded_ ? *padded_ : lm_head_.weight; }

  const Context& context_;
  const Params& params_;
  Param& norm_;
  Param& lm_head_;
  // [d_model, padded vocab] On CUDA a copy of lm_head_, whose rows are as long as tensor cores like
  // them; the columns behind are zeros, and so are their logits and these' gradients.
  Buf padded_;
  int64_t padded_of_ = 0;  // params_.changes() when it was copied
};

}  // namespace duet
