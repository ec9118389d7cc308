// See fused_attention.h.
#include "model/rows/fused_attention.h"

#include <algorithm>
#include <cmath>

#include "model/machine/cuda_check.h"
#include "model/rows/panel.cuh"

namespace duet {
namespace {

HD float log2_(float x) { return ::log2f(x); }
HD double log2_(double x) { return ::log2(x); }
template <class A> HD A scale_of(const HeadShape& s) { return 1 / sqrt_(A(s.nope + s.rope)); }
template <class A> inline constexpr A kLog2E = A(1.4426950408889634);

// A block: rows of its own, a warp for each 16 of them, visit tiles of others. Wide tiles cost
// registers and spare instructions.
template <class T, int kQk, bool wide> struct Sizes {
  static constexpr int kOwn = sizeof(T) * kQk <= 384 ? 64 : sizeof(T) * kQk <= 768 ? 32 : 16;
  static constexpr int kWarps = kOwn / kFragment, kThreads = kWarps * 32;
  static constexpr int kOther = std::max(wide ? kOwn : kOwn / 2, kFragment);
  static constexpr int kWide = kOther / kFragment;
  // Tiles of others that there is room for: the next is copied while one is worked on.
  static constexpr int kTiles = sizeof(T) * kQk <= 768 ? 2 : 1;
};

template <class T, int kQk>
using ForwardSizes = Sizes<T, kQk, std::is_same_v<T, bf16> && kQk <= 96>;
template <class T, int kQk> using BackwardSizes = Sizes<T, kQk, false>;

// work(tile, i) for the tiles of others from `first` up to `end`, each copied by copy(tile, i)
// before.
template <class Of, class Others, class Copy, class Work>
__device__ void visit_tiles(
    Others (&tiles)[Of::kTiles], int64_t first, int64_t end, Copy copy, Work work) {
  const auto begin = [&](int64_t i) {
    if (i < end) copy(tiles[i / Of::kOther % Of::kTiles], i);
    end_copies();
  };
  if (Of::kTiles > 1) begin(first);
  for (int64_t i = first; i < end; i += Of::kOther) {
    begin(Of::kTiles > 1 ? i + Of::kOther : i);
    await_copies<Of::kTiles - 1>();
    __syncthreads();
    work(tiles[i / Of::kOther % Of::kTiles], i);
    __syncthreads();  // nobody reads the tile any more
  }
}

// --- forward -------------------------------------------------------------------------------------

template <class T, int kQk, int kV> struct Forward : ForwardSizes<T, kQk> {
  using A = Acc<T>;
  using Base = ForwardSizes<T, kQk>;
  using Base::kOwn, Base::kOther, Base::kWarps, Base::kWide;
  using Keys = Panel<T, kOther, kQk>;
  using Values = Panel<T, kOther, kV>;
  using Weights = Panel<T, kFragment, kOther>;
  struct Memory {
    Panel<T, kOwn, kQk> q;
    struct Others {
      Keys k;
      Values v;
    } tiles[Base::kTiles];
    Passage<T, kOther> weights[kWarps];
  };

  Memory& memory;
  int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  A factor, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // of rows lane / 4 and 8 below; of the
                                                           // sums, what this lane adds
  Product<T, typename Keys::Rows, typename Keys::Rows, kWide> s;
  Product<T, typename Weights::Rows, typename Values::Turned, kV / kFragment> mix;

  // Q K^T with a tile of keys, of which the first is `ahead` of this warp's first query: own and
  // earlier keys are seen.
  __device__ void score(const Keys& keys, int dims, int ahead) {
    s.clear();
    s.add(memory.q.rows(), warp * kFragment, keys.rows(), dims);
    if (ahead + kOther > 1)
      s.each([&](int n, int i, A& value) {
        if (ahead + n * kFragment + s.col(i) > s.row(i)) value = -INFINITY;
      });
  }
  // P, but for the sum that divides it; what was summed before shrinks as the maximum rises, and is
  // not touched where it stays. Four lanes have a row.
  __device__ void soften() {
    A highest[2] = {-INFINITY, -INFINITY}, shrunk[2];
    s.each([&](int, int i, A value) { highest[i / 4] = ::fmax(highest[i / 4], value); });
    UNROLL for (int h = 0; h < 2; ++h) {
      UNROLL for (int d = 1; d < 4; d *= 2) {
        highest[h] = ::fmax(highest[h], __shfl_xor_sync(~0u, highest[h], d));
      }
      const A next = ::fmax(top[h], factor * highest[h]);
      shrunk[h] = power_of_2(top[h] - next);
      top[h] = next;
      sum[h] *= shrunk[h];
    }
    s.each([&](int, int i, A& value) {
      value = power_of_2(madd(factor, value, -top[i / 4]));
      sum[i / 4] += value;
    });
    mix.each([&](int, int i, A& value) { value *= shrunk[i / 4]; });
  }
};

template <class T, int kQk, int kV>
__global__ void __launch_bounds__(ForwardSizes<T, kQk>::kThreads)
    forward(const FusedAttentionF::Args a) {
  using F = Forward<T, kQk, kV>;
  using A = Acc<T>;
  auto& m = *reinterpret_cast<typename F::Memory*>(dynamic_shared());
  F f{.memory = m, .factor = kLog2E<A> * scale_of<A>(a.shape)};
  const auto q = queries_of<T>(a.x, a.shape), k = queries_of<T>(a.k, a.shape);
  const auto v = values_of<T>(a.kv, a.shape), mix = mix_of<T>(a.mix, a.shape);
  // the last tile has most to do and comes first
  const int64_t first = int64_t(gridDim.x - 1 - blockIdx.x) * F::kOwn,
                query = first + f.warp * kFragment, end = std::min(q.rows, first + F::kOwn);
  f.mix.clear();
  m.q.template load<F::kThreads>(q, first);
  const auto copy = [&](typename F::Memory::Others& tile, int64_t key) {
    tile.k.template load<F::kThreads>(k, key);
    tile.v.template load<F::kThreads>(v, key);
  };
  visit_tiles<F>(m.tiles, 0, end, copy, [&](typename F::Memory::Others& tile, int64_t key) {
    if (query >= q.rows || key >= query + kFragment) return;
    f.score(tile.k, q.cols, int(key - query));
    f.soften();
    f.mix.add_product(f.s, m.weights[f.warp], tile.v.turned());
  });
  if (query >= q.rows) return;
  UNROLL for (int h = 0; h < 2; ++h) {
    f.sum[h] += __shfl_xor_sync(~0u, f.sum[h], 1);
    f.sum[h] += __shfl_xor_sync(~0u, f.sum[h], 2);
    const int64_t row = query + f.lane / 4 + h * 8;
    if (f.lane % 4 == 0 && row < q.rows)
      *stats_of<A>(a.stats, a.shape, row) = f.top[h] + log2_(f.sum[h]);
    f.sum[h] = 1 / f.sum[h];
  }
  f.mix.store(mix, query, [&](A value, int i) { return value * f.sum[i / 4]; });
}

// --- backward ------------------------------------------------------------------------------------

// Own rows are queries, which visit keys; or, `of_keys`, keys, which visit queries. Beside a
// query lies its dmix, beside a key its value.
template <class T, int kQk, int kV, bool of_keys> struct Backward : BackwardSizes<T, kQk> {
  using A = Acc<T>;
  using Base = BackwardSizes<T, kQk>;
  using Base::kOwn, Base::kOther, Base::kWarps, Base::kWide;
  using X = Panel<T, kOther, kQk>;
  using Y = Panel<T, kOther, kV>;
  using Weights = Panel<T, kFragment, kOther>;
  struct Memory {
    Panel<T, kOwn, kQk> own_x;
    Panel<T, kOwn, kV> own_y;
    struct Others {
      X x;
      Y y;
      A stats[kOther][2];  // of visited queries: lse, delta
    } tiles[Base::kTiles];
    Passage<T, kOther> weights[kWarps];
    A stats[kOwn][2];  // of own queries
  };

  const FusedAttentionI::Args& a;
  Memory& memory;
  const A scale;
  int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, i0 = warp * kFragment;
  Product<T, typename X::Rows, typename X::Rows, kWide> s;
  Product<T, typename Y::Rows, typename Y::Rows, kWide> dp;
  Product<T, typename Weights::Rows, typename X::Turned, kQk / kFragment> dx;
  Product<T, typename Weights::Rows, typename Y::Turned, kV / kFragment> dy;

  // Of this warp's own queries, from `query` on: lse, and delta, which is left for the keys.
  __device__ void make_delta(const Strip<T>& mix, int64_t query) {
    for (int r = 0; r < kFragment; ++r) {
      if (query + r >= mix.rows) return;
      const T *x = &memory.own_y.values[(i0 + r) * memory.own_y.kLd],
              *y = mix.first + (query + r) * mix.ld;
      A dot = 0;
      for (int c = lane; c < mix.cols; c += 32) dot += A(x[c]) * A(y[c]);
      dot = Warp().sum(dot);
      if (lane > 0) continue;
      A* stats = stats_of<A>(a.stats, a.shape, query + r);
      memory.stats[i0 + r][0] = stats[0];
      memory.stats[i0 + r][1] = stats[1] = dot;
    }
  }
  // Of visited ones.
  __device__ void load_stats(typename Memory::Others& tile, int64_t query) {
    const int t = int(threadIdx.x), size = 2 * int(sizeof(A));
    if (t < kOther)
      copy_async<2 * sizeof(A)>(tile.stats[t], stats_of<A>(a.stats, a.shape, query + t),
          query + t < a.shape.seq_len ? size : 0);
  }

  // A tile of the others, the first of them `ahead` of this warp's first: keys are seen from
  // queries of their own place on.
  __device__ void visit(typename Memory::Others& tile, int ahead) {
    s.clear();
    dp.clear();
    s.add(memory.own_x.rows(), i0, tile.x.rows(), a.shape.nope + a.shape.rope);
    dp.add(memory.own_y.rows(), i0, tile.y.rows(), a.shape.v);
    const A factor = kLog2E<A> * scale;
    s.each([&](int n, int i, A& p) {
      const A* stats = of_keys ? tile.stats[n * kFragment + s.col(i)] : memory.stats[i0 + s.row(i)];
      p = power_of_2(madd(factor, p, -stats[0]));
      dp.p[0][n][i] -= stats[1];
    });
    if (of_keys ? ahead < kFragment : ahead + kOther > 1)  // on the diagonal
      s.each([&](int n, int i, A& p) {
        const int row = s.row(i), col = ahead + n * kFragment + s.col(i);
        if (of_keys ? row > col : col > row) p = 0;
      });
    s.each([&](int n, int i, A p) { dp.p[0][n][i] *= p; });
    if (of_keys) dy.add_product(s, memory.weights[warp], tile.y.turned());
    dx.add_product(dp, memory.weights[warp], tile.x.turned());
  }
};

template <class T, int kQk, int kV, bool of_keys>
__global__ void __launch_bounds__(BackwardSizes<T, kQk>::kThreads)
    backward(const FusedAttentionI::Args a) {
  using B = Backward<T, kQk, kV, of_keys>;
  using A = Acc<T>;
  auto& m = *reinterpret_cast<typename B::Memory*>(dynamic_shared());
  const HeadShape& s = a.shape;
  B b{.a = a, .memory = m, .scale = scale_of<A>(s)};
  const auto q = queries_of<T>(a.x, s), k = queries_of<T>(a.k, s), v = values_of<T>(a.kv, s),
             dmix = mix_of<T>(a.dmix, s), mix = mix_of<T>(a.mix, s);
  // the tile with most to do comes first
  const int64_t first = int64_t(of_keys ? blockIdx.x : gridDim.x - 1 - blockIdx.x) * B::kOwn,
                own = first + b.i0, n = s.seq_len, end = of_keys ? n : std::min(n, first + B::kOwn);
  b.dx.clear();
  b.dy.clear();
  m.own_x.template load<B::kThreads>(of_keys ? k : q, first);
  m.own_y.template load<B::kThreads>(of_keys ? v : dmix, first);
  end_copies();
  await_copies<0>();
  __syncthreads();
  if (!of_keys) b.make_delta(mix, own);
  const auto copy = [&](typename B::Memory::Others& tile, int64_t other) {
    tile.x.template load<B::kThreads>(of_keys ? q : k, other);
    tile.y.template load<B::kThreads>(of_keys ? dmix : v, other);
    if (of_keys) b.load_stats(tile, other);
  };
  visit_tiles<B>(m.tiles, of_keys ? first : 0, end, copy,
      [&](typename B::Memory::Others& tile, int64_t other) {
        const bool seen = of_keys ? other + B::kOther > own : other < own + kFragment;
        if (own < n && seen) b.visit(tile, int(other - own));
      });
  b.dx.store(
      queries_of<T>(of_keys ? a.dk : a.dq, s), own, [&](A sum, int) { return b.scale * sum; });
  if (of_keys) b.dy.store(values_of<T>(a.dkv, s), own, [](A sum, int) { return sum; });
}

// --- launches ------------------------------------------------------------------------------------

template <class Of, class Args>
void enqueue(void (*kernel)(Args), void* stream, int64_t rows, const Args& a) {
  const int shared = int(sizeof(typename Of::Memory));
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const int64_t tiles = (a.shape.seq_len + Of::kOwn - 1) / Of::kOwn;
  const cudaLaunchConfig_t config{
      .gridDim = dim3(unsigned(tiles), unsigned(a.shape.heads), unsigned(rows / a.shape.seq_len)),
      .blockDim = dim3(Of::kThreads),
      .dynamicSmemBytes = size_t(shared),
      .stream = static_cast<cudaStream_t>(stream)};
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, a));
}

