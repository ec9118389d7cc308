// cuBLAS: each product in the plainest way, after a look at all that cuBLAS demands. Products of
// bf16 are summed in fp32 and rounded once. How a sum is cut depends on the numbers of rows and
// columns, as it may in cuBLAS: another number of rows gives other bits.
#include "test/emulated/cublas_v2.h"

#include <algorithm>

#include "test/emulated/machine.h"

using namespace emulated;

struct cublasContext {
  int device;
  cudaStream_t stream = nullptr;
  char* workspace = nullptr;
  size_t workspace_bytes = 0;
  bool reduced_precision = true, atomics = true;
};

namespace {

struct Matrix {
  char* data;
  cudaDataType_t type;
  int64_t ld, stride;
};
struct Product {
  bool transpose_a, transpose_b;
  int64_t m, n, k, batch;
  Matrix a, b, c;
  double alpha, beta;
  char* workspace;
};

int64_t size_of(cudaDataType_t t) { return t == CUDA_R_64F ? 8 : t == CUDA_R_32F ? 4 : 2; }

// Element i of a matrix.
template <class Acc> Acc load(const char* p, cudaDataType_t type, int64_t i) {
  if (type == CUDA_R_64F) return Acc(reinterpret_cast<const double*>(p)[i]);
  if (type == CUDA_R_32F) return Acc(reinterpret_cast<const float*>(p)[i]);
  const uint32_t bits = uint32_t(reinterpret_cast<const uint16_t*>(p)[i]) << 16;
  float x;
  memcpy(&x, &bits, 4);
  return Acc(x);
}

template <class Acc> void store(char* p, cudaDataType_t type, int64_t i, Acc x) {
  if (type == CUDA_R_64F) {
    reinterpret_cast<double*>(p)[i] = double(x);
  } else if (type == CUDA_R_32F) {
    reinterpret_cast<float*>(p)[i] = float(x);
  } else {
    const float f = float(x);
    uint32_t u;
    memcpy(&u, &f, 4);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    reinterpret_cast<uint16_t*>(p)[i] =
        nan ? uint16_t(u >> 16 | 0x40u) : uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
  }
}

template <class Acc> void multiply(const Product& p, int64_t matrix) {
  const char* a = p.a.data + matrix * p.a.stride * size_of(p.a.type);
  const char* b = p.b.data + matrix * p.b.stride * size_of(p.b.type);
  char* c = p.c.data + matrix * p.c.stride * size_of(p.c.type);
  std::vector<Acc> columns(size_t(p.m * p.k)), sum(size_t(p.m)), part(size_t(p.m));
  for (int64_t l = 0; l < p.k; l++)
    for (int64_t i = 0; i < p.m; i++)
      columns[size_t(l * p.m + i)] =
          load<Acc>(a, p.a.type, p.transpose_a ? i * p.a.ld + l : l * p.a.ld + i);
  const int64_t parts = 1 + (p.m * 7 + p.n) % 4;
  for (int64_t j = 0; j < p.n; j++) {
    std::fill(sum.begin(), sum.end(), Acc(0));
    for (int64_t s = 0; s < parts; s++) {
      std::fill(part.begin(), part.end(), Acc(0));
      for (int64_t l = s; l < p.k; l += parts) {
        const Acc y = load<Acc>(b, p.b.type, p.transpose_b ? l * p.b.ld + j : j * p.b.ld + l);
        const Acc* x = &columns[size_t(l * p.m)];
        for (int64_t i = 0; i < p.m; i++) part[size_t(i)] += x[i] * y;
      }
      for (int64_t i = 0; i < p.m; i++) sum[size_t(i)] += part[size_t(i)];
    }
    for (int64_t i = 0; i < p.m; i++) {
      const int64_t at = j * p.c.ld + i;
      Acc x = Acc(p.alpha) * sum[size_t(i)];
      if (p.beta != 0) x += Acc(p.beta) * load<Acc>(c, p.c.type, at);
      store(c, p.c.type, at, x);
    }
  }
}

void compute(const Product& p) {
  for (int64_t i = 0; i < p.batch; i++)
    p.a.type == CUDA_R_64F ? multiply<double>(p, i) : multiply<float>(p, i);
  memset(p.workspace, kPoison, 256);  // which is cuBLAS's own
}

// "" or what cuBLAS would not accept, or not do well.
std::string check(Machine& m, const cublasContext& h, const Product& p, cublasComputeType_t type) {
  const cudaDataType_t in = p.a.type, out = p.c.type;
  const bool f64 = in == CUDA_R_64F;
  if (in != p.b.type || (out != in && !(in == CUDA_R_16BF && out == CUDA_R_32F)) ||
      type != (f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F))
    return "these types do not go together";
  if (p.m < 0 || p.n < 0 || p.k < 0 || p.batch < 0) return "a negative size";
  const Allocation* own = m.find(h.workspace, h.workspace_bytes);
  if (!own || own->device != h.device) return "no workspace of one's own";
  if (h.reduced_precision || h.atomics) return "sums may be rounded to bf16, or differ run by run";
  const auto inside = [&](const Matrix& x, int64_t rows, int64_t columns) {
    if (x.ld < std::max<int64_t>(rows, 1)) return false;
    const int64_t last = (p.batch - 1) * x.stride + (columns - 1) * x.ld + rows;
    const Allocation* found = m.find(x.data, size_t(last * size_of(x.type)));
    return rows * columns * p.batch == 0 || (found && found->device == h.device);
  };
  if (!inside(p.a, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k))
    return "A: leading dimension too small, or not within its GPU's memory";
  if (!inside(p.b, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n))
    return "B: leading dimension too small, or not within its GPU's memory";
  if (!inside(p.c, p.m, p.n))
    return "C: leading dimension too small, or not within its GPU's memory";
  return "";
}

bool aligned(const Matrix& x) {
  return (reinterpret_cast<uintptr_t>(x.data) | uintptr_t(x.ld * size_of(x.type)) |
             uintptr_t(x.stride * size_of(x.type))) %
      16 ==
      0;
}

}  // namespace

