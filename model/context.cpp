// See context.h.
#include "model/context.h"

#include <algorithm>

#include "model/machine/launch.h"
#include "model/rows/list.h"

namespace duet {

void norm_w(const Context& context, const Tensor& x, const Tensor& rstd, const Tensor& dy,
    const Param& gain, int half) {
  const int64_t partials = (x.rows + kTokensPerPartial - 1) / kTokensPerPartial;
  Buf partial = context.device.buffer(partials, x.cols, acc_dtype(context.dtype), Use::scratch);
  launch<RmsNormW>(
      context.stream(), partials, {.x = x, .rstd = rstd, .dy = dy, .partial = partial});
  launch<SumRows>(context.stream(), (x.cols + kColumnsPerSum - 1) / kColumnsPerSum,
      {.x = partial, .y = gain.grad[half]});
}

Buf upload(const Context& context, std::span<const int32_t> values) {
  Buf buf = context.device.buffer(int64_t(values.size()), 1, Dtype::i32, Use::activations);
  context.stream().copy(buf->data, values.data(), values.size_bytes());
  return buf;
}

std::vector<float> to_host(Stream& stream, const Tensor& x) {
  DUET_CHECK(x.ld == x.cols && (x.dtype == Dtype::f32 || x.dtype == Dtype::bf16),
      "expected a contiguous fp32 or bf16 tensor, ", "found ", dtype_name(x.dtype), " with ", x.ld,
      " elements from row to row of ", x.cols);
  std::vector<float> host(size_t(x.size()));
  std::vector<bf16> raw(x.dtype == Dtype::bf16 ? host.size() : 0);
  stream.copy(
      raw.empty() ? static_cast<void*>(host.data()) : raw.data(), x.data, size_t(x.bytes()));
  stream.synchronize();
  std::copy(raw.begin(), raw.end(), host.begin());
  return host;
}

}  // namespace duet
