// The row operations of comm/ on CUDA.
// Read next: rows_nocuda.cpp.
#include "comm/rows.h"
#include "model/machine/compile_cuda.cuh"

namespace duet {
DUET_COMM_ROWS(DUET_COMPILE_CUDA)
}  // namespace duet
