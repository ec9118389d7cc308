// What duet asks of a GPU in PTX itself (PTX ISA), from compute capability 8.0 on: copies to shared
// memory that nobody waits for until they are needed, and the tensor cores, with bf16. Which
// elements of an operand a lane holds is laid down there ("Matrix fragments for mma.m16n8k16"): of
// a product, those of rows lane / 4 and lane / 4 + 8, in columns lane % 4 * 2 and the next of each
// eight. Older GPUs wait for their copies and have no bf16. test/emulated/ptx.h has all for the
// host.
// Read next: gemm_fragments.cuh.
#pragma once
#include <cstdint>

#include "model/machine/tensor.h"
#if !defined(__NVCC__)
#include <ptx.h>  // test/emulated
#endif

namespace duet {

// Of `size` bytes of shared memory, 8 or 16, the first `bytes` become those at `from`, the others
// zero. Both are aligned to `size` bytes.
template <int size = 16> __device__ void copy_async(void* to, const void* from, int bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const uint32_t shared = uint32_t(__cvta_generic_to_shared(to));
  if constexpr (size == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared), "l"(from), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
                 :
                 : "r"(shared), "l"(from), "r"(bytes)
                 : "memory");
#elif defined(__NVCC__)
  for (int i = 0; i < size; ++i)
    static_cast<char*>(to)[i] = i < bytes ? static_cast<const char*>(from)[i] : 0;
#else
  emulated::copy_async(to, from, bytes, size);
#endif
}
// What a thread has begun to copy since the last time is one group of copies.
__device__ inline void end_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__NVCC__)
  emulated::end_copies();
#endif
}
// This thread's groups of copies are there, all but the last `under_way`.
template <int under_way> __device__ void await_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(under_way) : "memory");
#elif !defined(__NVCC__)
  emulated::await_copies(under_way);
#endif
}

// An operand's 16 x 16: of A, quarters (rows, k) in the order (0, 0), (8, 0), (0, 8), (8, 8); of B,
// whose columns are rows here, (0, 0), (0, 8), (8, 0), (8, 8).
struct Operand {
  uint32_t pairs[4];
};

// 2^x, within 2^-22 of it; below 2^-126 zero.
__device__ inline float power_of_2(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::exp2f(x);
#endif
}
__device__ inline double power_of_2(double x) { return ::exp2(x); }

__device__ inline uint32_t pair_of(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return uint32_t(bf16(high).bits) << 16 | bf16(low).bits;
#endif
}

// From shared memory, of which `row` is where this lane's row of eight begins: row lane % 8 of
// quarter lane / 8. turned: the rows in memory are those of k.
template <bool turned> __device__ Operand read_operand(const bf16* row) {
  Operand x;
#if defined(__CUDA_ARCH__)
  const uint32_t from = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (turned)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.pairs[0]), "=r"(x.pairs[1]), "=r"(x.pairs[2]), "=r"(x.pairs[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.pairs[0]), "=r"(x.pairs[1]), "=r"(x.pairs[2]), "=r"(x.pairs[3])
                 : "r"(from)
                 : "memory");
#elif !defined(__NVCC__)
  emulated::ldmatrix_x4(x.pairs, row, turned);
#endif
  return x;
}

// c += a b for 16 rows and eight columns: c[0 .. 1] of row lane / 4, c[4 .. 5] of the row 8 below.
__device__ inline void multiply_add(float* c, const Operand& a, const uint32_t* b) {
#if defined(__CUDA_ARCH__)
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[4]), "+f"(c[5])
      : "r"(a.pairs[0]), "r"(a.pairs[1]), "r"(a.pairs[2]), "r"(a.pairs[3]), "r"(b[0]), "r"(b[1]));
#elif !defined(__NVCC__)
  float* four[] = {c, c + 1, c + 4, c + 5};
  emulated::mma_m16n8k16(four, a.pairs, b[0], b[1]);
#endif
}

}  // namespace duet
