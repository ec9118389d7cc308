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
#include <algorithm>

#include "model/machine/tensor.h"

#if defined(__CUDA_ARCH__)
#define ROW_PRAGMA(text) _Pragma(#text)
#define ROW_UNROLL(times) ROW_PRAGMA(unroll times)
#else
#define ROW_UNROLL(times)
#endif

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

// What a lane reads or writes at once.
template <class T, int n> struct __attribute__((may_alias)) Pack {
  alignas(sizeof(T) * n < 16 ? sizeof(T) * n : 16) T values[n];
};
template <int n, class T> HD auto read_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, n>*>(from);
}
template <class T, int n> HD void write_pack(T* to, const Pack<T, n>& from) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof from % 16 == 0) {  // of a plain store nvcc makes short ones where it likes
    uint4 words[sizeof from / 16];
    memcpy(words, &from, sizeof from);
    for (const uint4& word : words) __stwb(reinterpret_cast<uint4*>(to) + (&word - words), word);
    return;
  }
#endif
  *reinterpret_cast<Pack<T, n>*>(to) = from;
}
template <class T, int n> HD void write_pack(const T*, const Pack<T, n>&) {}
template <int n, class... T> HD bool begin_packs(const T*... x) {
  return ((reinterpret_cast<uintptr_t>(x) % alignof(Pack<T, n>) == 0) && ...);
}
// visit(j, x[j], ...) for j of 0 .. n-1, where begin_packs(x...).
template <int n, class Visit, class... T> HD void visit_packs(Visit visit, T*... x) {
  const auto with = [&](auto... packs) {
    ROW_UNROLL(n)
    for (int j = 0; j < n; ++j) visit(j, packs.values[j]...);
    (write_pack(x, packs), ...);
  };
  with(read_pack<n>(x)...);
}

// visit(i, x[i], ...) for this lane's i of 0 .. count-1. Where all arrays begin at 16 bytes, a lane
// of several has neighbours, which it reads and writes at once: 16 bytes of the shortest type. So
// who has which i may differ between two calls: sync() if one reads what the other wrote.
template <class Group, class Visit, class... T>
HD void each(Group g, int count, Visit visit, T* __restrict... x) {
  int done = 0;
  if constexpr (Group::size > 1) {
    constexpr int n = 16 / std::min({sizeof(T)...});
    if (begin_packs<n>(x...)) {
      done = count / n * n;
      ROW_UNROLL(1)
      for (int i = g.lane() * n; i < done; i += Group::size * n)
        visit_packs<n>([&](int j, auto&... xi) { visit(i + j, xi...); }, (x + i)...);
    }
  }
  for (int i = done + g.lane(); i < count; i += Group::size) visit(i, x[i]...);
}

}  // namespace duet
