// Layer: one transformer layer as phases, for one microbatch at a time.
//
//   h = x + attention(RMSNorm(x));  y = h + ffn(RMSNorm(h))
//
// The phases are those of feed_forward.h. Whoever runs them in order for one microbatch computes a
// layer; whoever interleaves two microbatches' phases computes the same bits.
// Read next: data/README.md.
#pragma once
#include <memory>

#include "model/attention.h"
#include "model/feed_forward.h"

namespace duet {

class Layer {
 public:
  struct Saved {
    int microbatch = 0;  // set by the caller
    Attention::Saved attention;
    std::unique_ptr<FeedForward::Saved> ffn;
    Buf x, h;               // [tokens, d_model] before and after attention
    Normed x_norm, h_norm;  // of these
    Buf dx_normed, dh, dy;  // [tokens, d_model] gradients
  };

  // make_ffn(params, prefix) makes the feed-forward; it is called once, here.
  using MakeFeedForward =
      std::function<std::unique_ptr<FeedForward>(Params& params, const std::string& prefix)>;
  Layer(const Context& context, Params& params, int64_t index, const MakeFeedForward& make_ffn);

  // flow [tokens, d_model]: what goes from layer to layer. attention_f takes x and combine_f leaves
  // y; combine_i takes dy and attention_i leaves dx.
  void run(Phase phase, Saved& saved, Buf& flow) const;

 private:
  void attention_f(Saved& saved, Buf x) const;
  Buf attention_i(Saved& saved) const;
  void attention_w(Saved& saved) const;

  const Context& context_;
  Param& input_norm_;
  Attention attention_;
  Param& post_norm_;
  std::unique_ptr<FeedForward> ffn_;
};

}  // namespace duet
