// The inner loops of the CPU's GEMM: a tile of C summed in registers, and the panels of B that
// tiles read.
//
// The order of summation is all here: `tile` sums one block of k in ascending order and adds it to
// C. Which tiles there are, gemm_cpu.cpp chooses; no choice there can change a bit.
// Read next: gemm_vec.h.
#pragma once
#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "model/machine/gemm_vec.h"
#include "model/machine/grid.h"

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace duet {

// Memory that a tile asks for while it computes: an address each step of k, `step` elements further
// each time, and `jump` more after every 16th. Rows of a matrix are often a page or more apart,
// where no hardware looks ahead.
template <class T> struct Ahead {
  const T* p;
  int64_t step = 0, jump = 0;

  static constexpr int64_t kLine = 64 / sizeof(T);  // elements of a cache line
  // one line of each row
  static Ahead down(const T* p, int64_t ld) { return {p, ld, 0}; }
  // 16 rows, line by line
  static Ahead across(const T* p, int64_t ld) { return {p, ld, kLine - 16 * ld}; }
};

template <class T> struct Tile {
  const T* a = nullptr;  // element (i, k): a[i * a_row + k * a_k]
  const T* b = nullptr;  // [depth, NV vectors], the last one masked
  T* c = nullptr;        // [R, NV vectors]
  int64_t a_row, a_k, b_k, ldc;
  int64_t depth = 0;
  T alpha;
  bool add;  // to C's elements, else to zeros
  typename Vec<T>::Mask last;
  Ahead<T> ahead = {nullptr};
  // of an exact sum, instead of c, depth, alpha and add: where the pieces of k begin and end
  double* exact = nullptr;  // [R, cols]
  int cols;
  std::span<const int64_t> pieces;
};

// The walk of R rows and NV vectors over k; sum() goes on where it stopped.
template <class T, int R, int NV> struct Walk {
  using V = Vec<T>;
  static constexpr int kPointers = (R + 2) / 3;
  const Tile<T>& t;
  // Three rows share a pointer: x86 addresses p, p + a_row and p + 2 a_row without arithmetic.
  const T* a[kPointers];
  const T *b = t.b, *ahead = t.ahead.p;
  typename V::V acc[R][NV];

  explicit __attribute__((always_inline)) Walk(const Tile<T>& tile) : t(tile) {
    UNROLL for (int i = 0; i < kPointers; i++) a[i] = t.a + 3 * i * t.a_row;
  }
  // acc = the products of the next `depth` indices k, from zero, ascending
  __attribute__((always_inline)) void sum(int64_t depth) {
    UNROLL for (int i = 0; i < R; i++) {
      UNROLL for (int v = 0; v < NV; v++) acc[i][v] = V::fill(0);
    }
    const int64_t a_row = t.a_row, a_k = t.a_k, b_k = t.b_k, step = t.ahead.step,
                  jump = t.ahead.jump;
    for (int64_t k = 0; k < depth; k++) {
      __builtin_prefetch(ahead);
      ahead += step + (k % 16 == 15 ? jump : 0);
      typename V::V bv[NV];
      UNROLL for (int v = 0; v < NV - 1; v++) bv[v] = V::load(b + v * V::N);
      bv[NV - 1] = V::load(b + (NV - 1) * V::N, t.last);
      b += b_k;
      UNROLL for (int i = 0; i < R; i++) {
        const typename V::V x = V::fill(a[i / 3][i % 3 * a_row]);
        UNROLL for (int v = 0; v < NV; v++) acc[i][v] = V::madd(x, bv[v], acc[i][v]);
      }
      UNROLL for (int i = 0; i < kPointers; i++) a[i] += a_k;
    }
  }
  __attribute__((always_inline)) void store(T (&part)[R][NV * V::N]) const {
    UNROLL for (int i = 0; i < R; i++) {
      UNROLL for (int v = 0; v < NV; v++) V::store(part[i] + v * V::N, acc[i][v]);
    }
  }
  void prefetch_exact() const {
    UNROLL for (int i = 0; i < R; i++) {
      UNROLL for (int j = 0; j < NV * V::N; j += 64 / int(sizeof(double)))
          __builtin_prefetch(t.exact + i * t.ldc + j, 1);
    }
  }
};

template <class T, int R, int NV> void tile(const Tile<T>& t) {
  using V = Vec<T>;
  UNROLL for (int i = 0; i < R; i++) {
    UNROLL for (int v = 0; v < NV; v++) __builtin_prefetch(t.c + i * t.ldc + v * V::N, 1);
  }
  Walk<T, R, NV> walk(t);
  walk.sum(t.depth);
  const typename V::V alpha = V::fill(t.alpha), zero = V::fill(0);
  UNROLL for (int i = 0; i < R; i++) {
    T* c = t.c + i * t.ldc;
    UNROLL for (int v = 0; v < NV - 1; v++, c += V::N)
        V::store(c, V::madd(alpha, walk.acc[i][v], t.add ? V::load(c) : zero));
    V::store(c, V::madd(alpha, walk.acc[i][NV - 1], t.add ? V::load(c, t.last) : zero), t.last);
  }
}

// C += what(i, j), in fp64, D::N elements each.
template <class T, int R, int kWidth, class What>
inline __attribute__((always_inline)) void add_to_exact(const Tile<T>& t, const What& what) {
  using D = Vec<double>;
  for (int i = 0; i < R; i++) {
    double* c = t.exact + i * t.ldc;
    if (t.cols == kWidth) {
      UNROLL for (int j = 0; j < kWidth; j += D::N) D::store(c + j, D::load(c + j) + what(i, j));
      continue;
    }
    for (int j = 0; j < t.cols; j += D::N) {
      const auto mask = D::mask(std::min(t.cols - j, D::N));
      D::store(c + j, D::load(c + j, mask) + what(i, j), mask);
    }
  }
}

// The exact sum (grid.h) of a block of k that is one piece: C += its products, on the grid.
template <class T, int R, int NV> void exact_tile_of_one(const Tile<T>& t) {
  using V = Vec<T>;
  using D = Vec<double>;
  const auto bias = D::fill(kGridBias), factor = D::fill(kGridFactor);
  alignas(64) T part[R][NV * V::N];
  Walk<T, R, NV> walk(t);
  walk.prefetch_exact();
  walk.sum(t.pieces[1] - t.pieces[0]);
  walk.store(part);
  add_to_exact<T, R, NV * V::N>(
      t, [&](int i, int j) __attribute__((always_inline)) {
        return D::madd(D::load_as(part[i] + j), factor, bias) - bias;
      });
}

// Of more pieces: C += each one's products, on the grid.
template <class T, int R, int NV> void exact_tile(const Tile<T>& t) {
  using V = Vec<T>;
  using D = Vec<double>;
  constexpr int kWidth = NV * V::N;
  const auto bias = D::fill(kGridBias), factor = D::fill(kGridFactor);
  alignas(64) double sum[R][kWidth];
  alignas(64) T part[R][kWidth];
  for (int i = 0; i < R; i++) {
    UNROLL for (int j = 0; j < kWidth; j += D::N) D::store(sum[i] + j, bias);
  }
  Walk<T, R, NV> walk(t);
  for (size_t p = 1; p < t.pieces.size(); p++) {
    if (p + 1 == t.pieces.size()) walk.prefetch_exact();
    asm volatile("" ::: "memory");  // else g++ carries `sum` in registers, and spills all
    walk.sum(t.pieces[p] - t.pieces[p - 1]);
    walk.store(part);
    for (int i = 0; i < R; i++) {
      UNROLL for (int j = 0; j < kWidth; j += D::N)
          D::store(sum[i] + j, D::madd(D::load_as(part[i] + j), factor, D::load(sum[i] + j)));
    }
  }
  add_to_exact<T, R, kWidth>(
      t, [&](int i, int j) __attribute__((always_inline)) { return D::load(sum[i] + j) - bias; });
}

// kTiles<T>[pieces: 0, 1, 2 or more][R - 1][NV - 1]
template <class T, int... R> constexpr auto make_tiles(std::integer_sequence<int, R...>) {
  using Row = std::array<void (*)(const Tile<T>&), kTileVecs>;
  return std::array<std::array<Row, kTileRows>, 3>{{{{{tile<T, R + 1, 1>, tile<T, R + 1, 2>}...}},
      {{{exact_tile_of_one<T, R + 1, 1>, exact_tile_of_one<T, R + 1, 2>}...}},
      {{{exact_tile<T, R + 1, 1>, exact_tile<T, R + 1, 2>}...}}}};
}
template <class T>
inline constexpr auto kTiles = make_tiles<T>(std::make_integer_sequence<int, kTileRows>{});

// panel[k][j] = b[k][j] for k < depth, j < cols, zeros up to width (whole vectors).
template <class T>
void pack(const T* b, int64_t ldb, int64_t depth, int cols, int width, T* panel) {
  using V = Vec<T>;
  const int before = width - V::N;
  const auto last = V::mask(cols - before);
  for (int64_t k = 0; k < depth; k++, b += ldb, panel += width) {
    for (int j = 0; j < before; j += V::N) V::store(panel + j, V::load(b + j));
    V::store(panel + before, V::load(b + before, last));
  }
}

// The elements of the lower (or upper) halves of x and y, in turn.
template <bool kUpper, class V, int... I> V zip(V x, V y, std::integer_sequence<int, I...>) {
  constexpr int N = sizeof...(I);
  return __builtin_shufflevector(x, y, (kUpper * N / 2 + I / 2 + I % 2 * N)...);
}

// panel[k][j] = b[j][k] for k < depth, j < cols, zeros up to width: by squares of N x N, each
// zipped log2(N) times.
template <class T>
void pack_transposed(const T* b, int64_t ldb, int64_t depth, int cols, int width, T* panel) {
  using V = Vec<T>;
  constexpr int N = V::N;
  constexpr auto lanes = std::make_integer_sequence<int, N>{};
  for (int64_t k = 0; k < depth; k += N) {
    const int rows = int(std::min<int64_t>(N, depth - k));
    const auto mask = V::mask(rows);
    for (int j = 0; j < width; j += N) {
      typename V::V x[N], y[N];
      UNROLL for (int i = 0; i < N; i++) x[i] =
          j + i < cols ? V::load(b + (j + i) * ldb + k, mask) : V::fill(0);
      UNROLL for (int n = 1; n < N; n *= 2) {
        UNROLL for (int i = 0; i < N / 2; i++) {
          y[2 * i] = zip<false>(x[i], x[i + N / 2], lanes);
          y[2 * i + 1] = zip<true>(x[i], x[i + N / 2], lanes);
        }
        UNROLL for (int i = 0; i < N; i++) x[i] = y[i];
      }
      UNROLL for (int i = 0; i < N; i++) {
        if (i < rows) V::store(panel + (k + i) * width + j, x[i]);
      }
    }
  }
}

}  // namespace duet

#undef UNROLL
