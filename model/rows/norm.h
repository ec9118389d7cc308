// RMSNorm (Zhang and Sennrich 2019): y = x * rstd * gain with rstd = 1/sqrt(mean(x^2) + eps), a row
// a token. Its three passes: F, I (gradient for x) and W (gradient for the gain; its pieces are
// added by grid_sums.h).
// Read next: tile.h.
#pragma once
#include "model/machine/grid.h"
#include "model/machine/group.h"
#include "model/rows/math.h"
#include "model/rows/tile.h"

namespace duet {

struct RmsNormF {
  struct Args {
    Tensor x;     // [tokens, d]
    Tensor gain;  // [1, d]
    Tensor y;     // [tokens, d] out
    Tensor rstd;  // [tokens, 1] out, in the accumulation type
    double eps;
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    using A = Acc<T>;
    const T* __restrict x = a.x.row<T>(r);
    const T* __restrict gain = a.gain.row<T>(0);
    T* __restrict y = a.y.row<T>(r);
    const int n = int(a.x.cols);
    A squares = 0;
    each(
        g, n, [&](int, const T& xi) { squares += A(xi) * A(xi); }, x);
    const A rstd = A(1) / sqrt_(g.sum(squares) / A(n) + A(a.eps));
    each(
        g, n, [&](int, const T& xi, const T& gi, T& yi) { yi = T(A(xi) * rstd * A(gi)); }, x, gain,
        y);
    if (g.lane() == 0) *a.rstd.row<A>(r) = rstd;
  }
};

// h = x + delta (the residual stream), y = RMSNorm(h).
struct AddRmsNormF {
  struct Args {
    Tensor x, delta;  // [tokens, d]
    Tensor gain;      // [1, d]
    Tensor h, y;      // [tokens, d] out
    Tensor rstd;      // [tokens, 1] out
    double eps;
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    each(
        g, int(a.x.cols),
        [](int, const T& xi, const T& di, T& hi) { hi = T(Acc<T>(xi) + Acc<T>(di)); },
        a.x.row<const T>(r), a.delta.row<const T>(r), a.h.row<T>(r));
    g.sync();
    RmsNormF::row<T>(g, r, {a.h, a.gain, a.y, a.rstd, a.eps});
  }
};

// dx = residual + rstd * (gain * dy - xhat * mean(gain * dy * xhat)), with xhat = x * rstd.
struct RmsNormI {
  struct Args {
    Tensor x;         // [tokens, d] the input of F
    Tensor gain;      // [1, d]
    Tensor rstd;      // [tokens, 1]
    Tensor dy;        // [tokens, d]
    Tensor residual;  // [tokens, d] gradient that by-passes the norm, or null
    Tensor dx;        // [tokens, d] out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    using A = Acc<T>;
    const T* __restrict x = a.x.row<T>(r);
    const T* __restrict gain = a.gain.row<T>(0);
    const T* __restrict dy = a.dy.row<T>(r);
    T* __restrict dx = a.dx.row<T>(r);
    const A rstd = *a.rstd.row<A>(r);
    const int n = int(a.x.cols);
    A dot = 0;
    each(
        g, n, [&](int, const T& gi, const T& di, const T& xi) { dot += A(gi) * A(di) * A(xi); },
        gain, dy, x);
    const A mean = g.sum(dot) * rstd * rstd / A(n);
    if (a.residual) {
      each(
          g, n,
          [&](int, const T& xi, const T& gi, const T& di, const T& ri, T& to) {
            to = T(A(ri) + rstd * (A(gi) * A(di) - A(xi) * mean));
          },
          x, gain, dy, a.residual.row<const T>(r), dx);
    } else {
      each(
          g, n,
          [&](int, const T& xi, const T& gi, const T& di, T& to) {
            to = T(rstd * (A(gi) * A(di) - A(xi) * mean));
          },
          x, gain, dy, dx);
    }
  }
};

// What each piece of the batch adds to the gain's gradient: the sum of dy * xhat over its tokens,
// ascending. A launch of tiles of each piece.
struct RmsNormW {
  struct Args {
    Tensor x;        // [tokens, d]
    Tensor rstd;     // [tokens, 1]
    Tensor dy;       // [tokens, d]
    Tensor partial;  // [pieces.count(), d] out, accumulation type
    Pieces pieces;
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    using A = Acc<T>;
    const ColumnTile<Group> tile(r, a.x.cols);
    A sum[ColumnTile<Group>::columns / Group::size] = {};
    struct Values {
      T x, dy;
      A rstd;
    };
    down_columns(
        g, tile, a.pieces.begin(tile.row), a.pieces.begin(tile.row + 1),
        [&](int64_t t, int c) {
          return Values{a.x.row<T>(t)[c], a.dy.row<T>(t)[c], *a.rstd.row<A>(t)};
        },
        [&](int j, const Values& v) { sum[j] += A(v.dy) * A(v.x) * v.rstd; });
    each_column(
        g, tile, [&](int j, int, A& to) { to = sum[j]; }, a.partial.row<A>(tile.row));
  }
};

}  // namespace duet
