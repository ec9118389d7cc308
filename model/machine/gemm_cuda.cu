// See gemm_cuda.h.
#include "model/machine/gemm_cuda.h"

#include <algorithm>

#include "model/machine/cuda_check.h"
#include "model/machine/gemm_kernel.h"

namespace duet {
namespace {

// what NVIDIA recommends for Hopper; more than it does for older GPUs
constexpr int64_t kWorkspaceBytes = 32 << 20;

// y += x, on the grid: in each matrix of a batch, a row of blocks for each row.
__global__ void __launch_bounds__(256)
    grid_sum(int64_t cols, const float* x, int64_t ld_x, double* y, int64_t stride_y) {
  x += (int64_t(blockIdx.z) * gridDim.y + blockIdx.y) * ld_x;
  y += int64_t(blockIdx.z) * stride_y + int64_t(blockIdx.y) * cols;
  const int64_t begin = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  for (int64_t i = begin; i < cols; i += gridDim.x * int64_t(blockDim.x))
    y[i] += on_grid(double(x[i]));
}

// Of bf16, what is not in groups; a group alone is a plain product.
bool by_cublas(const Gemm& g) { return g.a.dtype == Dtype::bf16 && g.groups.size() == 2; }

}  // namespace

CudaGemm::CudaGemm(Device& device, cudaStream_t stream)
    : device_(device), stream_(stream),
      workspace_(device.buffer(1, kWorkspaceBytes / 4, Dtype::f32, Use::scratch)) {
  cublasHandle_t handle = nullptr;
  CUDA_CHECK(cublasCreate(&handle));
  handle_.reset(handle);
  CUDA_CHECK(cublasSetStream(handle, stream));  // before the workspace, which it would reset
  CUDA_CHECK(cublasSetWorkspace(handle, workspace_->data, size_t(kWorkspaceBytes)));
  CUDA_CHECK(cublasSetAtomicsMode(handle, CUBLAS_ATOMICS_NOT_ALLOWED));
  CUDA_CHECK(cublasSetPointerMode(handle, CUBLAS_POINTER_MODE_HOST));
  CUDA_CHECK(cublasSetMathMode(handle,
      cublasMath_t(
          int(CUBLAS_DEFAULT_MATH) | int(CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION))));
}

void CudaGemm::multiply(const Gemm& g) {
  const Dtype in = g.a.dtype, out = g.c.dtype;
  const bool exact = !g.pieces.empty();
  DUET_CHECK(in != Dtype::i32 && (exact || out == in || (in == Dtype::bf16 && out == Dtype::f32)),
      "GEMM on CUDA: expected C of the inputs' floating type, or fp32 from bf16; found inputs in ",
      dtype_name(in), " and C in ", dtype_name(out));
  if (!by_cublas(g)) return gemm_kernel(stream_, g);
  Gemm one = g;
  for (Tensor* x : {&one.a, g.form == Form::TN ? &one.b : &one.c})
    *x = x->row_slice(g.groups[0], g.groups[1] - g.groups[0]);
  if (one.c.rows == 0 || one.c.cols == 0 || one.batch == 0) return;
  const int64_t depth = g.form == Form::TN ? one.a.rows : one.a.cols;
  if (depth > 0) return exact ? exact_sum(one) : product(one);
  if (!g.accumulate) zero(one);  // an empty sum
}

int64_t CudaGemm::sum_bytes(const Gemm& g) {
  if (g.pieces.empty()) return 0;
  int64_t matrices = 0;
  for (size_t e = 1; e < g.groups.size(); ++e) matrices += g.groups[e] > g.groups[e - 1];
  const int64_t of_row = 16 * g.c.cols + (by_cublas(g) ? 4 * g.b.cols + 4 * g.c.cols : 0);
  return g.batch * matrices * g.c.rows * of_row;
}

void CudaGemm::exact_sum(const Gemm& g) {
  DUET_CHECK(g.c.ld == g.c.cols && g.c.rows <= 65535 && g.batch <= 65535,
      "an exact sum on CUDA: expected C's rows, at most 65535, one behind the other");
  const Buf sum = device_.buffer(g.batch * g.c.rows, g.b.cols, Dtype::f32, Use::scratch);
  Gemm alone = g;
  alone.c = sum->row_slice(0, g.c.rows);
  alone.stride_c = alone.c.size();
  alone.accumulate = false;
  product(alone);
  const unsigned blocks = unsigned(std::min<int64_t>((g.c.cols + 1023) / 1024, 65536));
  const cudaLaunchConfig_t config{.gridDim = dim3(blocks, unsigned(g.c.rows), unsigned(g.batch)),
      .blockDim = dim3(256),
      .stream = stream_};
  CUDA_CHECK(cudaLaunchKernelEx(
      &config, grid_sum, g.c.cols, sum->row<float>(0), sum->ld, g.c.row<double>(0), g.stride_c));
}

// cuBLAS reads matrices by columns. A row-major matrix read so is its own transpose, hence C^T =
// op(B)^T op(A)^T is asked for: the operands change places, and a form's transposition stays with
// its operand.
void CudaGemm::product(const Gemm& g) {
  const cublasOperation_t op_b = g.form == Form::NT ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t op_a = g.form == Form::TN ? CUBLAS_OP_T : CUBLAS_OP_N;
  const int64_t m = g.c.rows, n = g.c.cols, k = g.form == Form::TN ? g.a.rows : g.a.cols;
  const cudaDataType_t in = CUDA_R_16BF, out = g.c.dtype == Dtype::f32 ? CUDA_R_32F : in;
  const float alpha = float(g.alpha), beta = g.accumulate ? 1 : 0;
  CUDA_CHECK(cublasGemmStridedBatchedEx_64(handle_.get(), op_b, op_a, n, m, k, &alpha, g.b.data, in,
      g.b.ld, g.stride_b, g.a.data, in, g.a.ld, g.stride_a, &beta, g.c.data, out, g.c.ld,
      g.stride_c, g.batch, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

void CudaGemm::zero(const Gemm& g) {
  const int64_t size = dtype_size(g.c.dtype);
  for (int64_t i = 0; i < g.batch; ++i)
    CUDA_CHECK(cudaMemset2DAsync(static_cast<char*>(g.c.data) + i * g.stride_c * size,
        size_t(g.c.ld * size), 0, size_t(g.c.cols * size), size_t(g.c.rows), stream_));
}

}  // namespace duet
