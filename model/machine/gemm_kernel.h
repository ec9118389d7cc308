// duet's own GEMM on CUDA, for what cuBLAS does not promise: many products of unlike sizes in one
// launch, sums on the grid, and rows whose bits do not depend on the rows beside them.
//
// Contract. In fp32 and fp64 an element of C has the CPU's bits (gemm_cpu.h): the same chain of
// fused multiply-adds, cut at the same places; so has an exact sum. In bf16 an element is summed in
// fp32 by tensor cores, 16 indices k at a time, ascending, from zero: of an exact sum over a piece,
// else over all of k, then scaled, added and rounded once. How a tensor core adds its 16 products
// is NVIDIA's secret, but it is the same for every element of a fragment. So a row's bits depend on
// its own elements alone, in every type; and an exact sum's on the pieces alone.
//
// The price, against cuBLAS, which has wgmma, and tiles of 128 x 256 that do 85 FLOP in bf16 for
// each byte they fetch: tiles of 128 x 128 (64 x 64 where pieces are added in fp64) do 64 (32). And
// where an expert of `base` has 512 tokens 4 of 4 tiles of rows are full; has it 513, 4 of 5.
// README.md has what a GPU does with them.
//
// Read next: ptx.cuh.
#pragma once
#include <cuda_runtime.h>

#include "model/machine/device.h"

namespace duet {

// Enqueues g, whose shapes and types have been checked, and which has groups.
void gemm_kernel(cudaStream_t stream, const Gemm& g);

}  // namespace duet
