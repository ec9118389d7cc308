// How fast the CPU's GEMM is. Read next: gemm_bench.cpp.
#pragma once
#include <iosfwd>

namespace duet {

void bench_gemm(int threads, std::ostream& out);  // a line a shape

}  // namespace duet
