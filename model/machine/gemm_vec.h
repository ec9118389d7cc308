// Vec<T>: the machine's vector of floats or doubles, the seven verbs that the GEMM needs, and the
// shape of its register tile.
//
// The only file that knows instruction sets. With AVX-512, AVX2 and NEON madd is one fused
// multiply-add; on a machine without (x86-64's baseline) it is a multiply and an add, which changes
// the bits (the ladder's row "instruction set"), nothing else. Vectors are the compiler's own;
// intrinsics do what it has no operator for.
// Read next: cuda_check.h.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace duet {

// kTileRows rows of C by kTileVecs vectors are summed in registers: 24 accumulators where there are
// 32 registers, else 12.
inline constexpr int kTileVecs = 2;

#if defined(__AVX512F__)
inline constexpr const char* kInstructionSet = "AVX-512";
inline constexpr int kTileRows = 12, kVecBytes = 64;

template <class T> __mmask16 first(int n) { return __mmask16((1u << n) - 1); }
inline __m512 load_masked(const float* p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
inline __m512d load_masked(const double* p, __mmask16 m) {
  return _mm512_maskz_loadu_pd(__mmask8(m), p);
}
inline void store_masked(float* p, __m512 x, __mmask16 m) { _mm512_mask_storeu_ps(p, m, x); }
inline void store_masked(double* p, __m512d x, __mmask16 m) {
  _mm512_mask_storeu_pd(p, __mmask8(m), x);
}
inline __m512 fused(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512d fused(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
inline __m512d load_wide(const float* p) { return _mm512_maskz_cvtps_pd(255, _mm256_loadu_ps(p)); }

#elif defined(__AVX2__) && defined(__FMA__)
inline constexpr const char* kInstructionSet = "AVX2";
inline constexpr int kTileRows = 6, kVecBytes = 32;

template <class T> __m256i first(int n) {
  if (sizeof(T) == 8)
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256 load_masked(const float* p, __m256i m) { return _mm256_maskload_ps(p, m); }
inline __m256d load_masked(const double* p, __m256i m) { return _mm256_maskload_pd(p, m); }
inline void store_masked(float* p, __m256 x, __m256i m) { _mm256_maskstore_ps(p, m, x); }
inline void store_masked(double* p, __m256d x, __m256i m) { _mm256_maskstore_pd(p, m, x); }
inline __m256 fused(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
inline __m256d fused(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
inline __m256d load_wide(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }

#else
inline constexpr int kVecBytes = 16;

template <class T> int first(int n) { return n; }
template <class T> auto load_masked(const T* p, int n) {
  typedef T V __attribute__((vector_size(kVecBytes)));
  V x = {};
  if (n == kVecBytes / int(sizeof(T)))
    memcpy(&x, p, sizeof x);
  else
    for (int i = 0; i < n; i++) x[i] = p[i];
  return x;
}
template <class T, class V> void store_masked(T* p, V x, int n) {
  for (int i = 0; i < n; i++) p[i] = x[i];
}
inline auto load_wide(const float* p) {
  typedef double V __attribute__((vector_size(kVecBytes)));
  return V{p[0], p[1]};
}
#if defined(__ARM_NEON) && defined(__aarch64__)
inline constexpr const char* kInstructionSet = "NEON";
inline constexpr int kTileRows = 12;
inline float32x4_t fused(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
inline float64x2_t fused(float64x2_t a, float64x2_t b, float64x2_t c) { return vfmaq_f64(c, a, b); }
#else
inline constexpr const char* kInstructionSet = "no fused multiply-add";
inline constexpr int kTileRows = 6;
template <class V> V fused(V a, V b, V c) { return a * b + c; }
#endif
#endif

template <class T> struct Vec {
  static constexpr int N = kVecBytes / sizeof(T);
  typedef T V __attribute__((vector_size(kVecBytes)));
  using Mask = decltype(first<T>(0));
  static Mask mask(int n) { return first<T>(n); }  // the first n elements
  static V load(const T* p) {
    V x;
    memcpy(&x, p, sizeof x);
    return x;
  }
  static V load(const T* p, Mask m) { return load_masked(p, m); }
  // N of another type, as T
  template <class U> static V load_as(const U* p) {
    if constexpr (sizeof(U) == sizeof(T))
      return load(p);
    else
      return V(load_wide(p));
  }
  static void store(T* p, V x) { memcpy(p, &x, sizeof x); }
  static void store(T* p, V x, Mask m) { store_masked(p, x, m); }
  static V fill(T x) { return x - V{}; }
  static V madd(V a, V b, V c) { return fused(a, b, c); }
};

}  // namespace duet
