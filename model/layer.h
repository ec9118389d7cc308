// Layer: one transformer layer as phases, for one microbatch at a time.
//
//   h = x + attention(RMSNorm(x));  y = h + ffn(RMSNorm(h))
//
// The phases are those of feed_forward.h with attention before or after. Whoever calls them in
// order for one microbatch computes a layer; whoever interleaves two microbatches' phases computes
// the same bits. Read next: moe/moe.h, then pipeline/train/stage.h.
#pragma once
#include <memory>

#include "model/attention.h"
#include "model/feed_forward.h"

namespace duet {

class Layer {
 public:
  struct Saved {
    Attention::Saved attention;
    std::unique_ptr<FeedForward::Saved> ffn;
    Buf x, x_normed, x_rstd;  // [tokens, d_model] twice, [tokens, 1]
    Buf h, h_normed, h_rstd;  // the same after attention
    Buf dy, dh;               // [tokens, d_model] gradients of y and h
    Buf dx_normed, dh_normed;
  };

  // make_ffn(params, prefix) makes the feed-forward; it is called once, here.
  using MakeFeedForward =
      std::function<std::unique_ptr<FeedForward>(Params& params, const std::string& prefix)>;
  Layer(const Context& context, Params& params, int64_t index, const MakeFeedForward& make_ffn);

  void attention_f(Saved& saved, Buf x) const;
  void route_f(Saved& saved, int microbatch) const {
    saved.ffn = ffn_->route_f(microbatch, saved.h_normed);
  }
  void dispatch_f(Saved& saved) const { ffn_->dispatch_f(*saved.ffn, saved.h_normed); }
  void shared_f(Saved& saved) const { ffn_->shared_f(*saved.ffn, saved.h_normed); }
  void experts_f(Saved& saved) const { ffn_->experts_f(*saved.ffn, saved.h_normed); }
  Buf combine_f(Saved& saved) const;  // y

  void combine_i(Saved& saved, Buf dy) const;
  void shared_i(Saved& saved) const { ffn_->shared_i(*saved.ffn); }
  void experts_i(Saved& saved) const { ffn_->experts_i(*saved.ffn); }
  void dispatch_i(Saved& saved) const { saved.dh_normed = ffn_->dispatch_i(*saved.ffn); }
  Buf attention_i(Saved& saved) const;  // dx

  void experts_w(Saved& saved, int half) const;
  void attention_w(Saved& saved, int half) const;  // frees everything

 private:
  const Context& context_;
  Param& input_norm_;
  Attention attention_;
  Param& post_norm_;
  std::unique_ptr<FeedForward> ffn_;
};

}  // namespace duet
