// See gemm_kernel.h.
#include "model/machine/gemm_kernel.h"

#include <algorithm>

#include "model/machine/cuda_check.h"
#include "model/machine/gemm_cpu.h"
#include "model/machine/gemm_fragments.cuh"

namespace duet {
namespace {

// Of one launch: what a kernel's arguments have room for. More groups or pieces are more launches.
constexpr int kMostGroups = 128, kMostPieces = 768;
constexpr int64_t kMostBlocks = 65535;  // in the grid's y and z

struct Work {
  const void *a, *b;
  void* c;
  int64_t lda, ldb, ldc, stride_a, stride_b, stride_c;  // elements
  int64_t rows, cols, depth;                            // of a C and its sums, if not by groups
  double alpha;
  Dtype out;
  bool accumulate, aligned_a, aligned_b, aligned_c;
  int groups, of_all_groups, first_group, pieces;
  int32_t offsets[kMostGroups + 1];
  int32_t piece[kMostPieces + 1];  // of an exact sum: where pieces begin, and the last one's end
};
static_assert(sizeof(Work) <= 4096, "what every CUDA takes as arguments");

// A block of eight warps, two down and four across, makes a tile of C. Exact sums of bf16 are
// limited by the pieces' additions in fp64, which want many warps; all others by products and
// loads, which want large tiles and long slices.
template <class T, Form form, bool exact> struct TileOf {
  static constexpr bool kHalf = std::is_same_v<T, bf16>, kOneSum = kHalf && !exact;
  static constexpr int kDown = exact || sizeof(T) == 8 ? 2 : 4, kAcross = exact && kHalf ? 1 : 2;
  static constexpr int kRows = 2 * kDown * kFragment, kCols = 4 * kAcross * kFragment;
  static constexpr int kDeep = kOneSum ? 2 * kSlice<T> : kSlice<T>;
  using A = Slice<T, kRows, kDeep, form == Form::TN>;
  using B = Slice<T, kCols, kDeep, form != Form::NT>;
  using Warp = Fragments<T, A, B, kDown, kAcross>;
  // that a multiprocessor is to have room for
  static constexpr int kBlocks = kOneSum ? 2 : kHalf ? 3 : 1;
  static constexpr int kSlices = kOneSum ? 2 : exact ? 4 : 3;  // under way or in use
  struct Slices {
    A a;
    B b;
  };
};

// Indices k of one slice; `last` of a piece or block of k. Behind the last of all there are none.
struct Step {
  int64_t k;
  int depth, piece;
  bool last;
};

// A block's tile: where it is, and over which k it is summed.
template <class T, Form form, bool exact> struct BlockOf {
  using Tile = TileOf<T, form, exact>;
  static constexpr bool tn = form == Form::TN, nt = form == Form::NT;

  const Work& g;
  const T *a, *b;                  // where the tile's rows and columns begin
  int64_t c0;                      // element of C
  int rows, cols;                  // of the tile that lie in the group's C
  int64_t begin, end, origin = 0;  // of k; from where its blocks are counted
  int first_piece = 0;             // in which they begin
  int i0, j0;                      // this warp's fragments

  __device__ explicit BlockOf(const Work& work) : g(work) {
    int64_t tile = blockIdx.y;
    const int e = find_group(tile);
    const int64_t first = g.offsets[e], z = blockIdx.z, row0 = tile * Tile::kRows,
                  col0 = int64_t(blockIdx.x) * Tile::kCols,
                  matrix = z * g.of_all_groups + g.first_group + e;
    const auto left = [](int64_t n, int most) { return int(n < most ? n : most); };
    rows = left((tn ? g.rows : g.offsets[e + 1] - first) - row0, Tile::kRows);
    cols = left(g.cols - col0, Tile::kCols);
    begin = origin = tn ? first : 0;
    end = tn ? g.offsets[e + 1] : g.depth;
    if (exact) find_piece();
    a = static_cast<const T*>(g.a) + z * g.stride_a + (tn ? row0 : (first + row0) * g.lda);
    b = static_cast<const T*>(g.b) + (tn ? z : matrix) * g.stride_b + col0 * (nt ? g.ldb : 1);
    c0 = (tn ? matrix * g.stride_c : z * g.stride_c + first * g.ldc) + row0 * g.ldc + col0;

    i0 = int(threadIdx.x) / 128 * Tile::kDown * kFragment;
    j0 = int(threadIdx.x) / 32 % 4 * Tile::kAcross * kFragment;
  }

  // Of the tile, which is then counted within the group.
  __device__ int find_group(int64_t& tile) const {
    for (int e = 0;; ++e) {
      const int64_t all = tn ? g.rows : g.offsets[e + 1] - g.offsets[e],
                    tiles = (all + Tile::kRows - 1) / Tile::kRows;
      if (tile < tiles) return e;
      tile -= tiles;
    }
  }
  // Of the launch's pieces, those of the group.
  __device__ void find_piece() {
    begin = std::max(begin, int64_t(g.piece[0]));
    end = std::min(end, int64_t(g.piece[g.pieces]));
    for (int step = 512; step > 0; step /= 2)
      if (first_piece + step < g.pieces && g.piece[first_piece + step] <= begin)
        first_piece += step;
  }
  __device__ bool empty() const { return rows <= 0 || (exact && begin >= end); }

  __device__ Step first() const { return step_at(begin, first_piece); }
  __device__ Step after(const Step& s) const { return step_at(s.k + s.depth, s.piece); }
  __device__ Step step_at(int64_t k, int piece) const {
    if (k >= end) return {k, 0, piece, false};
    int64_t last = end;
    if (exact) {
      if (g.piece[piece + 1] <= k) ++piece;
      last = g.piece[piece + 1];
    } else if (!Tile::kOneSum) {
      last = std::min(end, k + kBlock - (k - origin) % kBlock);
    }
    const int depth = int(std::min(int64_t(Tile::kDeep), last - k));
    return {k, depth, piece, k + depth == last};
  }
  // Begins to copy a step's slices; behind the last step there is nothing to copy.
  __device__ void fetch(typename Tile::Slices& to, const Step& s) const {
    if (s.depth > 0) {
      to.a.fetch(
          a + s.k * (tn ? g.lda : 1), g.lda, tn ? s.depth : rows, tn ? rows : s.depth, g.aligned_a);
      to.b.fetch(
          b + s.k * (nt ? 1 : g.ldb), g.ldb, nt ? cols : s.depth, nt ? s.depth : cols, g.aligned_b);
    }
    end_copies();
  }
  // The elements of C that this lane holds.
  template <class Visit> __device__ void each(const typename Tile::Warp& warp, Visit visit) const {
    each_element<Tile::kDown, Tile::kAcross>([&](int m, int n, int i) {
      const int row = i0 + m * kFragment + warp.row(i), col = j0 + n * kFragment + warp.col(i);
      if (row < rows && col < cols) visit(m, n, i, c0 + row * g.ldc + col);
    });
  }
};

// What a lane adds the sums of pieces, or of blocks of k, to.
template <class T, Form form, bool exact> struct Sums {
  using Tile = TileOf<T, form, exact>;
  using Sum = std::conditional_t<exact, double, T>;
  Sum sum[Tile::kDown][Tile::kAcross][kOfLane];  // exact: biased, as grid.h says

  __device__ void begin(
      const Work& g, const BlockOf<T, form, exact>& block, const typename Tile::Warp& warp) {
    each_element<Tile::kDown, Tile::kAcross>(
        [&](int m, int n, int i) { sum[m][n][i] = exact ? Sum(kGridBias) : Sum(0); });
    if (!exact && g.accumulate)
      block.each(warp, [&](int m, int n, int i, int64_t at) {
        sum[m][n][i] = static_cast<const Sum*>(g.c)[at];
      });
  }
  __device__ void add(const Work& g, const typename Tile::Warp& warp) {
    each_element<Tile::kDown, Tile::kAcross>([&](int m, int n, int i) {
      if constexpr (exact)
        sum[m][n][i] = grid_add(sum[m][n][i], double(warp.p[m][n][i]));
      else
        sum[m][n][i] = madd(T(g.alpha), warp.p[m][n][i], sum[m][n][i]);
    });
  }
  __device__ void end(
      const Work& g, const BlockOf<T, form, exact>& block, const typename Tile::Warp& warp) const {
    block.each(warp, [&](int m, int n, int i, int64_t at) {
      Sum& c = static_cast<Sum*>(g.c)[at];
      c = exact ? c + (sum[m][n][i] - Sum(kGridBias)) : sum[m][n][i];
    });
  }
};

// Where all of k is one sum, the fragments have it. It goes through the memory of the slices, so
// that a lane has eight neighbours of a row of C.
template <Form form> struct Sums<bf16, form, false> {
  using Tile = TileOf<bf16, form, false>;
  using Block = BlockOf<bf16, form, false>;
  static constexpr int kEight = 8, kRows = Tile::kDown * kFragment,
                       kCols = Tile::kAcross * kFragment, kLd = kCols + 2;
  static_assert(
      kGemmThreads / 32 * kRows * kLd * 4 <= Tile::kSlices * sizeof(typename Tile::Slices));
  __device__ void begin(const Work&, const Block&, const typename Tile::Warp&) {}
  __device__ void add(const Work&, const typename Tile::Warp&) {}
  __device__ void end(const Work& g, const Block& block, const typename Tile::Warp& warp) const {
    __syncthreads();  // nobody reads slices any more
    float* mine = reinterpret_cast<float*>(dynamic_shared()) + threadIdx.x / 32 * kRows * kLd;
    const float alpha = float(g.alpha);
    each_element<Tile::kDown, Tile::kAcross>([&](int m, int n, int i) {
      mine[(m * kFragment + warp.row(i)) * kLd + n * kFragment + warp.col(i)] =
          alpha * warp.p[m][n][i];
    });
    __syncwarp();
    if (g.out == Dtype::f32)
      store(static_cast<float*>(g.c), mine, g, block);
    else
      store(static_cast<bf16*>(g.c), mine, g, block);
  }
  template <class C>
  __device__ void store(C* c, const float* mine, const Work& g, const Block& block) const {
    for (int v = int(threadIdx.x) % 32; v < kRows * kCols / kEight; v += 32) {
      const int r = v / (kCols / kEight), col = v % (kCols / kEight) * kEight,
                there = block.rows > block.i0 + r ? block.cols - block.j0 - col : 0;
      const float* x = mine + r * kLd + col;
      C* to = c + block.c0 + (block.i0 + r) * g.ldc + block.j0 + col;
      if (g.aligned_c && there >= kEight) {
        Pack<C, kEight> pack = {};
        if (g.accumulate) pack = read_pack<kEight>(to);
        UNROLL for (int j = 0; j < kEight; ++j) pack.values[j] = float(pack.values[j]) + x[j];
        write_pack(to, pack);
      } else {
        for (int j = 0; j < kEight && j < there; ++j)
          to[j] = (g.accumulate ? float(to[j]) : 0) + x[j];
      }
    }
  }
};

template <class T, Form form, bool exact>
__global__ void __launch_bounds__(kGemmThreads, TileOf<T, form, exact>::kBlocks)
    multiply(const Work g) {
  using Tile = TileOf<T, form, exact>;
  constexpr int kSlices = Tile::kSlices;
  auto* slices = reinterpret_cast<typename Tile::Slices*>(dynamic_shared());
  const BlockOf<T, form, exact> block(g);
  if (block.empty()) return;
  Step now = block.first(), ahead = now;
  UNROLL for (int n = 0; n < kSlices - 1; ++n) {
    block.fetch(slices[n], ahead);
    ahead = block.after(ahead);
  }
  typename Tile::Warp warp;
  Sums<T, form, exact> sums;
  sums.begin(g, block, warp);
  warp.clear();
  for (int turn = 0; now.depth > 0; turn = turn + 1 < kSlices ? turn + 1 : 0) {
    await_copies<kSlices - 2>();
    __syncthreads();  // the slice is there, and nobody reads the one before it any more
    block.fetch(slices[turn > 0 ? turn - 1 : kSlices - 1], ahead);
    ahead = block.after(ahead);
    if (block.i0 < block.rows && block.j0 < block.cols) {
      warp.add(slices[turn].a, block.i0, slices[turn].b, block.j0, now.depth);
      if (now.last && !Tile::kOneSum) {
        sums.add(g, warp);
        warp.clear();
      }
    }
    now = block.after(now);
  }
  sums.end(g, block, warp);
}

// --- launches ------------------------------------------------------------------------------------

template <class T, Form form, bool exact>
void enqueue(cudaStream_t stream, const Work& w, int64_t batch) {
  using Tile = TileOf<T, form, exact>;
  const auto tiles = [](int64_t n) { return (n + Tile::kRows - 1) / Tile::kRows; };
  int64_t down = 0;
  for (int e = 0; e < w.groups; ++e)
    down += tiles(form == Form::TN ? w.rows : w.offsets[e + 1] - w.offsets[e]);
  const int64_t across = (w.cols + Tile::kCols - 1) / Tile::kCols;
  if (down == 0 || across == 0 || batch == 0) return;
  DUET_CHECK(down <= kMostBlocks && batch <= kMostBlocks, "GEMM on CUDA: expected at most ",
      kMostBlocks, " tiles of rows and products of a batch, found ", down, " and ", batch);
  const int shared = Tile::kSlices * int(sizeof(typename Tile::Slices));
  CUDA_CHECK(cudaFuncSetAttribute(
      multiply<T, form, exact>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const cudaLaunchConfig_t config{
      .gridDim = dim3(unsigned(across), unsigned(down), unsigned(batch)),
      .blockDim = dim3(kGemmThreads),
      .dynamicSmemBytes = size_t(shared),
      .stream = stream};
  CUDA_CHECK(cudaLaunchKernelEx(&config, multiply<T, form, exact>, w));
}

template <class T> void enqueue_form(cudaStream_t stream, const Work& w, const Gemm& g) {
  switch (g.form) {
    case Form::NN: return enqueue<T, Form::NN, false>(stream, w, g.batch);
    case Form::NT: return enqueue<T, Form::NT, false>(stream, w, g.batch);
    case Form::TN:
      return g.pieces.empty() ? enqueue<T, Form::TN, false>(stream, w, g.batch)
                              : enqueue<T, Form::TN, true>(stream, w, g.batch);
  }
}

bool aligned(const Tensor& t, int64_t stride) {
  const int64_t size = dtype_size(t.dtype);
  return (int64_t(reinterpret_cast<uintptr_t>(t.data)) | t.ld * size | stride * size) % 16 == 0;
}

}  // namespace

void gemm_kernel(cudaStream_t stream, const Gemm& g) {
  DUET_CHECK(g.groups.back() < (int64_t(1) << 31),
      "GEMM on CUDA: expected fewer than 2^31 rows, found ", g.groups.back());
  Work w = {.a = g.a.data,
      .b = g.b.data,
      .c = g.c.data,
      .lda = g.a.ld,
      .ldb = g.b.ld,
      .ldc = g.c.ld,
      .stride_a = g.stride_a,
      .stride_b = g.stride_b,
      .stride_c = g.stride_c,
      .rows = g.c.rows,
      .cols = g.c.cols,
      .depth = g.form == Form::TN ? 0 : g.a.cols,
      .alpha = g.alpha,
      .out = g.c.dtype,
      .accumulate = g.accumulate,
      .aligned_a = aligned(g.a, g.stride_a),
      .aligned_b = aligned(g.b, g.stride_b),
      .aligned_c = aligned(g.c, g.stride_c)};
  w.of_all_groups = int(g.groups.size()) - 1;
  for (w.first_group = 0; w.first_group < w.of_all_groups; w.first_group += w.groups) {
    w.groups = std::min(w.of_all_groups - w.first_group, kMostGroups);
    std::copy_n(g.groups.begin() + w.first_group, w.groups + 1, w.offsets);
    std::span<const int64_t> left;  // pieces of these groups
    if (!g.pieces.empty()) {
      const auto at = [&](int64_t row) {
        return std::lower_bound(g.pieces.begin(), g.pieces.end(), row);
      };
      left = {at(w.offsets[0]), at(w.offsets[w.groups]) + 1};
    }
    do {
      w.pieces = int(std::min<size_t>(left.size(), kMostPieces + 1)) - 1;
      std::copy_n(left.begin(), w.pieces + 1, w.piece);
      if (w.pieces != 0)
        g.a.dtype == Dtype::f64       ? enqueue_form<double>(stream, w, g)
            : g.a.dtype == Dtype::f32 ? enqueue_form<float>(stream, w, g)
                                      : enqueue_form<bf16>(stream, w, g);
      if (w.pieces > 0) left = left.subspan(size_t(w.pieces));
    } while (left.size() > 1);
  }
}

}  // namespace duet
