// What fused_attention.cu is made of: a head's rows in memory (Strip) and in a block's own memory
// (Panel), and products of them (Product), of which a warp makes 16 rows.
// Read next: ends.h.
#pragma once
#include "model/machine/gemm_fragments.cuh"
#include "model/rows/attention.h"

namespace duet {

// One head of one sequence, the block's: `rows` of a tensor, and of each row `cols` columns.
template <class T> struct Strip {
  T* first;
  int64_t ld, rows;
  int cols;
  bool aligned;  // to 16 bytes

  __device__ Strip(const Tensor& x, const HeadShape& s, int per_head, int col, int cols)
      : first(x.row<T>(blockIdx.z * s.seq_len) + int(blockIdx.y) * per_head + col), ld(x.ld),
        rows(s.seq_len), cols(cols) {
    aligned = (reinterpret_cast<uintptr_t>(first) | ld * sizeof(T)) % 16 == 0;
  }
};
template <class T> __device__ Strip<T> queries_of(const Tensor& x, const HeadShape& s) {
  return {x, s, s.nope + s.rope, 0, s.nope + s.rope};
}
template <class T> __device__ Strip<T> values_of(const Tensor& x, const HeadShape& s) {
  return {x, s, s.nope + s.v, s.nope, s.v};
}
template <class T> __device__ Strip<T> mix_of(const Tensor& x, const HeadShape& s) {
  return {x, s, s.v, 0, s.v};
}
// Of a query: its lse and its delta.
template <class A> __device__ A* stats_of(const Tensor& x, const HeadShape& s, int64_t row) {
  return x.row<A>(blockIdx.z * s.seq_len + row) + 2 * blockIdx.y;
}

// An operand of Fragments in shared memory: element (i, k) of it.
template <class T, int ld, bool by_k> struct View {
  static constexpr bool kByK = by_k;
  static constexpr int kLd = ld;
  const T* values;
  __device__ const T& at(int i, int k) const { return values[by_k ? k * kLd + i : i * kLd + k]; }
  __device__ View from(int k) const { return {&at(0, k)}; }
};

// Some rows of a strip; behind its last row and column are zeros.
template <class T, int kRows, int kCols> struct Panel {
  static constexpr int kVector = 16 / sizeof(T), kVectors = kCols / kVector;
  static constexpr int kLd = kCols + kVector;  // odd in vectors: neighbours lie in other banks
  using Rows = View<T, kLd, false>;            // i a row, k a column
  using Turned = View<T, kLd, true>;           // i a column, k a row
  alignas(16) T values[kRows * kLd];

  __device__ Rows rows() const { return {values}; }
  __device__ Turned turned() const { return {values}; }

  template <int kThreads> __device__ void load(const Strip<T>& from, int64_t row) {
    constexpr int kOfRow = kThreads / kRows;  // threads that copy a row
    static_assert(kThreads % kRows == 0 && kVectors % kOfRow == 0);
    const int r = int(threadIdx.x) / kOfRow, c = int(threadIdx.x) % kOfRow * kVector;
    const int there = row + r < from.rows ? from.cols - c : 0;
    copy_vectors<kVectors / kOfRow>(&values[r * kLd + c], kOfRow * kVector,
        from.first + (row + r) * from.ld + c, kOfRow * kVector, from.aligned,
        [&](int n) { return there - n * kOfRow * kVector; });
  }
};

// kFragment rows of a product, kWide fragments across.
template <class T, class X, class Y, int kWide> struct Product : Fragments<T, X, Y, 1, kWide> {
  using Base = Fragments<T, X, Y, 1, kWide>;
  static constexpr int kFragmentsAcross = kWide;
  // += x y: row i0 on of x, over `depth` indices k
  __device__ void add(const X& x, int i0, const Y& y, int depth) {
    if constexpr (Base::kTensorCores) {
      for (int k = 0; k < depth; k += kFragment) add_operand(Base::read_a(x, i0, k), y, k);
    } else {
      for (int k = 0; k < depth; k += kSlice<T>) {
        const int left = depth - k;
        Base::add(x.from(k), i0, y.from(k), 0, left < kSlice<T> ? left : kSlice<T>);
      }
    }
  }
  // += x y, where x is a product. A lane of the tensor cores holds of an operand what it holds of a
  // product; else x goes through `memory`, the warp's own.
  template <class P, class Memory> __device__ void add_product(P& x, Memory& memory, const Y& y) {
    if constexpr (Base::kTensorCores) {
      UNROLL for (int k = 0; k < P::kFragmentsAcross; ++k) {
        const float* p = x.p[0][k];
        const Operand a = {
            {pair_of(p[0], p[1]), pair_of(p[4], p[5]), pair_of(p[2], p[3]), pair_of(p[6], p[7])}};
        add_operand(a, y, k * kFragment);
      }
    } else if constexpr (!std::is_same_v<T, bf16>) {  // which older GPUs have not
      __syncwarp();
      x.each([&](int n, int i, T value) {
        memory.values[x.row(i) * memory.kLd + n * kFragment + x.col(i)] = value;
      });
      __syncwarp();
      add(memory.rows(), 0, y, P::kFragmentsAcross * kFragment);
    }
  }
  __device__ void add_operand(const Operand& x, const Y& y, int k) {
    UNROLL for (int n = 0; n < kWide; ++n) Base::add(0, n, x, Base::read_b(y, n * kFragment, k));
  }
  // This lane's elements: fragment n, the i-th of it.
  template <class Visit> __device__ void each(Visit visit) {
    each_element<1, kWide>([&](int, int n, int i) { visit(n, i, this->p[0][n][i]); });
  }
  // The rows from `row` on.
  template <class Value> __device__ void store(const Strip<T>& to, int64_t row, Value value) {
    each([&](int n, int i, auto sum) {
      const int64_t r = row + this->row(i);
      const int c = n * kFragment + this->col(i);
      if (r < to.rows && c < to.cols) to.first[r * to.ld + c] = T(value(sum, i));
    });
  }
};

// What Product::add_product needs of a block's memory for a warp.
template <class T, int kCols> struct Passage : Panel<T, kFragment, kCols> {};
template <int kCols> struct Passage<bf16, kCols> {};

}  // namespace duet
