// The one sum between ranks, a row operation: element by element, in rank order, ((x0 + x1) + x2) +
// .... Compiled in comm.cpp, without the flags of the other row operations, which would allow
// reordering it.
// Read next: local.cpp.
#pragma once
#include "model/machine/group.h"
#include "model/machine/launch.h"

namespace duet {

// A row of the launch is a block of elements. The loop over ranks is the outer one: the inner one
// runs over adjacent elements.
struct OrderedSum {
  static constexpr bool acc_only = true;
  static constexpr int64_t kBlock = 1024;
  struct Args {
    Tensor x;  // [ranks, elements]
    Tensor y;  // [1, elements] out; not part of x
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const int64_t begin = r * kBlock, end = begin + kBlock < a.x.cols ? begin + kBlock : a.x.cols;
    const T* first = a.x.row<T>(0);
    T* __restrict y = a.y.row<T>(0);
    for (int64_t i = begin + g.lane(); i < end; i += Group::size) y[i] = first[i];
    for (int64_t rank = 1; rank < a.x.rows; ++rank) {
      const T* __restrict x = a.x.row<T>(rank);
      for (int64_t i = begin + g.lane(); i < end; i += Group::size) y[i] += x[i];
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
    constexpr int64_t kBlock = OrderedSum::kBlock;
    const int64_t begin = r * kBlock, end = begin + kBlock < a.x.cols ? begin + kBlock : a.x.cols;
    float* __restrict x = a.x.row<float>(0);
    double* __restrict y = a.y.row<double>(0);
    if (a.widen)
      for (int64_t i = begin + g.lane(); i < end; i += Group::size) y[i] = double(x[i]);
    else
      for (int64_t i = begin + g.lane(); i < end; i += Group::size) x[i] = float(y[i]);
  }
};

}  // namespace duet
