// Tensor: a view of a matrix in a device's memory. It owns nothing (Buf in device.h does) and
// computes nothing.
//
// Everything in duet is a row-major matrix whose rows are tokens, parameters' input features or
// blocks; a third index (head, expert, sequence) is a stride that the caller states. The same
// struct is passed by value into CUDA kernels.
// Read next: grid.h.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define HD __host__ __device__ __forceinline__
#else
#define HD inline __attribute__((always_inline))
#endif

namespace duet {

// a b + c, rounded once where the machine can. As a builtin it is out of reach of
// -fassociative-math.
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
HD float madd(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
HD double madd(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
HD float madd(float a, float b, float c) { return a * b + c; }
HD double madd(double a, double b, double c) { return a * b + c; }
#endif

enum class Dtype : int32_t { f32, f64, bf16, i32 };

// Brain float: the upper half of a float, rounded to nearest even.
struct bf16 {
  uint16_t bits;
  bf16() = default;
  HD bf16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    // the same but for a NaN's payload, in one instruction instead of seven
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
    uint32_t u;
    memcpy(&u, &x, 4);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = nan ? uint16_t((u >> 16) | 0x40u) : uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
  }
  HD operator float() const {
    const uint32_t u = uint32_t(bits) << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
  }
};

template <class T> struct DtypeOf;
template <> struct DtypeOf<float> { static constexpr Dtype value = Dtype::f32; };
template <> struct DtypeOf<double> { static constexpr Dtype value = Dtype::f64; };
template <> struct DtypeOf<bf16> { static constexpr Dtype value = Dtype::bf16; };
template <> struct DtypeOf<int32_t> { static constexpr Dtype value = Dtype::i32; };

// The type in which sums are formed, and gradients, moments and master weights are kept: double for
// double, else float.
template <class T> struct AccOf { using type = float; };
template <> struct AccOf<double> { using type = double; };
template <class T> using Acc = typename AccOf<T>::type;

constexpr Dtype acc_dtype(Dtype t) { return t == Dtype::f64 ? Dtype::f64 : Dtype::f32; }
constexpr int64_t dtype_size(Dtype t) { return t == Dtype::f64 ? 8 : t == Dtype::bf16 ? 2 : 4; }
constexpr const char* dtype_name(Dtype t) {
  return t == Dtype::f32 ? "fp32" : t == Dtype::f64 ? "fp64" : t == Dtype::bf16 ? "bf16" : "i32";
}

// [rows, cols], row-major, `ld` elements from one row to the next (ld >= cols).
struct Tensor {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t rows = 0, cols = 0, ld = 0;

  HD explicit operator bool() const { return data != nullptr; }
  HD int64_t size() const { return rows * cols; }

  template <class T> HD T* row(int64_t r) const { return static_cast<T*>(data) + r * ld; }
  // Rows r .. r+n-1.
  Tensor row_slice(int64_t r, int64_t n) const {
    return {static_cast<char*>(data) + r * ld * dtype_size(dtype), dtype, n, cols, ld};
  }
  // Columns c .. c+n-1.
  Tensor col_slice(int64_t c, int64_t n) const {
    return {static_cast<char*>(data) + c * dtype_size(dtype), dtype, rows, n, ld};
  }
  // The same contiguous elements (ld == cols) in another shape.
  Tensor reshape(int64_t r, int64_t c) const { return {data, dtype, r, c, c}; }
  int64_t bytes() const { return rows * cols * dtype_size(dtype); }
  // Element i of a contiguous fp32 or fp64 tensor that the host can read and write.
  double get(int64_t i) const {
    return dtype == Dtype::f64 ? static_cast<double*>(data)[i] : static_cast<float*>(data)[i];
  }
  void set(int64_t i, double value) const {
    if (dtype == Dtype::f64)
      static_cast<double*>(data)[i] = value;
    else
      static_cast<float*>(data)[i] = float(value);
  }
};

}  // namespace duet
