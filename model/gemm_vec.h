// Vec<T>: the machine's vector of floats or doubles, the six verbs that the GEMM needs, and the shape of its register tile.
//
// The only file that knows instruction sets. With AVX-512, AVX2 and NEON madd is one fused multiply-add; on a machine without
// (x86-64's baseline) it is a multiply and an add, which changes the bits (the ladder's row "instruction set"), nothing else.
// Elsewhere than on AVX the compiler's own vectors of 16 bytes are used. Read next: gemm_tile.h, where it is used.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace duet {

// kTileRows rows of C by kTileVecs vectors are summed in registers: 24 accumulators where there are 32 registers, else 12.
inline constexpr int kTileVecs = 2;

template <class T> struct Vec;

#if defined(__AVX512F__)
inline constexpr const char* kInstructionSet = "AVX-512";
inline constexpr int kTileRows = 12;

template <> struct Vec<float> {
  static constexpr int N = 16;
  using V = __m512;
  using Mask = __mmask16;
  static Mask mask(int n) { return Mask((1u << n) - 1); }  // the first n elements
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static V load(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
  static void store(float* p, V x) { _mm512_storeu_ps(p, x); }
  static void store(float* p, V x, Mask m) { _mm512_mask_storeu_ps(p, m, x); }
  static V fill(float x) { return _mm512_set1_ps(x); }
  static V madd(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
};
template <> struct Vec<double> {
  static constexpr int N = 8;
  using V = __m512d;
  using Mask = __mmask8;
  static Mask mask(int n) { return Mask((1u << n) - 1); }
  static V load(const double* p) { return _mm512_loadu_pd(p); }
  static V load(const double* p, Mask m) { return _mm512_maskz_loadu_pd(m, p); }
  static void store(double* p, V x) { _mm512_storeu_pd(p, x); }
  static void store(double* p, V x, Mask m) { _mm512_mask_storeu_pd(p, m, x); }
  static V fill(double x) { return _mm512_set1_pd(x); }
  static V madd(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
};

#elif defined(__AVX2__) && defined(__FMA__)
inline constexpr const char* kInstructionSet = "AVX2";
inline constexpr int kTileRows = 6;

template <> struct Vec<float> {
  static constexpr int N = 8;
  using V = __m256;
  using Mask = __m256i;
  static Mask mask(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static V load(const float* p, Mask m) { return _mm256_maskload_ps(p, m); }
  static void store(float* p, V x) { _mm256_storeu_ps(p, x); }
  static void store(float* p, V x, Mask m) { _mm256_maskstore_ps(p, m, x); }
  static V fill(float x) { return _mm256_set1_ps(x); }
  static V madd(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
};
template <> struct Vec<double> {
  static constexpr int N = 4;
  using V = __m256d;
  using Mask = __m256i;
  static Mask mask(int n) { return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)); }
  static V load(const double* p) { return _mm256_loadu_pd(p); }
  static V load(const double* p, Mask m) { return _mm256_maskload_pd(p, m); }
  static void store(double* p, V x) { _mm256_storeu_pd(p, x); }
  static void store(double* p, V x, Mask m) { _mm256_maskstore_pd(p, m, x); }
  static V fill(double x) { return _mm256_set1_pd(x); }
  static V madd(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
};

#else
#if defined(__ARM_NEON) && defined(__aarch64__)
inline constexpr const char* kInstructionSet = "NEON";
inline constexpr int kTileRows = 12;
inline float32x4_t madd16(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
inline float64x2_t madd16(float64x2_t a, float64x2_t b, float64x2_t c) { return vfmaq_f64(c, a, b); }
#else
inline constexpr const char* kInstructionSet = "no fused multiply-add";
inline constexpr int kTileRows = 6;
template <class V>
V madd16(V a, V b, V c) { return a * b + c; }
#endif

template <class T> struct Vec {
  static constexpr int N = 16 / sizeof(T);
  typedef T V __attribute__((vector_size(16)));
  using Mask = int;
  static Mask mask(int n) { return n; }
  static V load(const T* p) { V x; memcpy(&x, p, 16); return x; }
  static V load(const T* p, Mask m) {
    if (m == N) return load(p);
    V x = {};
    for (int i = 0; i < m; i++) x[i] = p[i];
    return x;
  }
  static void store(T* p, V x) { memcpy(p, &x, 16); }
  static void store(T* p, V x, Mask m) {
    for (int i = 0; i < m; i++) p[i] = x[i];
  }
  static V fill(T x) { return x - V{}; }
  static V madd(V a, V b, V c) { return madd16(a, b, c); }
};
#endif

}  // namespace duet
