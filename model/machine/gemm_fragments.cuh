// What a warp of gemm_kernel.cu multiplies: fragments, 16 x 16 elements of C each, of which a lane
// holds 8, and the slices of A and B that all warps of a block read from shared memory. Fragments
// of fp32 and fp64 are chains of fused multiply-adds; those of bf16 are the tensor cores'.
// Read next: rows/norm.h.
#pragma once
#include "model/machine/group.h"
#include "model/machine/ptx.cuh"

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

// Indices k that are multiplied together: 64 bytes of them.
template <class T> inline constexpr int kSlice = 64 / sizeof(T);

// `vectors` of 16 bytes to shared memory, `apart` elements from one to the next: of the n-th the
// first count(n) elements, then zeros. aligned: all begin at 16 bytes.
template <int vectors, class T, class Count>
__device__ void copy_vectors(
    T* to, int apart_to, const T* from, int64_t apart, bool aligned, Count count) {
  constexpr int kVector = 16 / sizeof(T);
  if (aligned) {
    UNROLL for (int n = 0; n < vectors; ++n) {
      const int most = count(n), there = most < 0 ? 0 : most < kVector ? most : kVector;
      copy_async(to + n * apart_to, from + n * apart, there * int(sizeof(T)));
    }
  } else {
    for (int n = 0; n < vectors; ++n)
      for (int j = 0; j < kVector; ++j)
        to[n * apart_to + j] = j < count(n) ? from[n * apart + j] : T(0.0f);
  }
}

