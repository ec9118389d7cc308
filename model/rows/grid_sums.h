// The row operations that add to gradients on the grid (model/machine/grid.h). They stand apart
// from list.h because the row flags would let the compiler reassociate them: context.cpp compiles
// them for the CPU.
// Read next: list.h.
#pragma once
#include "model/machine/grid.h"
#include "model/machine/group.h"
#include "model/rows/tile.h"

namespace duet {

// y += the rows of x. A launch of tiles of one row.
struct GridSum {
  static constexpr bool acc_only = true;
  struct Args {
    Tensor x;  // [n, d] fp32, or fp64 in gradient checks
    Tensor y;  // [1, d] f64, in and out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const ColumnTile<Group> tile(r, a.x.cols);
    double sum[ColumnTile<Group>::columns / Group::size] = {};
    down_columns(
        g, tile, 0, a.x.rows, [&](int64_t m, int c) { return a.x.row<T>(m)[c]; },
        [&](int j, T xi) { sum[j] += on_grid(double(xi)); });
    each_column(
        g, tile, [&](int j, int, double& yi) { yi += sum[j]; }, a.y.row<double>(0));
  }
};

// The embedding's gradient: each token's row is a piece. A launch of tiles of each token id
// that occurs; the host sorts (ends.cpp).
struct EmbedW {
  struct Args {
    Tensor x;       // [tokens, d] gradient of the embedding's output
    Tensor tokens;  // [tokens, 1] i32 token positions, grouped by id
    Tensor begins;  // [ids + 1, 1] i32 where each id's group begins
    Tensor ids;     // [ids, 1] i32
    Tensor grad;    // [vocab, d] f64, in and out
  };
  static int64_t bytes(const Args& a) { return a.x.bytes() + 16 * a.ids.rows * a.grad.cols; }
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const ColumnTile<Group> tile(r, a.x.cols);
    double sum[ColumnTile<Group>::columns / Group::size] = {};
    down_columns(
        g, tile, *a.begins.row<int32_t>(tile.row), *a.begins.row<int32_t>(tile.row + 1),
        [&](int64_t k, int c) { return a.x.row<T>(*a.tokens.row<int32_t>(k))[c]; },
        [&](int j, T xi) { sum[j] += on_grid(double(Acc<T>(xi))); });
    each_column(
        g, tile, [&](int j, int, double& gi) { gi += sum[j]; },
        a.grad.row<double>(*a.ids.row<int32_t>(tile.row)));
  }
};

}  // namespace duet

#define DUET_GRID_SUMS(X) X(GridSum) X(EmbedW)
