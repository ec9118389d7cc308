// Lane groups: who works on a row. The row operations of duet are written once over these four
// verbs; a warp runs them on CUDA, a group of one on the CPU (where g++ vectorizes the loop over
// i), and 32 simulated lanes in the tests (test/sim_warp.h), so that the code of the GPU kernel
// runs where there is no GPU.
//
// Contract of a group: every lane of a row calls the same collectives in the same order. sum and
// max give every lane the same bits. sync makes what lanes wrote to memory before it visible to the
// row's other lanes after it.
// Read next: recorder.h.
#pragma once
#include "model/machine/tensor.h"

namespace duet {

template <class V> struct Best {  // a value and where it was found
  V value;
  int index;
};
// The larger value, and of equal ones the smaller index.
template <class V> HD Best<V> better(Best<V> a, Best<V> b) {
  return (b.value > a.value || (b.value == a.value && b.index < a.index)) ? b : a;
}

struct Serial {
  static constexpr int size = 1;
  HD int lane() const { return 0; }
  template <class V> HD V sum(V x) const { return x; }
  template <class V> HD V max(V x) const { return x; }
  template <class V> HD Best<V> best(Best<V> x) const { return x; }
  HD void sync() const {}
};

#if defined(__CUDACC__)
struct Warp {
  static constexpr int size = 32;
  __device__ __forceinline__ int lane() const { return threadIdx.x & 31; }
  template <class V> __device__ __forceinline__ V sum(V x) const {
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(~0u, x, d);
    return x;
  }
  template <class V> __device__ __forceinline__ V max(V x) const {
    for (int d = 16; d > 0; d >>= 1) {
      const V y = __shfl_xor_sync(~0u, x, d);
      x = x > y ? x : y;
    }
    return x;
  }
  template <class V> __device__ __forceinline__ Best<V> best(Best<V> x) const {
    for (int d = 16; d > 0; d >>= 1)
      x = better(x, Best<V>{__shfl_xor_sync(~0u, x.value, d), __shfl_xor_sync(~0u, x.index, d)});
    return x;
  }
  __device__ __forceinline__ void sync() const { __syncwarp(); }
};
#endif

}  // namespace duet
