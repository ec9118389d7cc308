// See gemm_cuda.h.
#include "model/machine/gemm_cuda.h"

#include "model/machine/cuda_check.h"

namespace duet {
namespace {

// what NVIDIA recommends for Hopper; more than it does for older GPUs
constexpr int64_t kWorkspaceBytes = 32 << 20;

cudaDataType_t cuda_type(Dtype t) {
  return t == Dtype::f64 ? CUDA_R_64F : t == Dtype::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

// The address of a matrix that starts so many elements further.
char* at(const Tensor& t, int64_t elements) {
  return static_cast<char*>(t.data) + elements * dtype_size(t.dtype);
}

// y += x, on the grid.
template <class T>
__global__ void __launch_bounds__(256) grid_sum(int64_t n, const T* x, double* y) {
  const int64_t begin = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  for (int64_t i = begin; i < n; i += gridDim.x * int64_t(blockDim.x))
    y[i] += on_grid(double(x[i]));
}

template <class T> void add_on_grid(cudaStream_t stream, const Tensor& x, const Tensor& y) {
  const int64_t blocks = (x.size() + 255) / 256;
  const cudaLaunchConfig_t config{.gridDim = dim3(unsigned(blocks < 65536 ? blocks : 65536)),
      .blockDim = dim3(256),
      .stream = stream};
  CUDA_CHECK(cudaLaunchKernelEx(&config, grid_sum<T>, x.size(), x.row<T>(0), y.row<double>(0)));
}

}  // namespace

CudaGemm::CudaGemm(Device& device, cudaStream_t stream)
    : device_(device), stream_(stream),
      workspace_(device.buffer(1, kWorkspaceBytes / 4, Dtype::f32, Use::scratch)) {
  CUDA_CHECK(cublasCreate(&handle_));
  try {
    CUDA_CHECK(cublasSetStream(handle_, stream));  // before the workspace, which it would reset
    CUDA_CHECK(cublasSetWorkspace(handle_, workspace_->data, size_t(kWorkspaceBytes)));
    CUDA_CHECK(cublasSetAtomicsMode(handle_, CUBLAS_ATOMICS_NOT_ALLOWED));
    CUDA_CHECK(cublasSetPointerMode(handle_, CUBLAS_POINTER_MODE_HOST));
    CUDA_CHECK(cublasSetMathMode(handle_,
        cublasMath_t(
            int(CUBLAS_DEFAULT_MATH) | int(CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION))));
  } catch (...) {
    cublasDestroy(handle_);
    throw;
  }
}

// cublasDestroy waits for the GPU, so that the workspace goes back to the pool unused.
CudaGemm::~CudaGemm() { cublasDestroy(handle_); }

void CudaGemm::gemm(const Gemm& g) {
  check_gemm(g, {});
  product(g);
}

void CudaGemm::product(const Gemm& g) {
  const Dtype in = g.a.dtype, out = g.c.dtype;
  const bool exact = !g.pieces.empty();
  DUET_CHECK(in != Dtype::i32 && (exact || out == in || (in == Dtype::bf16 && out == Dtype::f32)),
      "GEMM on CUDA: expected C of the inputs' floating type, or fp32 from bf16; found inputs in ",
      dtype_name(in), " and C in ", dtype_name(out));
  if (g.c.rows == 0 || g.c.cols == 0 || g.batch == 0) return;
  const int64_t depth = g.form == Form::TN ? g.a.rows : g.a.cols;
  if (depth > 0) return exact ? exact_sum(g) : multiply(g);
  if (!g.accumulate) zero(g);  // an empty sum
}

void CudaGemm::exact_sum(const Gemm& g) {
  DUET_CHECK(g.c.ld == g.c.cols, "an exact sum on CUDA: expected C's rows one behind the other");
  const Buf sum = device_.buffer(g.c.rows, g.c.cols, acc_dtype(g.a.dtype), Use::scratch);
  Gemm alone = g;
  alone.c = sum;
  alone.accumulate = false;
  multiply(alone);
  (sum->dtype == Dtype::f64 ? add_on_grid<double> : add_on_grid<float>)(stream_, sum, g.c);
}

void CudaGemm::grouped_gemm(const Gemm& g, std::span<const int64_t> offsets) {
  check_gemm(g, offsets);
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    const int64_t row = offsets[e], rows = offsets[e + 1] - row, i = int64_t(e);
    Gemm one = g;
    one.a = g.a.row_slice(row, rows);
    if (g.form == Form::TN) {
      one.b = g.b.row_slice(row, rows);
      one.c.data = at(g.c, i * g.stride_c);
    } else {
      one.b.data = at(g.b, i * g.stride_b);
      one.c = g.c.row_slice(row, rows);
    }
    product(one);
  }
}

// cuBLAS reads matrices by columns. A row-major matrix read so is its own transpose, hence C^T =
// op(B)^T op(A)^T is asked for: the operands change places, and a form's transposition stays with
// its operand.
void CudaGemm::multiply(const Gemm& g) {
  const cublasOperation_t op_b = g.form == Form::NT ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t op_a = g.form == Form::TN ? CUBLAS_OP_T : CUBLAS_OP_N;
  const int64_t m = g.c.rows, n = g.c.cols, k = g.form == Form::TN ? g.a.rows : g.a.cols;
  const cudaDataType_t in = cuda_type(g.a.dtype), out = cuda_type(g.c.dtype);

  const bool f64 = g.a.dtype == Dtype::f64;
  const cublasComputeType_t compute = f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
  const double alpha64 = g.alpha, beta64 = g.accumulate ? 1 : 0;
  const float alpha32 = float(alpha64), beta32 = float(beta64);
  const void* alpha = f64 ? static_cast<const void*>(&alpha64) : &alpha32;
  const void* beta = f64 ? static_cast<const void*>(&beta64) : &beta32;

  if (g.batch == 1)
    CUDA_CHECK(cublasGemmEx_64(handle_, op_b, op_a, n, m, k, alpha, g.b.data, in, g.b.ld, g.a.data,
        in, g.a.ld, beta, g.c.data, out, g.c.ld, compute, CUBLAS_GEMM_DEFAULT));
  else
    CUDA_CHECK(cublasGemmStridedBatchedEx_64(handle_, op_b, op_a, n, m, k, alpha, g.b.data, in,
        g.b.ld, g.stride_b, g.a.data, in, g.a.ld, g.stride_a, beta, g.c.data, out, g.c.ld,
        g.stride_c, g.batch, compute, CUBLAS_GEMM_DEFAULT));
}

void CudaGemm::zero(const Gemm& g) {
  const size_t size = size_t(dtype_size(g.c.dtype)), width = size_t(g.c.cols) * size;
  for (int64_t i = 0; i < g.batch; ++i)
    CUDA_CHECK(cudaMemset2DAsync(
        at(g.c, i * g.stride_c), size_t(g.c.ld) * size, 0, width, size_t(g.c.rows), stream_));
}

}  // namespace duet
