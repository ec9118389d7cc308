// Scalar functions of the row operations: a short exp that g++ vectorizes, and what is built on it.
// In double (gradient checks) they are the library's. Not here: sums over lanes (machine/group.h).
// Read next: swiglu.h.
#pragma once
#include <cmath>

#include "model/machine/tensor.h"

namespace duet {

// exp(x) to 3 ulp for -87 <= x <= 88, beyond that the value at the end. x = n ln2 + r, |r| <=
// ln2/2; exp(r) by its Taylor polynomial of degree 6; 2^n by the exponent bits.
HD float exp_(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float t = x * 1.44269504f;
  // NaN goes through r; the bound, below all other t, keeps it from a cast that has no value for it
  const float whole = t > -126.0f ? t : -126.0f;
  const int n = int(whole + __builtin_copysignf(0.5f, whole));
  float r = madd(float(n), -0.693359375f, x);
  r = madd(float(n), 2.12194440e-4f, r);
  float p = 1.3888889e-3f;
  p = madd(p, r, 8.3333333e-3f);
  p = madd(p, r, 4.1666667e-2f);
  p = madd(p, r, 1.6666667e-1f);
  p = madd(p, r, 0.5f);
  p = madd(p, r, 1.0f);
  p = madd(p, r, 1.0f);
  const int32_t bits = (n + 127) << 23;
  float scale;
  memcpy(&scale, &bits, 4);
  return p * scale;
}
HD double exp_(double x) { return ::exp(x); }

HD float sqrt_(float x) { return ::sqrtf(x); }
HD double sqrt_(double x) { return ::sqrt(x); }
HD float log_(float x) { return ::logf(x); }
HD double log_(double x) { return ::log(x); }

template <class A> HD A sigmoid_(A x) { return A(1) / (A(1) + exp_(-x)); }

}  // namespace duet
