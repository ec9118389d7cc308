// GEMM on CUDA: duet's own kernel (gemm_kernel.h) in fp32 and fp64, and in bf16 for groups of rows;
// cuBLAS for the rest of bf16, behind duet's row-major Gemm.
//
// Exactness. In fp32 every product has the CPU's bits, so the ladder's first row holds with layouts
// as it does there. In bf16 the rows of routed experts, two or more on a rank, depend on no others.
// cuBLAS's may: it has one handle with one workspace for the stream, no atomics, and sums in fp32,
// and the same shapes on the same GPU then give the same bits, run after run, as NVIDIA's
// documentation states under "Results reproducibility"; for other shapes it promises nothing.
//
// An exact sum (grid.h) by cuBLAS, which adds no product to an fp64 sum: all pieces of a call are
// one product, summed in fp32 from zero and added to C on the grid by a kernel. The order of calls
// does not matter then; the shapes of a call do. The scratch in between is the pool's.
//
// fp32, fp64, and bf16 with C in bf16 or fp32; of exact sums C is in fp64. Not here: shapes and
// forms (Gemm in device.h).
// Read next: gemm_kernel.h.
#pragma once
#include <cublas_v2.h>

#include "model/machine/device.h"

namespace duet {

// The products of a device's compute stream, as Device::multiply is asked for them. Its owner keeps
// the stream alive, and destroys this before the stream.
class CudaGemm {
 public:
  CudaGemm(Device& device, cudaStream_t stream);

  void multiply(const Gemm& g);
  // Read and written in memory by adding an exact sum to C: by duet's kernel C alone, behind cuBLAS
  // also the product in between. 0 of what is no exact sum.
  static int64_t sum_bytes(const Gemm& g);

 private:
  void exact_sum(const Gemm& g);  // these three by cuBLAS: bf16, neither empty nor in groups
  void product(const Gemm& g);    // `causal` is not made use of
  void zero(const Gemm& g);

  Device& device_;
  cudaStream_t stream_;
  Buf workspace_;
  // Destroying it waits for the GPU, so that the workspace goes back to the pool unused.
  std::unique_ptr<cublasContext, decltype(&cublasDestroy)> handle_{nullptr, cublasDestroy};
};

}  // namespace duet
