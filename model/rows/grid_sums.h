// The row operations that add to gradients on the grid (model/machine/grid.h). They stand apart
// from list.h because the row flags would let the compiler reassociate them: context.cpp compiles
// them for the CPU.
// Read next: list.h.
#pragma once
#include "model/machine/grid.h"
#include "model/machine/group.h"
#include "model/rows/tile.h"

namespace duet {

// y += the rows of x. A row of the launch is a tile of columns.
struct GridSum {
  static constexpr bool acc_only = true;
  static int64_t launch_rows(int64_t cols) { return tiles_of(cols); }
  struct Args {
    Tensor x;  // [n, d] fp32, or fp64 in gradient checks
    Tensor y;  // [1, d] f64, in and out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const int64_t first = r * kTileColumns;
    const int n = columns_of_tile(a.x.cols, first);
    double sum[kTileColumns / Group::size] = {};
    for (int64_t m = 0; m < a.x.rows; ++m) {
      each_column(
          g, n, [&](int j, int, const T& xi) { sum[j] += on_grid(double(xi)); },
          a.x.row<const T>(m) + first);
    }
    each_column(
        g, n, [&](int j, int, double& yi) { yi += sum[j]; }, a.y.row<double>(0) + first);
  }
};

// The embedding's gradient: each token's row is a piece. A row of the launch is a tile of columns
// of one token id that occurs; the host sorts (ends.cpp).
struct EmbedW {
  struct Args {
    Tensor x;       // [tokens, d] gradient of the embedding's output
    Tensor tokens;  // [tokens, 1] i32 token positions, grouped by id
    Tensor begins;  // [ids + 1, 1] i32 where each id's group begins
    Tensor ids;     // [ids, 1] i32
    Tensor grad;    // [vocab, d] f64, in and out
  };
  static int64_t bytes(const Args& a) { return a.x.bytes() + 16 * a.ids.rows * a.grad.cols; }
  static int64_t launch_rows(int64_t ids, int64_t cols) { return ids * tiles_of(cols); }
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const int64_t tiles = tiles_of(a.x.cols), id = r / tiles, first = r % tiles * kTileColumns;
    const int n = columns_of_tile(a.x.cols, first);
    const int begin = *a.begins.row<int32_t>(id), end = *a.begins.row<int32_t>(id + 1);
    double sum[kTileColumns / Group::size] = {};
    for (int k = begin; k < end; ++k) {
      each_column(
          g, n, [&](int j, int, const T& xi) { sum[j] += on_grid(double(Acc<T>(xi))); },
          a.x.row<const T>(*a.tokens.row<int32_t>(k)) + first);
    }
    each_column(
        g, n, [&](int j, int, double& gi) { gi += sum[j]; },
        a.grad.row<double>(*a.ids.row<int32_t>(id)) + first);
  }
};

}  // namespace duet

#define DUET_GRID_SUMS(X) X(GridSum) X(EmbedW)
