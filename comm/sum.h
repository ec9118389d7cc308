// The sums between ranks, of exact sums (model/machine/grid.h), as row operations: a row of the
// launch is a block of elements. The loop over ranks is the outer one: the inner one runs over
// adjacent elements.
// Read next: local.cpp.
#pragma once
#include "model/machine/group.h"
#include "model/machine/launch.h"
#include "model/rows/tile.h"

namespace duet {

constexpr int kSumBlock = 1024;  // elements of a row

// A rank's own part and the others', added, and rounded once to fp32.
struct SumParts {
  static constexpr bool acc_only = true;
  struct Args {
    Tensor x;    // [ranks - 1, elements] f64, the others'
    Tensor y;    // [1, elements] f64, its own; contents lost
    Tensor sum;  // [1, elements] f32 out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const int64_t begin = r * kSumBlock;
    const int n = columns_of_tile(a.y.cols, begin, kSumBlock);
    double* __restrict y = a.y.row<double>(0) + begin;
    for (int64_t rank = 0; rank < a.x.rows; ++rank)
      each(
          g, n, [](int, const double& xi, double& yi) { yi += xi; },
          a.x.row<const double>(rank) + begin, y);
    g.sync();
    each(
        g, n, [](int, const double& yi, float& sum) { sum = float(yi); },
        static_cast<const double*>(y), a.sum.row<float>(0) + begin);
  }
};

// What SumParts rounded, in fp64 again.
struct Widen {
  static constexpr bool acc_only = true;
  struct Args {
    Tensor x;  // [1, elements] f32
    Tensor y;  // [1, elements] f64 out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const int64_t begin = r * kSumBlock;
    each(
        g, columns_of_tile(a.x.cols, begin, kSumBlock),
        [](int, const float& xi, double& yi) { yi = double(xi); }, a.x.row<const float>(0) + begin,
        a.y.row<double>(0) + begin);
  }
};

}  // namespace duet
