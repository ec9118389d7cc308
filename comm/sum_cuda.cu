// The ordered sum on CUDA.
#include "comm/sum.h"
#include "model/rows/compile_cuda.cuh"

namespace duet {
DUET_COMPILE_CUDA(OrderedSum)
}  // namespace duet
