// The ordered sum on the CPU. The loop over ranks is the outer one, so that the inner one runs over adjacent elements and is
// vectorized; each element still sees its ranks in order.
#include <algorithm>

#include "comm/sum.h"

namespace duet {
namespace {

template <class T>
void sum_rows(int64_t row_begin, int64_t row_end, const void* args) {
  const auto& a = *static_cast<const OrderedSum::Args*>(args);
  T* y = a.y.row<T>(0);
  for (int64_t row = row_begin; row < row_end; row++) {
    const int64_t begin = row * OrderedSum::block, end = std::min(begin + OrderedSum::block, a.x.cols);
    std::copy(a.x.row<T>(0) + begin, a.x.row<T>(0) + end, y + begin);
    for (int64_t r = 1; r < a.x.rows; r++) {
      const T* x = a.x.row<T>(r);
      for (int64_t i = begin; i < end; i++) y[i] += x[i];
    }
  }
}

}  // namespace

void launch_ordered_sum(Stream& stream, const OrderedSum::Args& args) {
  const Dtype t = args.x.dtype;
  DUET_CHECK(t != Dtype::bf16, "sums between ranks: expected fp32, fp64 or i32, found bf16");
  RowKernel kernel{"ordered_sum", t == Dtype::f32 ? sum_rows<float> : t == Dtype::f64 ? sum_rows<double> : sum_rows<int32_t>,
                   ordered_sum_cuda(t)};
  const int64_t rows = (args.x.cols + OrderedSum::block - 1) / OrderedSum::block;
  if (rows > 0) stream.launch(kernel, rows, &args, sizeof args, OrderedSum::block * args.x.rows);
}

}  // namespace duet
