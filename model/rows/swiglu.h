// SwiGLU (Shazeer 2020): act = silu(gate) * up, and the plain sum of two tensors.
// Read next: attention.h.
#pragma once
#include "model/machine/group.h"
#include "model/rows/math.h"

namespace duet {

struct SwigluF {
  struct Args {
    Tensor x, up;  // [rows, width] the two projections; x is the gate
    Tensor act;    // [rows, width] out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    each(
        g, int(a.x.cols),
        [](int, const T& x, const T& u, T& y) {
          y = T(Acc<T>(x) * sigmoid_(Acc<T>(x)) * Acc<T>(u));
        },
        a.x.row<const T>(r), a.up.row<const T>(r), a.act.row<T>(r));
  }
};

// Everything in place: gate and up become their gradients, and the gradient of act becomes act
// itself, which F did not keep and W needs.
struct SwigluI {
  struct Args {
    Tensor x, up;  // [rows, width] in gate and up, out their gradients
    Tensor act;    // [rows, width] in the gradient of act, out act
  };
  static int64_t bytes(const Args& a) { return 6 * a.x.bytes(); }
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    using A = Acc<T>;
    each(
        g, int(a.x.cols),
        [](int, T& of_gate, T& of_up, T& of_act) {
          const A x = A(of_gate), u = A(of_up), d = A(of_act), s = sigmoid_(x), silu = x * s;
          of_gate = T(d * u * (s + silu * (A(1) - s)));
          of_up = T(d * silu);
          of_act = T(silu * u);
        },
        a.x.row<T>(r), a.up.row<T>(r), a.act.row<T>(r));
  }
};

struct Add {
  struct Args {
    Tensor x, y;  // [rows, cols]; y += x
  };
  static int64_t bytes(const Args& a) { return 3 * a.x.bytes(); }
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    each(
        g, int(a.x.cols), [](int, const T& xi, T& yi) { yi = T(Acc<T>(xi) + Acc<T>(yi)); },
        a.x.row<const T>(r), a.y.row<T>(r));
  }
};

}  // namespace duet