// A slice of an operand in shared memory, `kDeep` indices k, as it lies in the operand: `by_k`, a
// row for each k; else a row for each of the operand's own `kExtent` indices.
template <class T, int kExtent, int kDeep, bool by_k> struct Slice {
  static constexpr bool kByK = by_k;
  static constexpr int kDepth = kDeep, kOuter = by_k ? kDeep : kExtent,
                       kInner = by_k ? kExtent : kDeep;
  static constexpr int kVector = 16 / sizeof(T), kVectors = kInner / kVector;
  static constexpr int kLd = kInner + kVector;  // odd in vectors: neighbours lie in other banks
  static constexpr int kRowsAtOnce = kGemmThreads / kVectors;
  static_assert(kGemmThreads % kVectors == 0 && kOuter % kRowsAtOnce == 0);

  alignas(16) T values[kOuter * kLd];

  // This thread's part of it; zeros where the operand ends.
  __device__ void fetch(const T* from, int64_t ld, int outer, int inner, bool aligned) {
    const int o = int(threadIdx.x) / kVectors, i = int(threadIdx.x) % kVectors * kVector;
    copy_vectors<kOuter / kRowsAtOnce>(&values[o * kLd + i], kRowsAtOnce * kLd, from + o * ld + i,
        kRowsAtOnce * ld, aligned,
        [&](int n) { return o + n * kRowsAtOnce < outer ? inner - i : 0; });
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

// Sums that a warp has begun. Of a fragment's elements a lane's first four are in row lane / 4, the
// others 8 below.
template <class Sum, int kDown, int kAcross> struct WarpSums {
  Sum p[kDown][kAcross][kOfLane];

  __device__ int row(int i) const { return int(threadIdx.x) % 32 / 4 + i / 4 * 8; }
  __device__ void clear() {
    each_element<kDown, kAcross>([&](int m, int n, int i) { p[m][n][i] = 0; });
  }
};

// add: p += the products of `depth` indices k of the slices, from row i0 of A's and column j0 of
// B's on; tensor cores take 16 at a time, of which those behind are zeros.
template <class T, class A, class B, int kDown, int kAcross>
struct Fragments : WarpSums<Acc<T>, kDown, kAcross> {
  static constexpr bool kTensorCores = false;
  using WarpSums<Acc<T>, kDown, kAcross>::p, WarpSums<Acc<T>, kDown, kAcross>::row;

  // Of a slice that is by_k four columns are one load; else lanes' columns lie side by side, so
  // that they are in unlike banks.
  __device__ int col(int i) const {
    const int lane = int(threadIdx.x) % 4;
    return B::kByK ? lane * 4 + i % 4 : lane + i % 4 * 4;
  }
  __device__ void add(const A& a, int i0, const B& b, int j0, int depth) {
    constexpr int kTogether = 16 / sizeof(T);  // are read before they are used
    const int rest = depth % kTogether, first = depth - rest;
    for (int k = 0; k < first; k += kTogether) add_some<kTogether>(a, i0, b, j0, k);
    for (int k = 0; k < rest; ++k) add_some<1>(a, i0, b, j0, first + k);
  }

 private:
  template <int kSome> __device__ void add_some(const A& a, int i0, const B& b, int j0, int k) {
    T x[kDown][2][kSome], y[kAcross][4][kSome];
    UNROLL for (int m = 0; m < kDown; ++m) {
      UNROLL for (int i = 0; i < 2; ++i) read(x[m][i], a, i0 + m * kFragment + row(i * 4), k);
    }
    UNROLL for (int n = 0; n < kAcross; ++n) {
      UNROLL for (int i = 0; i < 4; ++i) read(y[n][i], b, j0 + n * kFragment + col(i), k);
    }
    UNROLL for (int s = 0; s < kSome; ++s) {
      each_element<kDown, kAcross>([&](int m, int n, int i) {
        p[m][n][i] = madd(x[m][i / 4][s], y[n][i % 4][s], p[m][n][i]);
      });
    }
  }
  template <int kSome, class X>
  static __device__ void read(T (&to)[kSome], const X& x, int i, int k) {
    if constexpr (X::kByK || kSome == 1) {
      UNROLL for (int s = 0; s < kSome; ++s) to[s] = x.at(i, k + s);
    } else {
      const auto pack = read_pack<kSome>(&x.at(i, k));
      UNROLL for (int s = 0; s < kSome; ++s) to[s] = pack.values[s];
    }
  }
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // others have no tensor cores for bf16
template <class A, class B, int kDown, int kAcross>
struct Fragments<bf16, A, B, kDown, kAcross> : WarpSums<float, kDown, kAcross> {
  static constexpr bool kTensorCores = true;
  using WarpSums<float, kDown, kAcross>::p;

  __device__ int col(int i) const { return int(threadIdx.x) % 4 * 2 + i % 2 + i % 4 / 2 * 8; }
  // Of each operand a lane reads row lane % 8 of quarter lane / 8.
  static __device__ Operand read_a(const A& a, int i0, int k) {
    const int lane = int(threadIdx.x) % 32, r = lane % 8, down = lane / 8 % 2 * 8,
              right = lane / 16 * 8;
    return read_operand<A::kByK>(
        A::kByK ? &a.at(i0 + down, k + right + r) : &a.at(i0 + down + r, k + right));
  }
  static __device__ Operand read_b(const B& b, int j0, int k) {
    const int lane = int(threadIdx.x) % 32, r = lane % 8, down = lane / 16 * 8,
              right = lane / 8 % 2 * 8;
    return read_operand<B::kByK>(
        B::kByK ? &b.at(j0 + down, k + right + r) : &b.at(j0 + down + r, k + right));
  }
  __device__ void add(int m, int n, const Operand& x, const Operand& y) {
    float* c = p[m][n];
    multiply_add(c, x, y.pairs);
    multiply_add(c + 2, x, y.pairs + 2);
  }
  __device__ void add(const A& a, int i0, const B& b, int j0, int depth) {
    UNROLL for (int k = 0; k < A::kDepth; k += kFragment) {
      if (k >= depth) break;
      Operand x[kDown], y[kAcross];
      UNROLL for (int m = 0; m < kDown; ++m) x[m] = read_a(a, i0 + m * kFragment, k);
      UNROLL for (int n = 0; n < kAcross; ++n) y[n] = read_b(b, j0 + n * kFragment, k);
      UNROLL for (int m = 0; m < kDown; ++m) {
        UNROLL for (int n = 0; n < kAcross; ++n) add(m, n, x[m], y[n]);
      }
    }
  }
};
#endif

}  // namespace duet
