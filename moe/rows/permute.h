// Moving rows from expert order back to token order, with the weighted sum over a token's experts
// and its gradient; the way there is GatherRows (model/rows/ends.h). pos[t, j] says in which row of
// expert order the j-th expert of token t (ascending by expert) found it.
// Read next: list.h.
#pragma once
#include "model/machine/group.h"
#include "model/rows/tile.h"

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
    for (int64_t first = 0; first < a.x.cols; first += kTileColumns) {
      const int n = columns_of_tile(a.x.cols, first);
      A sum[kTileColumns / Group::size] = {};
      for (int k = 0; k < topk; ++k) {
        const T* __restrict x = a.x.row<T>(pos[k]) + first;
        const A weight = w[k];
        each_column(g, n, [&](int j, int i) { sum[j] += weight * A(x[i]); });
      }
      if (a.shared) {
        const T* __restrict shared = a.shared.row<T>(r) + first;
        each_column(g, n, [&](int j, int i) { sum[j] += A(shared[i]); });
      }
      each_column(g, n, [&](int j, int i) { y[first + i] = T(sum[j] + A(residual[first + i])); });
    }
  }
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

// dx[t] += sum_j x[pos[t, j]], ascending j, without those where pos is -1; rounded once.
struct DispatchB {
  struct Args {
    Tensor x;    // [rows, d] gradients in expert order, or as they came back from other ranks
    Tensor pos;  // [tokens, topk] i32
    Tensor dx;   // [tokens, d] in and out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const int32_t* pos = a.pos.row<int32_t>(r);
    for (int64_t first = 0; first < a.x.cols; first += kTileColumns) {
      const int n = columns_of_tile(a.x.cols, first);
      T* __restrict dx = a.dx.row<T>(r) + first;
      Acc<T> sum[kTileColumns / Group::size] = {};
      each_column(g, n, [&](int j, int i) { sum[j] = Acc<T>(dx[i]); });
      for (int k = 0; k < a.pos.cols; ++k) {
        if (pos[k] < 0) continue;
        const T* __restrict x = a.x.row<T>(pos[k]) + first;
        each_column(g, n, [&](int j, int i) { sum[j] += Acc<T>(x[i]); });
      }
      each_column(g, n, [&](int j, int i) { dx[i] = T(sum[j]); });
    }
  }
};

}  // namespace duet
