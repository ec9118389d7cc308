// The row operations of model/ on CUDA.
// Read next: rows_nocuda.cpp.
#include "model/machine/compile_cuda.cuh"
#include "model/rows/grid_sums.h"
#include "model/rows/list.h"

namespace duet {
DUET_MODEL_ROWS(DUET_COMPILE_CUDA)
DUET_GRID_SUMS(DUET_COMPILE_CUDA)
DUET_CAUSAL_SOFTMAX(DUET_NO_CUDA)
}  // namespace duet
