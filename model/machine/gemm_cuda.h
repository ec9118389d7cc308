// GEMM on CUDA: cuBLAS behind duet's row-major Gemm.
//
// Exactness. One handle with one workspace for each stream, no atomics, TF32 off in fp32, and sums
// in fp32 also where bf16 comes out: the same shapes on the same GPU then give the same bits, run
// after run, as NVIDIA's documentation of cuBLAS states under "Results reproducibility". It does
// not promise that a row's bits are independent of the number of rows.
//
// An exact sum (grid.h). cuBLAS adds no fp32 product to an fp64 sum, and a product for each piece
// would be many small ones. So all pieces of a call are one product, or one for each group, which
// is summed in the accumulation type from zero and added to C on the grid by a kernel. The order of
// calls does not matter then; the shapes of a call do. The scratch in between is the pool's: on
// compute() only.
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
  void product(const Gemm& g);  // whose shapes have been checked
  void exact_sum(const Gemm& g);
  void multiply(const Gemm& g);
  void zero(const Gemm& g);

  Device& device_;
  cudaStream_t stream_;
  Buf workspace_;
  cublasHandle_t handle_ = nullptr;
};

}  // namespace duet
