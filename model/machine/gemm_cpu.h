// GEMM on the CPU: duet's own, because a correctness baseline needs what BLAS libraries do not
// promise.
//
// Contract. An element of C is
//
//   c = accumulate ? C's old element : 0
//   for each block of kBlock indices k, ascending:
//     p = 0;  for k in the block, ascending:  p = fma(a, b, p)
//     c = fma(alpha, p, c)
//
// Nothing else enters: its bits do not depend on the number of rows or columns around it, on the
// batch or group it came in, nor on threads, which share out tiles of C and never k. Terms that
// `causal` skips are zeros, which change no bits. (Of finite values: a skipped 0 * infinity would
// have been NaN. On machines without fused multiply-add, gemm_vec.h, each fma above is a multiply
// and an add.)
//
// f32 and f64; bf16 is for CUDA and refused. Gemm (device.h) states shapes and forms.
// Read next: gemm_cpu.cpp.
#pragma once
#include "model/machine/device.h"
#include "model/machine/thread_pool.h"

namespace duet {

inline constexpr int kBlock = 256;  // where the chain over k is cut

// Works at once, on the pool's threads, as Device::multiply is asked to.
void gemm_cpu(const Gemm& g, ThreadPool& pool);

const char* cpu_instruction_set();

}  // namespace duet
