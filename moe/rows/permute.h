// Moving rows from expert order back to token order, with the weighted sum over a token's experts
// and its gradient; the way there is GatherRows (model/rows/ends.h). pos[t, j] says in which row of
// expert order the j-th expert of token t (ascending by expert) found it.
// Read next: list.h.
#pragma once
#include "model/machine/group.h"

namespace duet {

// y[t] = sum_j w[t, j] x[pos[t, j]] (ascending j) + shared[t] + residual[t].
struct CombineF {
  struct Args {
    Tensor x;                 // [rows, d] outputs of the routed experts
    Tensor pos;               // [tokens, topk] i32
    Tensor w;                 // [tokens, topk] in the accumulation type
    Tensor shared, residual;  // [tokens, d]; shared may be null
    Tensor y;                 // [tokens, d] out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    using A = Acc<T>;
    const int topk = int(a.pos.cols);
    const int32_t* pos = a.pos.row<int32_t>(r);
    const A* w = a.w.row<A>(r);
    const T* __restrict residual = a.residual.row<T>(r);
    T* __restrict y = a.y.row<T>(r);
    for (int begin = 0; begin < a.x.cols; begin += kTile) {
      const int n = a.x.cols - begin < kTile ? int(a.x.cols) - begin : kTile;
      A sum[kTile / Group::size];
      for (int i = g.lane(); i < n; i += Group::size) sum[i / Group::size] = 0;
      for (int j = 0; j < topk; ++j) {
        const T* __restrict x = a.x.row<T>(pos[j]) + begin;
        const A weight = w[j];
        for (int i = g.lane(); i < n; i += Group::size) sum[i / Group::size] += weight * A(x[i]);
      }
      if (a.shared) {
        const T* __restrict shared = a.shared.row<T>(r) + begin;
        for (int i = g.lane(); i < n; i += Group::size) sum[i / Group::size] += A(shared[i]);
      }
      for (int i = g.lane(); i < n; i += Group::size)
        y[begin + i] = T(sum[i / Group::size] + A(residual[begin + i]));
    }
  }
  static constexpr int kTile = 128;  // columns summed at a time, in registers
};

// dx[pos[t, j]] = w[t, j] dy[t] and dw[t, j] = dy[t] . x[pos[t, j]].
struct CombineB {
  struct Args {
    Tensor x;    // [rows, d] in outputs of the routed experts, out their gradient
    Tensor dy;   // [tokens, d]
    Tensor pos;  // [tokens, topk] i32
    Tensor w;    // [tokens, topk]
    Tensor dw;   // [tokens, topk] out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    using A = Acc<T>;
    const T* __restrict dy = a.dy.row<T>(r);
    for (int j = 0; j < a.pos.cols; ++j) {
      T* __restrict x = a.x.row<T>(a.pos.row<int32_t>(r)[j]);
      const A weight = a.w.row<A>(r)[j];
      A dot = 0;
      for (int i = g.lane(); i < a.x.cols; i += Group::size) {
        dot += A(dy[i]) * A(x[i]);
        x[i] = T(weight * A(dy[i]));
      }
      dot = g.sum(dot);
      if (g.lane() == 0) a.dw.row<A>(r)[j] = dot;
    }
  }
};

// dx[t] += sum_j x[pos[t, j]], ascending j, without those where pos is -1.
struct DispatchB {
  struct Args {
    Tensor x;    // [rows, d] gradients in expert order, or as they came back from other ranks
    Tensor pos;  // [tokens, topk] i32
    Tensor dx;   // [tokens, d] in and out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    T* __restrict dx = a.dx.row<T>(r);
    for (int j = 0; j < a.pos.cols; ++j) {
      const int32_t from = a.pos.row<int32_t>(r)[j];
      if (from < 0) continue;
      const T* __restrict x = a.x.row<T>(from);
      for (int i = g.lane(); i < a.x.cols; i += Group::size)
        dx[i] = T(Acc<T>(dx[i]) + Acc<T>(x[i]));
    }
  }
};

}  // namespace duet
