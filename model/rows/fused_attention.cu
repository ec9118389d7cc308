// See fused_attention.h.
#include "model/rows/fused_attention.h"

#include <algorithm>
#include <cmath>

#include "model/machine/cuda_check.h"
#include "model/rows/panel.cuh"

namespace duet {
namespace {

HD float exp2_(float x) { return ::exp2f(x); }
HD double exp2_(double x) { return ::exp2(x); }
HD float log2_(float x) { return ::log2f(x); }
HD double log2_(double x) { return ::log2(x); }
template <class A> HD A scale_of(const HeadShape& s) { return 1 / sqrt_(A(s.nope + s.rope)); }
template <class A> inline constexpr A kLog2E = A(1.4426950408889634);

// A block: rows of its own, a warp for each 16 of them, visit tiles of others.
template <class T, int kQk, int kV> struct Sizes {
  static constexpr int kOwn = sizeof(T) * kQk <= 384 ? 64 : sizeof(T) * kQk <= 768 ? 32 : 16;
  static constexpr int kWarps = kOwn / kFragment, kThreads = kWarps * 32;
  static constexpr int kOther = std::max(kOwn / 2, kFragment), kWide = kOther / kFragment;
};

// --- forward -------------------------------------------------------------------------------------

template <class T, int kQk, int kV> struct Forward : Sizes<T, kQk, kV> {
  using A = Acc<T>;
  using Base = Sizes<T, kQk, kV>;
  using Base::kOwn, Base::kOther, Base::kWarps, Base::kWide;
  using Keys = Panel<T, kOther, kQk>;
  using Values = Panel<T, kOther, kV>;
  using Scores = Panel<A, kFragment, kOther>;
  using Weights = View<T, Scores::kLd * sizeof(A) / sizeof(T), false>;  // P, in the scores' place
  struct Memory {
    Panel<T, kOwn, kQk> q;
    Keys k;
    Values v;
    Scores scores[kWarps];
  };

  Memory& memory;
  int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  A factor, top = -INFINITY, sum = 0;  // of row lane / 2; of the sum, the part that this lane adds
  Product<T, typename Keys::Rows, typename Keys::Rows, kWide> s;
  Product<T, Weights, typename Values::Turned, kV / kFragment> mix;

  __device__ T* weights() { return reinterpret_cast<T*>(memory.scores[warp].values); }

  // The scores of `keys` keys: those of a query's own and earlier keys.
  __device__ void score(int dims, int64_t query, int64_t key, int keys) {
    s.clear();
    s.add(memory.q.rows(), warp * kFragment, memory.k.rows(), 0, dims, fragments(keys));
    s.each(fragments(keys), [&](int n, int i, A value) {
      const int row = s.row(i), col = n * kFragment + s.col(i);
      memory.scores[warp].values[row * Scores::kLd + col] =
          key + col <= query + row ? factor * value : -INFINITY;
    });
    __syncwarp();  // all scores are there
  }
  // P, but for the sum that divides it, and what was summed before for the new maximum. Two lanes a
  // row.
  __device__ void soften(int keys) {
    A mine[kOther / 2];
    const A* scores = &memory.scores[warp].values[lane / 2 * Scores::kLd + lane % 2];
    A highest = top;
    UNROLL for (int c = 0; c < kOther / 2; ++c) {
      mine[c] = c < keys / 2 ? scores[2 * c] : -INFINITY;
      highest = mine[c] > highest ? mine[c] : highest;
    }
    const A other = __shfl_xor_sync(~0u, highest, 1);
    highest = other > highest ? other : highest;
    const A shrunk = exp2_(top - highest);
    top = highest;
    sum *= shrunk;
    __syncwarp();  // all have read them
    T* p = weights() + lane / 2 * Weights::kLd + lane % 2;
    UNROLL for (int c = 0; c < kOther / 2; ++c) {
      const A power = exp2_(mine[c] - top);
      sum += power;
      if (c < keys / 2) p[2 * c] = T(power);
    }
    UNROLL for (int i = 0; i < kOfLane; ++i) {
      const A by = __shfl_sync(~0u, shrunk, 2 * mix.row(i));
      UNROLL for (int n = 0; n < kV / kFragment; ++n) mix.value(0, n, i) *= by;
    }
    __syncwarp();
  }
};

template <class T, int kQk, int kV>
__global__ void __launch_bounds__(Sizes<T, kQk, kV>::kThreads)
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
  const int across = fragments(v.cols);
  f.mix.locate();
  f.s.locate_as(f.mix);
  f.mix.clear();
  m.q.template load<F::kThreads>(q, first);
  for (int64_t key = 0; key < end; key += F::kOther) {
    m.k.template load<F::kThreads>(k, key);
    m.v.template load<F::kThreads>(v, key);
    __syncthreads();
    const int keys = int(std::min(query + kFragment - key, int64_t(F::kOther)));
    if (query < q.rows && keys > 0) {
      f.score(q.cols, query, key, keys);
      f.soften(keys);
      f.mix.add({f.weights()}, 0, m.v.turned(), 0, keys, across);
    }
    __syncthreads();  // nobody reads the keys any more
  }
  if (query >= q.rows) return;
  f.sum += __shfl_xor_sync(~0u, f.sum, 1);
  const int64_t row = query + f.lane / 2;
  if (row < q.rows) *stats_of<A>(a.stats, a.shape, row) = f.top + log2_(f.sum);
  A part[kOfLane];
  UNROLL for (int i = 0; i < kOfLane; ++i) part[i] = 1 / __shfl_sync(~0u, f.sum, 2 * f.mix.row(i));
  f.mix.store(mix, query, [&](A value, int i) { return value * part[i]; });
}

// --- backward ------------------------------------------------------------------------------------

// Own rows are queries, which visit keys; or, `of_keys`, keys, which visit queries. Beside a
// query lies its dmix, beside a key its value.
template <class T, int kQk, int kV, bool of_keys> struct Backward : Sizes<T, kQk, kV> {
  using A = Acc<T>;
  using Base = Sizes<T, kQk, kV>;
  using Base::kOwn, Base::kOther, Base::kWarps, Base::kWide;
  using X = Panel<T, kOther, kQk>;
  using Y = Panel<T, kOther, kV>;
  using Weights = Panel<T, kFragment, kOther>;
  struct Memory {
    Panel<T, kOwn, kQk> own_x;
    Panel<T, kOwn, kV> own_y;
    X x;
    Y y;
    Weights weights[kWarps];
    A lse[kOwn], delta[kOwn];  // of the queries among them
  };

  const FusedAttentionB::Args& a;
  Memory& memory;
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
      memory.lse[i0 + r] = stats[0];
      memory.delta[i0 + r] = stats[1] = dot;
    }
  }
  // Of the visited queries.
  __device__ void load_delta(int64_t query) {
    const int t = int(threadIdx.x);
    if (t >= kOther) return;
    const bool there = query + t < a.shape.seq_len;
    const A* stats = stats_of<A>(a.stats, a.shape, query + t);
    memory.lse[t] = there ? stats[0] : 0;
    memory.delta[t] = there ? stats[1] : 0;
  }

  // A tile of the others, from `other` on: its rows from j0 on, `across` fragments of them, see
  // this warp's own or are seen by them.
  __device__ void visit(int64_t own, int64_t other, int j0, int across) {
    const int dims = a.shape.nope + a.shape.rope;
    s.clear();
    dp.clear();
    s.add(memory.own_x.rows(), i0, memory.x.rows(), j0, dims, across);
    dp.add(memory.own_y.rows(), i0, memory.y.rows(), j0, a.shape.v, across);
    const A factor = kLog2E<A> * scale_of<A>(a.shape);
    s.each(across, [&](int n, int i, A& p) {
      const int row = s.row(i), col = j0 + n * kFragment + s.col(i);
      const int64_t query = of_keys ? other + col : own + row,
                    key = of_keys ? own + row : other + col;
      const int at = of_keys ? col : i0 + row;
      p = key <= query ? exp2_(factor * p - memory.lse[at]) : 0;
      A& ds = dp.value(0, n, i);
      ds = p * (ds - memory.delta[at]);
    });
    if (of_keys)
      dy.add(weights(s, across), 0, memory.y.turned().from(j0), 0, across * kFragment,
          fragments(a.shape.v));
    dx.add(
        weights(dp, across), 0, memory.x.turned().from(j0), 0, across * kFragment, fragments(dims));
  }
  // As the operand of a product.
  template <class P> __device__ typename Weights::Rows weights(P& product, int across) {
    Weights& w = memory.weights[warp];
    __syncwarp();
    product.each(across, [&](int n, int i, A value) {
      w.values[product.row(i) * w.kLd + n * kFragment + product.col(i)] = T(value);
    });
    __syncwarp();
    return w.rows();
  }
};

