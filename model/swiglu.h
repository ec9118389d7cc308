// SwiGLU feed-forward networks: y = (silu(x Wgate) * (x Wup)) Wdown. One network (a dense layer,
// the shared experts) or several of one size over contiguous groups of rows (the routed experts),
// with grouped GEMM.
// Read next: ends.h.
#pragma once
#include <span>

#include "model/context.h"

namespace duet {

class Swiglu {
 public:
  struct Saved {
    Buf gate, up, act;  // [rows, width] the projections, then their gradients; act from I on
  };

  // One network per prefix; parameters prefix + "gate_proj.weight" and so on.
  Swiglu(
      const Context& context, Params& params, std::span<const std::string> prefixes, int64_t width);

  // x [rows, d_model]; offsets [networks + 1]: network e works on rows offsets[e] ..
  // offsets[e+1]-1.
  // y [rows, d_model]
  Buf forward(Saved& saved, const Tensor& x, std::span<const int64_t> offsets) const;
  // dx [rows, d_model]
  Buf backward_input(Saved& saved, const Tensor& dy, std::span<const int64_t> offsets) const;
  // x and dy as before; the rows at which the pieces of their exact sums begin and end (grid.h).
  // Frees what is saved.
  void backward_weight(Saved& saved, const Tensor& x, const Tensor& dy,
      std::span<const int64_t> offsets, std::span<const int64_t> pieces) const;

 private:
  using Offsets = std::span<const int64_t>;
  void product(Form form, const Tensor& a, const Param* w, const Tensor& c, Offsets offsets,
      bool accumulate = false) const;

  const Context& context_;
  int64_t width_;
  Param *gate_, *up_, *down_;  // of the first network; the others follow at `stride_`
  int64_t stride_;
};

}  // namespace duet
