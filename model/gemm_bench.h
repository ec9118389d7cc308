// The speed of the CPU's GEMM on the shapes of the `bench` preset, one line a shape. Part of `make bench`.
// Read next: gemm_cpu.h.
#pragma once
#include <ostream>

namespace duet {

void bench_gemm(int threads, std::ostream& out);

}  // namespace duet