template <class T, int kQk, int kV, bool of_keys>
__global__ void __launch_bounds__(Sizes<T, kQk, kV>::kThreads)
    backward(const FusedAttentionB::Args a) {
  using B = Backward<T, kQk, kV, of_keys>;
  using A = Acc<T>;
  auto& m = *reinterpret_cast<typename B::Memory*>(dynamic_shared());
  B b{.a = a, .memory = m};
  const HeadShape& s = a.shape;
  const auto q = queries_of<T>(a.x, s), k = queries_of<T>(a.k, s), v = values_of<T>(a.kv, s),
             dmix = mix_of<T>(a.dmix, s), mix = mix_of<T>(a.mix, s);
  // the tile with most to do comes first
  const int64_t first = int64_t(of_keys ? blockIdx.x : gridDim.x - 1 - blockIdx.x) * B::kOwn,
                own = first + b.i0, n = s.seq_len, end = of_keys ? n : std::min(n, first + B::kOwn);
  b.dx.locate();
  b.dy.locate_as(b.dx);
  b.s.locate_as(b.dx);
  b.dp.locate_as(b.dx);
  b.dx.clear();
  b.dy.clear();
  m.own_x.template load<B::kThreads>(of_keys ? k : q, first);
  m.own_y.template load<B::kThreads>(of_keys ? v : dmix, first);
  __syncthreads();
  if (!of_keys) b.make_delta(mix, own);
  for (int64_t other = of_keys ? first : 0; other < end; other += B::kOther) {
    m.x.template load<B::kThreads>(of_keys ? q : k, other);
    m.y.template load<B::kThreads>(of_keys ? dmix : v, other);
    if (of_keys) b.load_delta(other);
    __syncthreads();
    const int64_t seen = of_keys ? n : std::min(n, own + kFragment);
    const int j0 = of_keys ? int(std::clamp(own - other, int64_t(0), int64_t(B::kOther))) : 0,
              across = fragments(std::min(seen - other, int64_t(B::kOther)) - j0);
    if (own < n && across > 0) b.visit(own, other, j0, across);
    __syncthreads();  // nobody reads the tile any more
  }
  b.dx.store(queries_of<T>(of_keys ? a.dk : a.dq, s), own,
      [&](A sum, int) { return scale_of<A>(s) * sum; });
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
void launch(void* stream, int64_t rows, const FusedAttentionB::Args& a) {
  enqueue<Backward<T, kQk, kV, false>>(backward<T, kQk, kV, false>, stream, rows, a);
  enqueue<Backward<T, kQk, kV, true>>(backward<T, kQk, kV, true>, stream, rows, a);
}

template <class Op, class T> void fused(void* stream, int64_t rows, const void* args) {
  const auto& a = *static_cast<const typename Op::Args*>(args);
  const HeadShape& s = a.shape;
  if (s.nope + s.rope <= 96 && s.v <= 64)
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
