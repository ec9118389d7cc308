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
    Buf gate_up;  // [2 * rows, width] gate, then up: projections, from I on their gradients
    Buf act;      // [rows, width] from I on
  };

  // One network per prefix; parameters prefix + "gate_proj.weight" and so on.
  Swiglu(
      const Context& context, Params& params, std::span<const std::string> prefixes, int64_t width);

  // Network e works on rows offsets[e] .. offsets[e+1]-1, one alone on all.
  using Offsets = std::span<const int64_t>;

  // x, y [rows, d_model]
  Buf forward(Saved& saved, const Tensor& x, Offsets offsets = {}) const;
  // dx [rows, d_model]
  Buf backward_input(Saved& saved, const Tensor& dy, Offsets offsets = {}) const;
  // x and dy as before; the rows at which the pieces of their exact sums begin and end (grid.h).
  // Frees what is saved.
  void backward_weight(
      Saved& saved, const Tensor& x, const Tensor& dy, Offsets pieces, Offsets offsets = {}) const;

 private:
  static Tensor gate(const Saved& s) { return s.gate_up->row_slice(0, s.gate_up->rows / 2); }
  static Tensor up(const Saved& s) {
    return s.gate_up->row_slice(s.gate_up->rows / 2, s.gate_up->rows / 2);
  }
  void product(Gemm gemm, Offsets offsets, int batch = 1) const;

  const Context& context_;
  int64_t width_;
  // of the first network; the others follow at `stride_`, behind all gates all ups
  Param *gate_, *up_, *down_;
  int64_t stride_;
};

}  // namespace duet
