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
    constexpr int kTile = kWideTile<Group>;
    for (int64_t first = 0; first < a.x.cols; first += kTile) {
      const int n = columns_of_tile(a.x.cols, first, kTile);
      A sum[kTile / Group::size] = {};
      for (int k = 0; k < topk; ++k) {
        const A weight = w[k];
        each_column<kTile>(
            g, n, [&](int j, int, const T& xi) { sum[j] += weight * A(xi); },
            a.x.row<const T>(pos[k]) + first);
      }
      if (a.shared)
        each_column<kTile>(
            g, n, [&](int j, int, const T& si) { sum[j] += A(si); },
            a.shared.row<const T>(r) + first);
      each_column<kTile>(
          g, n, [&](int j, int, const T& ri, T& yi) { yi = T(sum[j] + A(ri)); },
          a.residual.row<const T>(r) + first, a.y.row<T>(r) + first);
    }
  }
};

// dx[pos[t, j]] = w[t, j] dy[t] and dw[t, j] = dy[t] . x[pos[t, j]].
struct CombineI {
  struct Args {
    Tensor x;    // [rows, d] in outputs of the routed experts, out their gradient
    Tensor dy;   // [tokens, d]
    Tensor pos;  // [tokens, topk] i32
    Tensor w;    // [tokens, topk]
    Tensor dw;   // [tokens, topk] out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    using A = Acc<T>;
    for (int j = 0; j < a.pos.cols; ++j) {
      const A weight = a.w.row<A>(r)[j];
      A dot = 0;
      each(
          g, int(a.x.cols),
          [&](int, const T& di, T& xi) {
            dot += A(di) * A(xi);
            xi = T(weight * A(di));
          },
          a.dy.row<const T>(r), a.x.row<T>(a.pos.row<int32_t>(r)[j]));
      dot = g.sum(dot);
      if (g.lane() == 0) a.dw.row<A>(r)[j] = dot;
    }
  }
};

// dx[t] += sum_j x[pos[t, j]], ascending j, without those where pos is -1; rounded once.
struct DispatchI {
  struct Args {
    Tensor x;    // [rows, d] gradients in expert order, or as they came back from other ranks
    Tensor pos;  // [tokens, topk] i32
    Tensor dx;   // [tokens, d] in and out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const int32_t* pos = a.pos.row<int32_t>(r);
    constexpr int kTile = kWideTile<Group>;
    for (int64_t first = 0; first < a.x.cols; first += kTile) {
      const int n = columns_of_tile(a.x.cols, first, kTile);
      Acc<T> sum[kTile / Group::size] = {};
      each_column<kTile>(
          g, n, [&](int j, int, const T& di) { sum[j] = Acc<T>(di); },
          a.dx.row<const T>(r) + first);
      for (int k = 0; k < a.pos.cols; ++k)
        if (pos[k] >= 0)
          each_column<kTile>(
              g, n, [&](int j, int, const T& xi) { sum[j] += Acc<T>(xi); },
              a.x.row<const T>(pos[k]) + first);
      each_column<kTile>(
          g, n, [&](int j, int, T& di) { di = T(sum[j]); }, a.dx.row<T>(r) + first);
    }
  }
};

}  // namespace duet
