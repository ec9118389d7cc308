// The row operations that add to gradients on the grid (model/machine/grid.h). They stand apart
// from list.h because the row flags would let the compiler reassociate them: context.cpp compiles
// them for the CPU.
// Read next: list.h.
#pragma once
#include "model/machine/grid.h"
#include "model/machine/group.h"

namespace duet {

// y += the rows of x. Row r of the launch owns columns r*64 ... r*64+63.
struct GridSum {
  static constexpr bool acc_only = true;
  static constexpr int64_t kColumns = 64;
  static int64_t launch_rows(int64_t cols) { return (cols + kColumns - 1) / kColumns; }
  struct Args {
    Tensor x;  // [n, d] fp32, or fp64 in gradient checks
    Tensor y;  // [1, d] f64, in and out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const int64_t begin = r * kColumns;
    const int64_t end = begin + kColumns < a.x.cols ? begin + kColumns : a.x.cols;
    double* __restrict y = a.y.row<double>(0);
    for (int64_t n = 0; n < a.x.rows; ++n) {
      const T* __restrict x = a.x.row<T>(n);
      for (int64_t i = begin + g.lane(); i < end; i += Group::size) y[i] += on_grid(double(x[i]));
    }
  }
};

// The embedding's gradient: each token's row is a piece. A row of the launch is one token id that
// occurs; the host sorts (ends.cpp).
struct EmbedW {
  struct Args {
    Tensor x;       // [tokens, d] gradient of the embedding's output
    Tensor tokens;  // [tokens, 1] i32 token positions, grouped by id
    Tensor begins;  // [ids + 1, 1] i32 where each id's group begins
    Tensor ids;     // [ids, 1] i32
    Tensor grad;    // [vocab, d] f64, in and out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    double* __restrict grad = a.grad.row<double>(*a.ids.row<int32_t>(r));
    const int begin = *a.begins.row<int32_t>(r), end = *a.begins.row<int32_t>(r + 1);
    for (int j = begin; j < end; ++j) {
      const T* __restrict x = a.x.row<T>(*a.tokens.row<int32_t>(j));
      for (int i = g.lane(); i < a.x.cols; i += Group::size)
        grad[i] += on_grid(double(Acc<T>(x[i])));
    }
  }
};

}  // namespace duet

#define DUET_GRID_SUMS(X) X(GridSum) X(EmbedW)
