// Compiles a row operation for CUDA: a warp a row, eight warps a block, rows dealt in a grid-stride
// loop. Included by rows_cuda.cu files only.
// Read next: gemm_cuda.h.
#pragma once
#include <cuda_runtime.h>

#include "model/machine/group.h"
#include "model/machine/launch.h"

namespace duet {

template <class Op, class T>
__global__ void __launch_bounds__(256) warp_rows(int64_t rows, const typename Op::Args args) {
  const int64_t warp = (blockIdx.x * int64_t(blockDim.x) + threadIdx.x) / 32,
                warps = gridDim.x * int64_t(blockDim.x) / 32;
  for (int64_t r = warp; r < rows; r += warps) Op::template row<T>(Warp{}, r, args);
}

template <class Op, class T> void cuda_rows(void* stream, int64_t rows, const void* args) {
  const int64_t blocks = (rows + 7) / 8;
  const cudaLaunchConfig_t config{.gridDim = dim3(unsigned(blocks < 65536 ? blocks : 65536)),
      .blockDim = dim3(256),
      .stream = static_cast<cudaStream_t>(stream)};
  cudaLaunchKernelEx(&config, warp_rows<Op, T>, rows,
      *static_cast<const typename Op::Args*>(args));  // CudaStream::launch asks for errors
}

// An operation that says `acc_only` works in the accumulation type whatever the compute type is.
template <class Op> CudaRows bf16_rows() {
  if constexpr (requires { Op::acc_only; })
    return nullptr;
  else
    return cuda_rows<Op, bf16>;
}

}  // namespace duet

#define DUET_COMPILE_CUDA(Op)                          \
  template <> CudaRows row_kernel_cuda<Op>(Dtype t) {  \
    if (t == Dtype::f32) return cuda_rows<Op, float>;  \
    if (t == Dtype::f64) return cuda_rows<Op, double>; \
    return bf16_rows<Op>();                            \
  }
