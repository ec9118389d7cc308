// GEMM on CUDA: cuBLAS behind duet's row-major Gemm.
//
// Exactness. One handle with one workspace for each stream, no atomics, TF32 off in fp32, and sums
// in fp32 also where bf16 comes out: the same shapes on the same GPU then give the same bits, run
// after run, as NVIDIA's documentation of cuBLAS states under "Results reproducibility". It does
// not promise that a row's bits are independent of the number of rows.
//
// fp32, fp64, and bf16 with C in bf16 or fp32. Not here: shapes and forms (Gemm in device.h).
// Read next: rows/norm.h.
#pragma once
#include <cublas_v2.h>

#include "model/machine/device.h"

namespace duet {

// The products of one stream. Its owner keeps the stream alive, and destroys this before the
// stream.
class CudaGemm {
 public:
  CudaGemm(Device& device, cudaStream_t stream);
  CudaGemm(const CudaGemm&) = delete;
  ~CudaGemm();

  void gemm(const Gemm& g);  // `causal` is not made use of

  // One product after another: every dtype works, an empty group costs nothing, and each group has
  // the bits it has alone.
  void grouped_gemm(const Gemm& g, std::span<const int64_t> offsets);

 private:
  void multiply(const Gemm& g);
  void zero(const Gemm& g);

  cudaStream_t stream_;
  Buf workspace_;
  cublasHandle_t handle_ = nullptr;
};

}  // namespace duet