template <class T, int kQk, int kV>
void launch(void* stream, int64_t rows, const FusedAttentionF::Args& a) {
  enqueue<Forward<T, kQk, kV>>(forward<T, kQk, kV>, stream, rows, a);
}
template <class T, int kQk, int kV>
void launch(void* stream, int64_t rows, const FusedAttentionI::Args& a) {
  enqueue<Backward<T, kQk, kV, false>>(backward<T, kQk, kV, false>, stream, rows, a);
  enqueue<Backward<T, kQk, kV, true>>(backward<T, kQk, kV, true>, stream, rows, a);
}

template <class Op, class T> void fused(void* stream, int64_t rows, const void* args) {
  const auto& a = *static_cast<const typename Op::Args*>(args);
  const HeadShape& s = a.shape;
  if (s.nope + s.rope <= 32 && s.v <= 32)
    launch<T, 32, 32>(stream, rows, a);
  else if (s.nope + s.rope <= 96 && s.v <= 64)
    launch<T, 96, 64>(stream, rows, a);
  else
    launch<T, kMostQueryDims, kMostValueDims>(stream, rows, a);
}

}  // namespace

#define DUET_COMPILE_FUSED(Op)                        \
  template <> CudaRows row_kernel_cuda<Op>(Dtype t) { \
    if (t == Dtype::f32) return fused<Op, float>;     \
    if (t == Dtype::f64) return fused<Op, double>;    \
    return fused<Op, bf16>;                           \
  }
DUET_FUSED_ATTENTION(DUET_COMPILE_FUSED)

}  // namespace duet
