// The ordered sum on a GPU: a thread for each element.
#include "comm/sum.h"

namespace duet {
namespace {

template <class T>
__global__ void sum_kernel(const OrderedSum::Args a) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= a.x.cols) return;
  T sum = a.x.row<T>(0)[i];
  for (int64_t r = 1; r < a.x.rows; r++) sum += a.x.row<T>(r)[i];
  a.y.row<T>(0)[i] = sum;
}

template <class T>
void sum_rows(void* cuda_stream, int64_t, const void* args) {
  const auto& a = *static_cast<const OrderedSum::Args*>(args);
  sum_kernel<T><<<unsigned((a.x.cols + 255) / 256), 256, 0, static_cast<cudaStream_t>(cuda_stream)>>>(a);
}

}  // namespace

void (*ordered_sum_cuda(Dtype dtype))(void*, int64_t, const void*) {
  return dtype == Dtype::f32 ? sum_rows<float> : dtype == Dtype::f64 ? sum_rows<double> : sum_rows<int32_t>;
}

}  // namespace duet
