// Tensor cores as nvcuda::wmma shows them, as far as duet uses them: bf16, 16 x 16 x 16, summed in
// fp32. A lane holds 8 elements of a fragment; which, is none of the program's business and another
// permutation than any GPU's. Lanes meet in a product, as a warp does.
#pragma once
#include "cuda_bf16.h"
#include "cuda_runtime.h"

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

// Element i of lane l is element place(l, i) of the matrix, counted along its rows.
inline int place(int lane, int i) { return (lane * 8 + i) * 77 % 256; }

template <class Use, int m, int n, int k, class T, class Layout = void> struct fragment {
  static_assert(m == 16 && n == 16 && k == 16);
  static constexpr int num_elements = 8;
  T x[8];
};

// Element `place` of the fragment whose parts the lanes brought.
template <class F> float element(const emulated::Met& all, int place) {
  const int i = place * 133 % 256;  // 133 * 77 = 1 modulo 256
  return float(all.of<const F*>(i / 8)->x[i % 8]);
}

template <class F, class T> void load(F& f, const T* p, unsigned ld, bool by_row) {
  if (reinterpret_cast<uintptr_t>(p) % 32 != 0 || ld * sizeof(T) % 16 != 0)
    emulated::misuse("wmma, a fragment's memory is not aligned to 32 bytes, or its rows to 16");
  const int lane = emulated::meet(emulated::At::shuffle, ~0u, &p, sizeof p).lane;
  for (int i = 0; i < 8; ++i) {
    const unsigned at = unsigned(place(lane, i)), row = at / 16, col = at % 16;
    f.x[i] = p[by_row ? row * ld + col : col * ld + row];
  }
}
template <class Use, class T, class Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& f, const T* p, unsigned ld) {
  load(f, p, ld, std::is_same_v<Layout, row_major>);
}
inline void load_matrix_sync(
    fragment<accumulator, 16, 16, 16, float>& f, const float* p, unsigned ld, layout_t layout) {
  load(f, p, ld, layout == mem_row_major);
}

inline void fill_fragment(fragment<accumulator, 16, 16, 16, float>& f, float value) {
  for (float& x : f.x) x = value;
}

template <class A, class B>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& d,
    const fragment<matrix_a, 16, 16, 16, __nv_bfloat16, A>& a,
    const fragment<matrix_b, 16, 16, 16, __nv_bfloat16, B>& b,
    const fragment<accumulator, 16, 16, 16, float>& c) {
  const auto* my_a = &a;
  const auto* my_b = &b;
  const emulated::Met as = emulated::meet(emulated::At::shuffle, ~0u, &my_a, sizeof my_a);
  const emulated::Met bs = emulated::meet(emulated::At::shuffle, ~0u, &my_b, sizeof my_b);
  for (int i = 0; i < 8; ++i) {
    const int at = place(as.lane, i), row = at / 16, col = at % 16;
    float sum = c.x[i];
    for (int k = 0; k < 16; ++k)
      sum += element<std::remove_cvref_t<decltype(a)>>(as, row * 16 + k) *
          element<std::remove_cvref_t<decltype(b)>>(bs, k * 16 + col);
    d.x[i] = sum;
  }
  emulated::meet(emulated::At::syncwarp, ~0u, nullptr, 0);  // all have read
}

}  // namespace nvcuda::wmma
