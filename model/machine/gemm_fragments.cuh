// What a warp of gemm_kernel.cu multiplies: fragments, 16 x 16 elements of C each, of which a lane
// holds 8, and the slices of A and B that all warps of a block read from shared memory. Fragments
// of fp32 and fp64 are chains of fused multiply-adds; those of bf16 are the tensor cores'
// (nvcuda::wmma), where only the hardware knows which lane holds what: it is asked, by loading a
// fragment of numbered elements.
// Read next: rows/norm.h.
#pragma once
#include <cuda_bf16.h>
#include <mma.h>

#include <type_traits>

#include "model/machine/tensor.h"

#if defined(__NVCC__)
#define UNROLL _Pragma("unroll")  // so that all of a lane's elements are registers
// A block's memory, of as many bytes as its launch asked for.
__device__ inline char* dynamic_shared() {
  extern __shared__ __align__(128) char bytes[];
  return bytes;
}
#else
#define UNROLL
#endif

namespace duet {

inline constexpr int kGemmThreads = 256;
inline constexpr int kFragment = 16, kOfLane = kFragment * kFragment / 32;

// Indices k of a slice: 64 bytes of them.
template <class T> inline constexpr int kSlice = 64 / sizeof(T);

#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
HD float madd(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
HD double madd(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else  // as the CPU's kernel
HD float madd(float a, float b, float c) { return a * b + c; }
HD double madd(double a, double b, double c) { return a * b + c; }
#endif

// A slice of an operand in shared memory, as it lies in the operand: `by_k`, a row for each k; else
// a row for each of the operand's own `kExtent` indices. A block copies it by way of registers, so
// that the next one is on its way while this one is multiplied.
template <class T, int kExtent, bool by_k> struct Slice {
  static constexpr bool kByK = by_k;
  static constexpr int kOuter = by_k ? kSlice<T> : kExtent, kInner = by_k ? kExtent : kSlice<T>;
  static constexpr int kVector = 16 / sizeof(T), kVectors = kInner / kVector;
  static constexpr int kLd = kInner + kVector;  // odd in vectors: neighbours lie in other banks
  static constexpr int kMine = kOuter * kVectors / kGemmThreads;
  struct __attribute__((aligned(16), may_alias)) Vector {
    T values[kVector];
  };
  using Mine = Vector[kMine];

  alignas(32) T values[kOuter * kLd];

  // What this thread copies, zeros where the operand ends. aligned: its rows begin at 16 bytes.
  static __device__ void fetch(
      Mine& mine, const T* from, int64_t ld, int64_t outer, int64_t inner, bool aligned) {
    UNROLL for (int n = 0; n < kMine; ++n) {
      const int v = int(threadIdx.x) + n * kGemmThreads, o = v / kVectors,
                i = v % kVectors * kVector;
      const T* p = from + o * ld + i;
      if (aligned && o < outer && i + kVector <= inner) {
        mine[n] = *reinterpret_cast<const Vector*>(p);
      } else {
        UNROLL for (int j = 0; j < kVector; ++j) {
          mine[n].values[j] = o < outer && i + j < inner ? p[j] : T(0.0f);
        }
      }
    }
  }
  __device__ void put(const Mine& mine) {
    UNROLL for (int n = 0; n < kMine; ++n) {
      const int v = int(threadIdx.x) + n * kGemmThreads;
      T* to = &values[v / kVectors * kLd + v % kVectors * kVector];
      *reinterpret_cast<Vector*>(to) = mine[n];
    }
  }
  __device__ const T& at(int i, int k) const { return values[by_k ? k * kLd + i : i * kLd + k]; }
};

// What a warp sums: kDown x kAcross fragments, of which a lane visits its elements as (m, n, i).
template <int kDown, int kAcross, class Visit> __device__ void each_element(Visit visit) {
  UNROLL for (int m = 0; m < kDown; ++m) {
    UNROLL for (int n = 0; n < kAcross; ++n) {
      UNROLL for (int i = 0; i < kOfLane; ++i) visit(m, n, i);
    }
  }
}

// add: p += the products of `depth` indices k of the slices, from row i0 of A's and column j0 of
// B's on; fragments from `down` and `across` on are not wanted.
template <class T, class A, class B, int kDown, int kAcross> struct Fragments {
  using Sum = Acc<T>;
  Sum p[kDown][kAcross][kOfLane];

  __device__ void locate() {}
  __device__ int row(int i) const { return int(threadIdx.x) % 32 / 4 + i / 4 * 8; }
  // Of a slice that is by_k four columns are one load; else lanes' columns lie side by side, so
  // that they are in unlike banks.
  __device__ int col(int i) const {
    const int lane = int(threadIdx.x) % 4;
    return B::kByK ? lane * 4 + i % 4 : lane + i % 4 * 4;
  }
  __device__ Sum value(int m, int n, int i) const { return p[m][n][i]; }
  __device__ Sum& value(int m, int n, int i) { return p[m][n][i]; }
  __device__ void clear() {
    each_element<kDown, kAcross>([&](int m, int n, int i) { p[m][n][i] = 0; });
  }
  __device__ void add(const A& a, int i0, const B& b, int j0, int depth, int down, int across) {
    for (int k = 0; k < depth; ++k) {
      Sum x[kDown][2], y[kAcross][4];
      UNROLL for (int m = 0; m < kDown; ++m) {
        UNROLL for (int i = 0; i < 2; ++i) x[m][i] = a.at(i0 + m * kFragment + row(i * 4), k);
      }
      UNROLL for (int n = 0; n < kAcross; ++n) {
        UNROLL for (int i = 0; i < 4; ++i) y[n][i] = b.at(j0 + n * kFragment + col(i), k);
      }
      each_element<kDown, kAcross>([&](int m, int n, int i) {
        if (m < down && n < across) p[m][n][i] = madd(x[m][i / 4], y[n][i % 4], p[m][n][i]);
      });
    }
  }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // others have no tensor cores for bf16
template <class A, class B, int kDown, int kAcross> struct Fragments<bf16, A, B, kDown, kAcross> {
  template <class Use, class Value, class Layout>
  using Of = nvcuda::wmma::fragment<Use, kFragment, kFragment, kFragment, Value, Layout>;
  template <bool by_row>
  using Order = std::conditional_t<by_row, nvcuda::wmma::row_major, nvcuda::wmma::col_major>;
  using Sum = Of<nvcuda::wmma::accumulator, float, void>;
  Sum p[kDown][kAcross];
  int place[kOfLane];

  // To be called by all threads of a block, before row and col.
  __device__ void locate() {
    alignas(32) __shared__ float numbers[kFragment * kFragment];
    static_assert(Sum::num_elements == kOfLane);
    for (unsigned i = threadIdx.x; i < kFragment * kFragment; i += blockDim.x)
      numbers[i] = float(i);
    __syncthreads();
    Sum numbered;
    nvcuda::wmma::load_matrix_sync(numbered, numbers, kFragment, nvcuda::wmma::mem_row_major);
    UNROLL for (int i = 0; i < kOfLane; ++i) place[i] = int(numbered.x[i]);
  }
  __device__ int row(int i) const { return place[i] / kFragment; }
  __device__ int col(int i) const { return place[i] % kFragment; }
  __device__ float value(int m, int n, int i) const { return p[m][n].x[i]; }
  __device__ float& value(int m, int n, int i) { return p[m][n].x[i]; }
  __device__ void clear() {
    each_element<kDown, kAcross>([&](int m, int n, int i) { p[m][n].x[i] = 0; });
  }
  __device__ void add(const A& a, int i0, const B& b, int j0, int depth, int down, int across) {
    const auto half = [](const bf16& x) { return reinterpret_cast<const __nv_bfloat16*>(&x); };
    UNROLL for (int k = 0; k < kSlice<bf16>; k += kFragment) {
      if (k >= depth) continue;
      Of<nvcuda::wmma::matrix_b, __nv_bfloat16, Order<B::kByK>> y[kAcross];
      UNROLL for (int n = 0; n < kAcross; ++n) {
        if (n >= across) continue;
        nvcuda::wmma::load_matrix_sync(y[n], half(b.at(j0 + n * kFragment, k)), B::kLd);
      }
      UNROLL for (int m = 0; m < kDown; ++m) {
        if (m >= down) continue;
        Of<nvcuda::wmma::matrix_a, __nv_bfloat16, Order<!A::kByK>> x;
        nvcuda::wmma::load_matrix_sync(x, half(a.at(i0 + m * kFragment, k)), A::kLd);
        UNROLL for (int n = 0; n < kAcross; ++n) {
          if (n < across) nvcuda::wmma::mma_sync(p[m][n], x, y[n], p[m][n]);
        }
      }
    }
  }
};
#endif

}  // namespace duet
