// The two ends of the model: the embedding's gather, and the fused cross-entropy.
// Read next: optimizer.h.
#pragma once
#include "model/machine/group.h"
#include "model/rows/math.h"
#include "model/rows/tile.h"

namespace duet {

// y[r] = x[index[r]]: the embedding of token ids, and tokens in the order of their experts.
struct GatherRows {
  struct Args {
    Tensor x;      // [n, d]
    Tensor index;  // [rows, 1] i32
    Tensor y;      // [rows, d] out
  };
  static int64_t bytes(const Args& a) { return 2 * a.y.bytes(); }
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    each(
        g, int(a.x.cols), [](int, const T& xi, T& yi) { yi = xi; },
        a.x.row<const T>(*a.index.row<int32_t>(r)), a.y.row<T>(r));
  }
};

// y = x, whose rows are shorter. A row of the launch is a tile of columns of a row.
struct PadRows {
  struct Args {
    Tensor x;  // [rows, d]
    Tensor y;  // [rows, d or more] out, the first d columns
  };
  static constexpr int kTile = 256;
  static int64_t launch_rows(const Tensor& x) { return x.rows * tiles_of(x.cols, kTile); }
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const int64_t tiles = tiles_of(a.x.cols, kTile), first = r % tiles * kTile;
    each(
        g, columns_of_tile(a.x.cols, first, kTile), [](int, const T& xi, T& yi) { yi = xi; },
        a.x.row<const T>(r / tiles) + first, a.y.row<T>(r / tiles) + first);
  }
};

// loss = log(sum(exp(logits))) - logits[target]; the logits are overwritten by their gradient,
// scale * (softmax - onehot).
struct CrossEntropy {
  struct Args {
    Tensor x;       // [tokens, vocab] in logits, out gradient
    Tensor target;  // [tokens, 1] i32
    Tensor loss;    // [tokens, 1] out, accumulation type
    double scale;
  };
  static int64_t bytes(const Args& a) { return 2 * a.x.bytes(); }
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    using A = Acc<T>;
    T* __restrict x = a.x.row<T>(r);
    const T* logits = x;
    const int n = int(a.x.cols), target = *a.target.row<int32_t>(r);
    const A at_target = A(x[target]);
    A top = A(x[0]);
    each(
        g, n, [&](int, const T& xi) { top = A(xi) > top ? A(xi) : top; }, logits);
    top = g.max(top);
    A sum = 0;
    if constexpr (Group::size == 1)  // else g++ adds the three parts of the loss in another order
      for (int i = 0; i < n; ++i) sum += exp_(A(x[i]) - top);
    else
      each(
          g, n, [&](int, const T& xi) { sum += exp_(A(xi) - top); }, logits);
    sum = g.sum(sum);
    g.sync();  // lane 0 has read at_target
    if (g.lane() == 0) *a.loss.row<A>(r) = log_(sum) + top - at_target;
    const A p = A(a.scale) / sum;
    each(
        g, n, [&](int, T& xi) { xi = T(exp_(A(xi) - top) * p); }, x);
    g.sync();  // another lane may have written x[target]
    if (g.lane() == 0) x[target] = T(exp_(at_target - top) * p - A(a.scale));
  }
};

}  // namespace duet
