// The row operations of moe/ on CUDA.
// Read next: rows_nocuda.cpp.
#include "model/machine/compile_cuda.cuh"
#include "moe/rows/list.h"

namespace duet {
DUET_MOE_ROWS(DUET_COMPILE_CUDA)
}  // namespace duet
