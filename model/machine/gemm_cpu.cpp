// The blocked GEMM of the CPU (contract: gemm_cpu.h), after Goto and van de Geijn, "Anatomy of
// High-Performance Matrix Multiplication" (2008), with less packing: a panel of B, [kBlock, 32
// columns], is copied to the stack, where all row tiles of A meet it; A is read where it lies,
// because a cache line of it is used for 16 steps of k or shared with the next tile.
//
//   gemm_cpu     cuts C into blocks of at most kRows x kCols for the threads
//   multiply     one block: over blocks of k, over panels of B, over row tiles
//   tile         12 x 32 elements of C (with AVX-512) summed in registers over one block of k:
//                gemm_tile.h
// Read next: gemm_tile.h.
#include "model/machine/gemm_cpu.h"

#include "model/machine/gemm_tile.h"

namespace duet {
namespace {

// a block of C: A's part of it, [516, kBlock], stays in the L2 cache
constexpr int64_t kRows = 516, kCols = 256;
// below, about 5 us, a product is not worth waking anyone
constexpr int64_t kParallelFlops = 500'000;

// One product of a batch or group, rows x depth times depth x cols.
template <class T> struct Product {
  const T* a;  // element (i, k): a[i * a_row + k * a_k]
  const T* b;  // element (k, j): b[k * b_k + j * b_col]
  char* c;     // element (i, j): c[i * ldc + j], of T, or double where the sum is exact
  int64_t a_row, a_k, b_k, b_col, ldc;
  int64_t rows, cols, depth;
  const Gemm& g;
  std::span<const int64_t> pieces;  // of an exact sum: of this product's k, from pieces[0] on
};

// Where the block of k that begins at k0 ends: kBlock further on, of an exact sum as many whole
// pieces. `first` is the piece at k0, afterwards the one behind the block.
template <class T> int64_t block_end(const Product<T>& p, int64_t k0, size_t& first) {
  if (p.pieces.empty()) return std::min(k0 + kBlock, p.depth);
  const int64_t begin = p.pieces[0] + k0;
  while (first + 1 < p.pieces.size() && p.pieces[first + 1] - begin <= kBlock) first++;
  return p.pieces[first] - p.pieces[0];
}

// Columns j .. of C against one block of k: what its row tiles share.
template <class T> struct Panel {
  int64_t k0, depth, j;
  bool first_of_block;
  const T *b, *next;  // the panel of B, where it lies or copied; where the next one lies
  Tile<T> tile;       // but for what depends on the rows
  int vecs;
};

// Rows i0 .. i1-1 of a panel.
template <class T>
void multiply_rows(const Product<T>& p, const Panel<T>& panel, int64_t i0, int64_t i1) {
  const bool nt = p.g.form == Form::NT, tn = p.g.form == Form::TN, causal = p.g.causal;
  const int64_t k0 = panel.k0, j = panel.j;
  const T* next = panel.next;
  Tile<T> t = panel.tile;
  for (int64_t i = i0; i < i1; i += kTileRows) {
    const int rows = int(std::min<int64_t>(kTileRows, i1 - i));
    int64_t begin = 0, end = panel.depth;  // what is not zero in this block of k
    if (causal && p.g.form == Form::NN) end = std::min(end, i + rows - k0);
    if (causal && tn) begin = std::max<int64_t>(0, i - k0);
    if (begin >= end && k0 > 0) continue;
    t.depth = std::max<int64_t>(0, end - begin);
    t.a = p.a + i * p.a_row + (k0 + begin) * p.a_k;
    t.b = panel.b + begin * t.b_k;
    t.c = reinterpret_cast<T*>(p.c) + i * p.ldc + j;
    t.exact = reinterpret_cast<double*>(p.c) + i * p.ldc + j;
    // The first two tiles look ahead to the next panel of B; the others, during the first panel, to
    // the next rows of A.
    const int64_t nth = (i - i0) / kTileRows;
    const T* next_a = t.a + kTileRows * p.a_row;
    t.ahead = {t.a};
    if (nth < 2 && next) {
      t.ahead = nt ? Ahead<T>::across(next + nth * 16 * p.b_col, p.b_col)
                   : Ahead<T>::down(next + nth * Ahead<T>::kLine, p.b_k);
    } else if (panel.first_of_block && i + 2 * kTileRows <= i1) {
      t.ahead =
          tn ? Ahead<T>::down(next_a + kTileRows - 1, p.a_k) : Ahead<T>::across(next_a, p.a_row);
    }
    kTiles<T>[std::min<size_t>(t.pieces.empty() ? 0 : t.pieces.size() - 1, 2)][rows - 1]
             [panel.vecs - 1](t);
  }
}

// Rows i0 .. i1-1, columns j0 .. j1-1 of C.
template <class T>
void multiply(const Product<T>& p, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  constexpr int N = Vec<T>::N, kWidth = kTileVecs * N;
  const bool nt = p.g.form == Form::NT, exact = !p.pieces.empty();
  alignas(64) T copy[kBlock * kWidth];
  static_assert(kMaxPiece <= kBlock);
  if (exact && p.depth == 0) return;  // an empty group adds nothing
  size_t piece = 0;
  for (int64_t k0 = 0, k1; k0 == 0 || k0 < p.depth; k0 = std::max<int64_t>(k1, 1)) {
    const size_t first_piece = piece;
    k1 = block_end(p, k0, piece);
    const int64_t depth = k1 - k0;
    for (int64_t j = j0; j < j1; j += kWidth) {
      const int cols = int(std::min<int64_t>(kWidth, j1 - j)), vecs = (cols + N - 1) / N;
      // above lies nothing but what causal leaves out
      const int64_t first = p.g.causal && nt ? std::max(i0, j) : i0;
      const T* b = p.b + k0 * p.b_k + j * p.b_col;
      const T* next = nullptr;  // panel
      if (j + kWidth < j1)
        next = b + kWidth * p.b_col;
      else if (k1 < p.depth)
        next = b + depth * p.b_k - (j - j0) * p.b_col;
      int64_t b_k = p.b_k;
      // with fewer rows a copy does not pay
      if (first < i1 && (nt || i1 - first > 2 * kTileRows)) {
        if (nt)
          pack_transposed(b, p.b_col, depth, cols, vecs * N, copy);
        else
          pack(b, p.b_k, depth, cols, vecs * N, copy);
        b = copy, b_k = vecs * N;
      }
      Tile<T> t = {.a_row = p.a_row, .a_k = p.a_k, .b_k = b_k, .ldc = p.ldc};
      t.alpha = T(p.g.alpha);
      t.add = p.g.accumulate || k0 > 0;
      t.last = Vec<T>::mask(cols - (vecs - 1) * N);
      t.cols = cols;
      if (exact) t.pieces = p.pieces.subspan(first_piece, piece - first_piece + 1);
      multiply_rows(p, {k0, depth, j, j == j0, b, next, t, vecs}, first, i1);
    }
  }
}

// Product i: of a batch's groups, those of a product of the batch one after the other.
template <class T> Product<T> product(const Gemm& g, int64_t i) {
  const bool tn = g.form == Form::TN, nt = g.form == Form::NT;
  const int64_t groups = int64_t(g.groups.size()) - 1, of_batch = i / groups, e = i % groups,
                begin = g.groups[e], n = g.groups[e + 1] - begin,
                c = tn ? i * g.stride_c : of_batch * g.stride_c + begin * g.c.ld;
  Product<T> p = {.a = g.a.row<T>(begin) + of_batch * g.stride_a,
      .b = tn ? g.b.row<T>(begin) + of_batch * g.stride_b : g.b.row<T>(0) + i * g.stride_b,
      .c = static_cast<char*>(g.c.data) + c * dtype_size(g.c.dtype),
      .a_row = tn ? 1 : g.a.ld,
      .a_k = tn ? g.a.ld : 1,
      .b_k = nt ? 1 : g.b.ld,
      .b_col = nt ? g.b.ld : 1,
      .ldc = g.c.ld,
      .rows = tn ? g.a.cols : n,
      .cols = g.c.cols,
      .depth = tn ? n : g.a.cols,
      .g = g,
      .pieces = g.pieces};
  if (!g.pieces.empty()) {
    const auto from = std::lower_bound(g.pieces.begin(), g.pieces.end(), begin);
    const auto to = std::lower_bound(from, g.pieces.end(), begin + n);
    p.pieces = std::span(from, to + 1);
  }
  return p;
}

template <class T> void gemm_typed(const Gemm& g, ThreadPool& pool) {
  const int64_t groups = int64_t(g.groups.size()) - 1, count = g.batch * groups, cols = g.c.cols;
  int64_t rows = 0;  // of the largest C
  for (int64_t e = 0; e < groups; e++) rows = std::max(rows, product<T>(g, e).rows);
  if (rows == 0 || cols == 0) return;
  const bool parallel = pool.size() > 1 && g.flops() >= kParallelFlops;
  // Row blocks: even ones of whole tiles, and more of them until all threads get the same number,
  // or many.
  const int64_t col_blocks = (cols + kCols - 1) / kCols, threads = pool.size();
  int64_t row_blocks = (rows + kRows - 1) / kRows;
  const auto even = [&](int64_t blocks) { return blocks % threads == 0 || blocks >= 8 * threads; };
  while (parallel && !even(count * row_blocks * col_blocks) && rows > row_blocks * 4 * kTileRows)
    row_blocks++;
  const int64_t row_step =
      (rows + row_blocks * kTileRows - 1) / (row_blocks * kTileRows) * kTileRows;
  const int64_t blocks = count * row_blocks * col_blocks;
  // One at a time: an expert's blocks are as large as its rows are many, and whoever takes several
  // may take the large ones.
  pool.parallel_for(blocks, parallel ? 1 : blocks, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) {
      const Product<T> p = product<T>(g, block / (row_blocks * col_blocks));
      const int64_t i = block / col_blocks % row_blocks * row_step, j = block % col_blocks * kCols;
      if (i < p.rows)
        multiply(p, i, std::min(i + row_step, p.rows), j, std::min(j + kCols, p.cols));
    }
  });
}

}  // namespace

void gemm_cpu(const Gemm& g, ThreadPool& pool) {
  const Dtype in = g.a.dtype, out = g.c.dtype;
  const Dtype sum = g.pieces.empty() ? in : Dtype::f64;
  DUET_CHECK(out == sum && (in == Dtype::f32 || in == Dtype::f64),
      "GEMM on the CPU: expected all in fp32 or all in fp64, found ", dtype_name(in), " and C in ",
      dtype_name(out), " (bf16 needs a GPU; use --dtype fp32)");
  in == Dtype::f32 ? gemm_typed<float>(g, pool) : gemm_typed<double>(g, pool);
}

const char* cpu_instruction_set() { return kInstructionSet; }

}  // namespace duet
