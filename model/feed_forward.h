// FeedForward: the second half of a layer, in named phases. model/ implements the dense one, moe/
// the mixture of experts.
//
// A mixture of experts sends tokens to the ranks that hold their experts and back: dispatch,
// experts, combine, each twice (forward, and backward for inputs). What leaves in one phase arrives
// in a later one; so phases of one microbatch's forward and of another's backward can be
// interleaved, one computing while the other's tokens travel. One thread calls them, for each
// microbatch in this order:
//
//   F  route_f -> dispatch_f, shared_f -> experts_f -> combine_f      y = residual + ffn(x)
//   I  combine_i -> shared_i -> experts_i -> dispatch_i               dx from dy
//   W  experts_w                                                      weight gradients, any time
//      after I
//
// dispatch_f is where the host waits: for the choices of all ranks, which say what goes where.
// shared_f comes before it, so that there is something to compute meanwhile, or behind it, while
// the tokens travel.
//
// Tensors are [tokens of the microbatch, d_model]; the caller keeps x until experts_w, dy until
// experts_w.
#pragma once
#include <memory>

#include "model/context.h"

namespace duet {

class FeedForward {
 public:
  struct Saved {  // what a phase leaves for the next ones, of one microbatch
    virtual ~Saved() = default;
  };
  virtual ~FeedForward() = default;

  virtual std::unique_ptr<Saved> route_f(int microbatch, const Tensor& x) = 0;
  virtual void dispatch_f(Saved& saved, const Tensor& x) = 0;
  virtual void shared_f(Saved& saved, const Tensor& x) = 0;
  virtual void experts_f(Saved& saved, const Tensor& x) = 0;
  virtual Buf combine_f(Saved& saved, const Tensor& residual) = 0;

  virtual void combine_i(Saved& saved, const Tensor& dy) = 0;
  virtual void shared_i(Saved& saved) = 0;
  virtual void experts_i(Saved& saved) = 0;
  virtual Buf dispatch_i(Saved& saved) = 0;

  virtual void experts_w(Saved& saved, const Tensor& x, const Tensor& dy, int half) = 0;
};

// One SwiGLU network of width d_ff; nothing travels.
std::unique_ptr<FeedForward> make_dense(
    const Context& context, Params& params, const std::string& prefix);

}  // namespace duet
