// See context.h.
#include "model/context.h"

#include <algorithm>

#include "model/machine/compile_cpu.h"
#include "model/machine/launch.h"
#include "model/rows/grid_sums.h"
#include "model/rows/list.h"

namespace duet {

Normed norm_f(const Context& context, const Tensor& x, const Param& gain) {
  Normed norm{x, context.activation(x.cols), context.row_stats()};
  launch<RmsNormF>(context.stream(), x.rows,
      {.x = x, .gain = gain.weight, .y = norm.y, .rstd = norm.rstd, .eps = ModelConfig::kNormEps});
  return norm;
}

void norm_i(const Context& context, const Normed& norm, const Param& gain, const Tensor& dy,
    const Tensor& dx, const Tensor& residual) {
  launch<RmsNormI>(context.stream(), dx.rows,
      {.x = norm.x,
          .gain = gain.weight,
          .rstd = norm.rstd,
          .dy = dy,
          .residual = residual,
          .dx = dx});
}

DUET_GRID_SUMS(DUET_COMPILE_CPU)  // here, where the row flags do not reach

void norm_w(const Context& context, const Normed& norm, const Tensor& dy, const Param& gain) {
  const Pieces pieces = context.pieces();
  Buf partial =
      context.device.buffer(pieces.count(), dy.cols, acc_dtype(context.dtype), Use::scratch);
  launch_tiles<RmsNormW>(context.stream(), pieces.count(),
      {.x = norm.x, .rstd = norm.rstd, .dy = dy, .partial = partial, .pieces = pieces});
  launch_tiles<GridSum>(context.stream(), 1, {.x = partial, .y = gain.grad});
}

void linear_w(const Context& context, const Tensor& x, const Tensor& dy, const Param& w) {
  const std::vector<int64_t> pieces = context.pieces().bounds();
  context.device.gemm(
      {.form = Form::TN, .a = x, .b = dy, .c = w.grad, .accumulate = true, .pieces = pieces});
}

std::vector<float> to_host(Stream& stream, const Tensor& x) {
  DUET_CHECK(x.dtype != Dtype::i32, "expected floating-point numbers, found ", dtype_name(x.dtype));
  std::vector<float> host(size_t(x.size()));
  if (host.empty()) return host;
  const auto fetch = [&]<class T>(T) {
    std::vector<T> values(size_t((x.rows - 1) * x.ld + x.cols));
    stream.copy(values.data(), x.data, values.size() * sizeof(T));
    stream.synchronize();
    for (int64_t r = 0; r < x.rows; ++r)
      std::copy_n(values.begin() + r * x.ld, x.cols, host.begin() + r * x.cols);
  };
  x.dtype == Dtype::bf16 ? fetch(bf16()) : x.dtype == Dtype::f64 ? fetch(double()) : fetch(float());
  return host;
}

}  // namespace duet