const char* cublasGetStatusName(cublasStatus_t s) {
  return s == CUBLAS_STATUS_INVALID_VALUE ? "CUBLAS_STATUS_INVALID_VALUE" : "another status";
}
const char* cublasGetStatusString(cublasStatus_t s) { return cublasGetStatusName(s); }

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  Call().machine.whole_gpu("cublasCreate", current_device);
  *handle = new cublasContext{current_device};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  cudaDeviceSynchronize();
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t h, cudaStream_t stream) {
  h->stream = stream;
  h->workspace = nullptr;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace(cublasHandle_t h, void* p, size_t bytes) {
  Call c;
  const bool fits = bytes >= 256 && reinterpret_cast<uintptr_t>(p) % 256 == 0;
  if (!fits || !c.machine.find(p, bytes)) return CUBLAS_STATUS_INVALID_VALUE;
  h->workspace = static_cast<char*>(p);
  h->workspace_bytes = bytes;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetAtomicsMode(cublasHandle_t h, cublasAtomicsMode_t) {
  h->atomics = false;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetPointerMode(cublasHandle_t, cublasPointerMode_t) {
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t h, cublasMath_t mode) {
  h->reduced_precision = !(mode & CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmStridedBatchedEx_64(cublasHandle_t h, cublasOperation_t op_a,
    cublasOperation_t op_b, int64_t m, int64_t n, int64_t k, const void* alpha, const void* a,
    cudaDataType_t type_a, int64_t lda, int64_t stride_a, const void* b, cudaDataType_t type_b,
    int64_t ldb, int64_t stride_b, const void* beta, void* c, cudaDataType_t type_c, int64_t ldc,
    int64_t stride_c, int64_t batch, cublasComputeType_t type, cublasGemmAlgo_t) {
  const auto scalar = [&](const void* p) {
    return type == CUBLAS_COMPUTE_64F ? *static_cast<const double*>(p)
                                      : double(*static_cast<const float*>(p));
  };
  const auto matrix = [](const void* p, cudaDataType_t t, int64_t ld, int64_t stride) {
    return Matrix{static_cast<char*>(const_cast<void*>(p)), t, ld, stride};
  };
  const Product p{op_a == CUBLAS_OP_T, op_b == CUBLAS_OP_T, m, n, k, batch,
      matrix(a, type_a, lda, stride_a), matrix(b, type_b, ldb, stride_b),
      matrix(c, type_c, ldc, stride_c), scalar(alpha), scalar(beta), h->workspace};
  Call call;
  if (const std::string why = check(call.machine, *h, p, type); !why.empty()) {
    call.machine.complain(text("cuBLAS, a product of ", m, " x ", n, " x ", k, ": ", why));
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  Counts& counts = call.machine.counts;
  counts.launches++;
  counts.gemms++;
  counts.unaligned_gemms += !aligned(p.a) || !aligned(p.b) || !aligned(p.c);
  call.machine.enqueue(call.lock, call.machine.find(h->stream), {[p] { compute(p); }});
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmEx_64(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b,
    int64_t m, int64_t n, int64_t k, const void* alpha, const void* a, cudaDataType_t type_a,
    int64_t lda, const void* b, cudaDataType_t type_b, int64_t ldb, const void* beta, void* c,
    cudaDataType_t type_c, int64_t ldc, cublasComputeType_t type, cublasGemmAlgo_t algo) {
  return cublasGemmStridedBatchedEx_64(h, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b,
      ldb, 0, beta, c, type_c, ldc, 0, 1, type, algo);
}
