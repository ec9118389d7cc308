// The blocked GEMM of the CPU (contract: gemm_cpu.h), after Goto and van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication" (2008), with less packing: a panel of B, [kBlock, 32 columns], is copied to the stack, where all row tiles of A
// meet it; A is read where it lies, because a cache line of it is used for 16 steps of k.
//
//   gemm_cpu     cuts C into blocks of at most kRows x kCols for the threads
//   multiply     one block: over blocks of k, over panels of B, over row tiles
//   tile         12 x 32 elements of C (with AVX-512) summed in registers over one block of k
#include "model/gemm_cpu.h"

#include <algorithm>
#include <array>
#include <utility>

#include "model/gemm_vec.h"

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace duet {
namespace {

constexpr int64_t kRows = 504, kCols = 256;      // a block of C: A's part of it, [504, kBlock], stays in the L2 cache
constexpr int64_t kParallelFlops = 1'000'000;    // below, about 10 us, a product is not worth waking anyone

// One product of a batch or group, rows x depth times depth x cols; element (i, k) of A is a[i * a_row + k * a_k].
template <class T>
struct Product {
  const T* a;
  const T* b;
  T* c;
  int64_t a_row, a_k, ldb, ldc;
  int64_t rows, cols, depth;
  T alpha;
  bool accumulate, causal;
  Form form;
};

template <class T>
struct Tile {
  const T* a = nullptr;
  const T* b = nullptr;  // [depth, up to kTileVecs vectors]
  T* c = nullptr;
  int64_t a_row, a_k, b_k, ldc;
  int64_t depth = 0;
  T alpha;
  bool add;
  typename Vec<T>::Mask last;  // of the last vector of a row
};

template <class T, int R, int NV>
void tile(const Tile<T>& t) {
  using V = Vec<T>;
  typename V::V acc[R][NV];
  UNROLL for (int i = 0; i < R; i++) {
    UNROLL for (int v = 0; v < NV; v++) acc[i][v] = V::fill(0);
  }
  // Three rows share a pointer: x86 addresses p, p + a_row and p + 2 a_row without arithmetic.
  const int64_t a_row = t.a_row, a_k = t.a_k, b_k = t.b_k;
  const T* a[(R + 2) / 3];
  UNROLL for (int i = 0; i < (R + 2) / 3; i++) a[i] = t.a + 3 * i * a_row;
  const T* b = t.b;
  for (int64_t k = t.depth; k > 0; k--) {
    typename V::V bv[NV];
    UNROLL for (int v = 0; v < NV - 1; v++) bv[v] = V::load(b + v * V::N);
    bv[NV - 1] = V::load(b + (NV - 1) * V::N, t.last);
    b += b_k;
    UNROLL for (int i = 0; i < R; i++) {
      const typename V::V x = V::fill(a[i / 3][i % 3 * a_row]);
      UNROLL for (int v = 0; v < NV; v++) acc[i][v] = V::madd(x, bv[v], acc[i][v]);
    }
    UNROLL for (int i = 0; i < (R + 2) / 3; i++) a[i] += a_k;
  }
  const typename V::V alpha = V::fill(t.alpha);
  UNROLL for (int i = 0; i < R; i++) {
    UNROLL for (int v = 0; v < NV; v++) {
      T* c = t.c + i * t.ldc + v * V::N;
      if (v < NV - 1) V::store(c, V::madd(alpha, acc[i][v], t.add ? V::load(c) : V::fill(0)));
      else V::store(c, V::madd(alpha, acc[i][v], t.add ? V::load(c, t.last) : V::fill(0)), t.last);
    }
  }
}

template <class T>
using TileFn = void (*)(const Tile<T>&);

// tiles[rows - 1][vectors - 1]
template <class T, int... R>
constexpr std::array<std::array<TileFn<T>, 2>, kTileRows> make_tiles(std::integer_sequence<int, R...>) {
  return {{{tile<T, R + 1, 1>, tile<T, R + 1, 2>}...}};
}
template <class T>
constexpr auto kTiles = make_tiles<T>(std::make_integer_sequence<int, kTileRows>{});

// panel[k][j] = op(B)[k0 + k][j0 + j] for k < depth, j < cols, zeros up to width.
template <class T>
void pack(const Product<T>& p, int64_t k0, int64_t depth, int64_t j0, int cols, int width, T* panel) {
  if (p.form == Form::NT) {
    for (int64_t k = 0; k < depth; k++) {
      for (int j = 0; j < cols; j++) panel[k * width + j] = p.b[(j0 + j) * p.ldb + k0 + k];
      for (int j = cols; j < width; j++) panel[k * width + j] = 0;
    }
    return;
  }
  using V = Vec<T>;
  const auto last = V::mask(cols - (width - V::N));
  for (int64_t k = 0; k < depth; k++) {
    const T* from = p.b + (k0 + k) * p.ldb + j0;
    T* to = panel + k * width;
    for (int v = 0; v < width - V::N; v += V::N) V::store(to + v, V::load(from + v));
    V::store(to + width - V::N, V::load(from + width - V::N, last));
  }
}

// Rows i0 .. i1-1, columns j0 .. j1-1 of C.
template <class T>
void multiply(const Product<T>& p, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  constexpr int N = Vec<T>::N, kWidth = kTileVecs * N;
  alignas(64) T panel[kBlock * kWidth];
  for (int64_t k0 = 0; k0 == 0 || k0 < p.depth; k0 += kBlock) {
    const int64_t depth = std::min<int64_t>(kBlock, p.depth - k0);
    for (int64_t j = j0; j < j1; j += kWidth) {
      const int cols = int(std::min<int64_t>(kWidth, j1 - j)), vecs = (cols + N - 1) / N;
      const int64_t first = p.causal && p.form == Form::NT ? std::max(i0, j) : i0;
      const bool packed = p.form == Form::NT || i1 - first > 2 * kTileRows;
      if (packed && first < i1) pack(p, k0, depth, j, cols, vecs * N, panel);
      Tile<T> t = {.a_row = p.a_row, .a_k = p.a_k, .b_k = packed ? vecs * N : p.ldb, .ldc = p.ldc, .alpha = p.alpha,
                   .add = p.accumulate || k0 > 0, .last = Vec<T>::mask(cols - (vecs - 1) * N)};
      const T* b = packed ? panel : p.b + k0 * p.ldb + j;
      for (int64_t i = first; i < i1; i += kTileRows) {
        const int rows = int(std::min<int64_t>(kTileRows, i1 - i));
        int64_t begin = 0, end = depth;  // within the block of k
        if (p.causal && p.form == Form::NN) end = std::min(depth, i + rows - k0);
        if (p.causal && p.form == Form::TN) begin = std::max<int64_t>(0, i - k0);
        if (begin >= end && k0 > 0) continue;
        t.depth = std::max<int64_t>(0, end - begin);
        t.a = p.a + i * p.a_row + (k0 + begin) * p.a_k;
        t.b = b + begin * t.b_k;
        t.c = p.c + i * p.ldc + j;
        kTiles<T>[rows - 1][vecs - 1](t);
      }
    }
  }
}

// Product i of a batch, or group i.
template <class T>
Product<T> product(const Gemm& g, std::span<const int64_t> offsets, int64_t i) {
  const bool tn = g.form == Form::TN, nt = g.form == Form::NT;
  Product<T> p = {.a = g.a.row<T>(0) + i * g.stride_a, .b = g.b.row<T>(0) + i * g.stride_b, .c = g.c.row<T>(0) + i * g.stride_c,
                  .a_row = tn ? 1 : g.a.ld, .a_k = tn ? g.a.ld : 1, .ldb = g.b.ld, .ldc = g.c.ld,
                  .rows = tn ? g.a.cols : g.a.rows, .cols = nt ? g.b.rows : g.b.cols, .depth = tn ? g.a.rows : g.a.cols,
                  .alpha = T(g.alpha), .accumulate = g.accumulate, .causal = g.causal, .form = g.form};
  if (offsets.empty()) return p;
  const int64_t begin = offsets[i], n = offsets[i + 1] - begin;
  p.a = g.a.row<T>(begin);
  if (tn) p.b = g.b.row<T>(begin);
  else p.c = g.c.row<T>(begin);
  (tn ? p.depth : p.rows) = n;
  return p;
}

template <class T>
void gemm_typed(const Gemm& g, std::span<const int64_t> offsets, ThreadPool& pool) {
  const int64_t count = offsets.empty() ? g.batch : int64_t(offsets.size()) - 1;
  int64_t rows = 0, cols = 0;  // of the largest C
  for (int64_t i = 0; i < count; i++) {
    const Product<T> p = product<T>(g, offsets, i);
    rows = std::max(rows, p.rows), cols = p.cols;
    if (offsets.empty()) break;
  }
  if (rows == 0 || cols == 0) return;
  const bool parallel = pool.size() > 1 && gemm_flops(g, offsets) >= kParallelFlops;
  // Rows of a block: fewer where there are too few blocks to go round, in whole tiles.
  const int64_t col_blocks = (cols + kCols - 1) / kCols;
  int64_t row_step = kRows;
  while (parallel && row_step > 8 * kTileRows && count * col_blocks * ((rows + row_step - 1) / row_step) < 4 * pool.size())
    row_step = (row_step / 2 + kTileRows - 1) / kTileRows * kTileRows;
  const int64_t row_blocks = (rows + row_step - 1) / row_step;
  const int64_t blocks = count * row_blocks * col_blocks;
  pool.parallel_for(blocks, parallel ? std::max<int64_t>(1, blocks / (8 * pool.size())) : blocks, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) {
      const Product<T> p = product<T>(g, offsets, block / (row_blocks * col_blocks));
      const int64_t i = block / col_blocks % row_blocks * row_step, j = block % col_blocks * kCols;
      if (i < p.rows) multiply(p, i, std::min(i + row_step, p.rows), j, std::min(j + kCols, p.cols));
    }
  });
}

}  // namespace

void gemm_cpu(const Gemm& g, std::span<const int64_t> offsets, ThreadPool& pool) {
  check_gemm(g, offsets);
  DUET_CHECK(g.a.dtype == g.c.dtype, "GEMM on the CPU: expected equal dtypes, found ", dtype_name(g.a.dtype), " and C in ",
             dtype_name(g.c.dtype));
  if (g.a.dtype == Dtype::f32) return gemm_typed<float>(g, offsets, pool);
  if (g.a.dtype == Dtype::f64) return gemm_typed<double>(g, offsets, pool);
  DUET_CHECK(false, "GEMM on the CPU: expected fp32 or fp64, found ", dtype_name(g.a.dtype),
             " (bf16 needs a GPU: the CPU has no bf16 kernels)");
}

const char* cpu_instruction_set() { return kInstructionSet; }

}  // namespace duet
