// What fused_attention.cu is made of: a head's rows in memory (Strip) and in a block's own memory
// (Panel), and products of them (Product), of which a warp makes 16 rows.
// Read next: ends.h.
#pragma once
#include "model/machine/gemm_fragments.cuh"
#include "model/rows/attention.h"

namespace duet {

HD int fragments(int64_t n) { return int((n + kFragment - 1) / kFragment); }

// One head of one sequence, the block's: `rows` of a tensor, and of each row `cols` columns.
template <class T> struct Strip {
  T* first;
  int64_t ld, rows;
  int cols;
  bool aligned;  // to 16 bytes

  __device__ Strip(const Tensor& x, const HeadShape& s, int per_head, int col, int cols)
      : first(x.row<T>(blockIdx.z * s.seq_len) + int(blockIdx.y) * per_head + col), ld(x.ld),
        rows(s.seq_len), cols(cols) {
    aligned = (reinterpret_cast<uintptr_t>(first) | ld * sizeof(T) | cols * sizeof(T)) % 16 == 0;
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

// Some rows of a strip. Behind its last row, and behind the last column as far as fragments go, are
// zeros.
template <class T, int kRows, int kCols> struct Panel {
  static constexpr int kVector = 16 / sizeof(T), kVectors = kCols / kVector;
  static constexpr int kLd = kCols + kVector;  // odd in vectors: neighbours lie in other banks
  struct __attribute__((aligned(16), may_alias)) Vector {
    T values[kVector];
  };
  using Rows = View<T, kLd, false>;   // i a row, k a column
  using Turned = View<T, kLd, true>;  // i a column, k a row
  alignas(32) T values[kRows * kLd];

  __device__ Rows rows() const { return {values}; }
  __device__ Turned turned() const { return {values}; }

  template <int kThreads> __device__ void load(const Strip<T>& from, int64_t row) {
    static_assert(kRows * kVectors % kThreads == 0);
    UNROLL for (int n = 0; n < kRows * kVectors / kThreads; ++n) {
      const int v = int(threadIdx.x) + n * kThreads, r = v / kVectors, c = v % kVectors * kVector;
      if (c >= fragments(from.cols) * kFragment) continue;
      Vector x = {};
      const T* p = from.first + (row + r) * from.ld + c;
      if (row + r < from.rows && c < from.cols) {
        if (from.aligned) {
          x = *reinterpret_cast<const Vector*>(p);
        } else {
          UNROLL for (int j = 0; j < kVector; ++j) {
            if (c + j < from.cols) x.values[j] = p[j];
          }
        }
      }
      *reinterpret_cast<Vector*>(&values[r * kLd + c]) = x;
    }
  }
};

// kFragment rows of a product, of at most kWide fragments across.
template <class T, class X, class Y, int kWide> struct Product : Fragments<T, X, Y, 1, kWide> {
  using Base = Fragments<T, X, Y, 1, kWide>;
  // += x y: row i0 on of x, column j0 on of y, over `depth` indices k
  __device__ void add(const X& x, int i0, const Y& y, int j0, int depth, int across) {
    if constexpr (requires { &Base::place; }) {  // tensor cores
      for (int k = 0; k < depth; k += kFragment) add_fragments(&x.at(i0, k), &y.at(j0, k), across);
    } else {
      for (int k = 0; k < depth; k += kSlice<T>) {
        const int left = depth - k;
        Base::add(x.from(k), i0, y.from(k), j0, left < kSlice<T> ? left : kSlice<T>, 1, across);
      }
    }
  }
  // One fragment of x stays, those of y come one by one: fewer registers than for Base::add.
  __device__ void add_fragments(const T* x, const T* y, int across) {
    using Value = __nv_bfloat16;
    typename Base::template Of<nvcuda::wmma::matrix_a, Value,
        typename Base::template Order<!X::kByK>>
        a;
    typename Base::template Of<nvcuda::wmma::matrix_b, Value,
        typename Base::template Order<Y::kByK>>
        b;
    nvcuda::wmma::load_matrix_sync(a, reinterpret_cast<const Value*>(x), X::kLd);
    UNROLL for (int n = 0; n < kWide; ++n) {
      if (n >= across) continue;
      nvcuda::wmma::load_matrix_sync(b, reinterpret_cast<const Value*>(y), Y::kLd);
      nvcuda::wmma::mma_sync(this->p[0][n], a, b, this->p[0][n]);
      y += kFragment * (Y::kByK ? 1 : Y::kLd);
    }
  }
  // This lane's elements: fragment n, the i-th of it.
  template <class Visit> __device__ void each(int across, Visit visit) {
    each_element<1, kWide>([&](int, int n, int i) {
      if (n < across) visit(n, i, this->value(0, n, i));
    });
  }
  // Which elements a lane holds is the same in all.
  template <class Other> __device__ void locate_as(const Other& other) {
    if constexpr (requires { &Base::place; }) {
      UNROLL for (int i = 0; i < kOfLane; ++i) this->place[i] = other.place[i];
    }
  }
  // The rows from `row` on.
  template <class Value> __device__ void store(const Strip<T>& to, int64_t row, Value value) {
    each(fragments(to.cols), [&](int n, int i, auto sum) {
      const int64_t r = row + this->row(i);
      const int c = n * kFragment + this->col(i);
      if (r < to.rows && c < to.cols) to.first[r * to.ld + c] = T(value(sum, i));
    });
  }
};

}  // namespace duet
