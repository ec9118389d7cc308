// The one sum between ranks, a row operation: element by element, in rank order, ((x0 + x1) + x2) +
// .... Compiled in comm.cpp, without the flags of the other row operations, which would allow
// reordering it.
// Read next: local.cpp.
#pragma once
#include "model/machine/group.h"
#include "model/machine/launch.h"
#include "model/rows/tile.h"

namespace duet {

// A row of the launch is a block of elements. The loop over ranks is the outer one: the inner one
// runs over adjacent elements.
struct OrderedSum {
  static constexpr bool acc_only = true;
  static constexpr int kBlock = 1024;
  struct Args {
    Tensor x;  // [ranks, elements]
    Tensor y;  // [1, elements] out; not part of x
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const int64_t begin = r * kBlock;
    const int n = columns_of_tile(a.x.cols, begin, kBlock);
    T* y = a.y.row<T>(0) + begin;
    each(
        g, n, [](int, const T& xi, T& yi) { yi = xi; }, a.x.row<const T>(0) + begin, y);
    for (int64_t rank = 1; rank < a.x.rows; ++rank) {
      g.sync();
      each(
          g, n, [](int, const T& xi, T& yi) { yi += xi; }, a.x.row<const T>(rank) + begin, y);
    }
  }
};

// What an exact sum is read as: rounded to fp32, and back. Rows as above.
struct Rounded {
  static constexpr bool acc_only = true;
  struct Args {
    Tensor x;    // [1, elements] f32
    Tensor y;    // [1, elements] f64
    bool widen;  // from x to y, else from y to x
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const int64_t begin = r * OrderedSum::kBlock;
    const int n = columns_of_tile(a.x.cols, begin, OrderedSum::kBlock);
    if (a.widen)
      each(
          g, n, [](int, const float& xi, double& yi) { yi = double(xi); },
          a.x.row<const float>(0) + begin, a.y.row<double>(0) + begin);
    else
      each(
          g, n, [](int, float& xi, const double& yi) { xi = float(yi); }, a.x.row<float>(0) + begin,
          a.y.row<const double>(0) + begin);
  }
};

}  // namespace duet
