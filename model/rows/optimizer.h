// Row operations over the flat arena of a chunk's parameters (param.h), which is cut into blocks
// that never straddle two parameters. A row is a block. AdamW is that of Loshchilov and Hutter
// 2019.
// Read next: grid_sums.h.
#pragma once
#include "model/machine/group.h"
#include "model/rows/math.h"

namespace duet {

// Where each block lies.
inline constexpr int64_t kBlockAlign = 128;  // every parameter begins at a multiple of it
inline constexpr int64_t kBlockSize = 4096;
struct Blocks {
  Tensor begin;  // [blocks, 1] i32, in units of kBlockAlign
  Tensor count;  // [blocks, 1] i32 elements, at most kBlockSize
  Tensor decay;  // [blocks, 1] i32, 1 where weight decay applies
};

// The sum of squares of each block, for the gradient norm, and its largest element; of the gradient
// rounded to the accumulation type, which is what AdamW reads.
struct SumSquares {
  struct Args {
    Tensor x;     // [1, arena] weights: the compute type
    Tensor grad;  // [1, arena] f64
    Tensor sum;   // [blocks, 2] f64 out
    Blocks blocks;
  };
  static int64_t bytes(const Args& a) { return a.grad.bytes(); }
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const double* __restrict grad =
        a.grad.row<double>(0) + int64_t(*a.blocks.begin.row<int32_t>(r)) * kBlockAlign;
    double sum = 0, largest = 0;
    each(
        g, *a.blocks.count.row<int32_t>(r),
        [&](int, const double& gi) {
          const double d = double(Acc<T>(gi));
          const double size = d < 0 ? -d : d;
          sum += d * d;
          largest = size > largest ? size : largest;
        },
        grad);
    sum = g.sum(sum);
    largest = g.max(largest);
    if (g.lane() != 0) return;
    a.sum.row<double>(r)[0] = sum;
    a.sum.row<double>(r)[1] = largest;
  }
};

struct AdamWOptions {
  double lr = 3e-4, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
};

// AdamW (Loshchilov and Hutter 2019), decoupled weight decay; writes the master weight and its copy
// in the compute type.
struct AdamW {
  struct Args {
    Tensor x;       // [1, arena] weights in the compute type, out
    Tensor master;  // [1, arena] in and out; may be the same memory as x
    Tensor grad;    // [1, arena] f64: the exact sum over the global batch
    Tensor m, v;    // [1, arena] in and out
    Blocks blocks;
    double clip;  // factor of the gradient
    AdamWOptions options;
    double correct1, correct2;  // 1 / (1 - beta^step)
  };
  static int64_t bytes(const Args& a) {
    return 2 * (a.master.bytes() + a.m.bytes() + a.v.bytes()) + a.grad.bytes() +
        (a.x.data == a.master.data ? 0 : a.x.bytes());
  }
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    using A = Acc<T>;
    const int64_t begin = int64_t(*a.blocks.begin.row<int32_t>(r)) * kBlockAlign;
    const int n = *a.blocks.count.row<int32_t>(r);
    const AdamWOptions& o = a.options;
    const A shrink = A(1) - A(o.lr) * A(*a.blocks.decay.row<int32_t>(r) ? o.weight_decay : 0.0);
    const A clip = A(a.clip), b1 = A(o.beta1), b2 = A(o.beta2), c1 = A(o.lr * a.correct1),
            c2 = A(a.correct2), eps = A(o.eps);
    T* x = a.x.row<T>(0) + begin;
    A* w = a.master.row<A>(0) + begin;
    const double* __restrict grad = a.grad.row<double>(0) + begin;
    A* __restrict m = a.m.row<A>(0) + begin;
    A* __restrict v = a.v.row<A>(0) + begin;
    const auto update = [&](const double& gi, A& mi, A& vi, A& wi) {
      const A d = A(gi) * clip;
      mi = b1 * mi + (A(1) - b1) * d;
      vi = b2 * vi + (A(1) - b2) * d * d;
      wi = wi * shrink - c1 * mi / (sqrt_(vi * c2) + eps);
    };
    if (static_cast<void*>(x) == static_cast<void*>(w))
      each(
          g, n, [&](int, const double& gi, A& mi, A& vi, A& wi) { update(gi, mi, vi, wi); }, grad,
          m, v, w);
    else
      each(
          g, n,
          [&](int, const double& gi, A& mi, A& vi, A& wi, T& xi) {
            update(gi, mi, vi, wi);
            xi = T(wi);
          },
          grad, m, v, w, x);
  }
};

// x = from, rounded to the compute type.
struct CastRows {
  struct Args {
    Tensor x;     // [rows, cols] out
    Tensor from;  // [rows, cols] accumulation type
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    each(
        g, int(a.x.cols), [](int, const Acc<T>& value, T& xi) { xi = T(value); },
        a.from.row<const Acc<T>>(r), a.x.row<T>(r));
  }
};

}  // namespace duet
