// The row operations of comm/ on CUDA.
// Read next: rows_nocuda.cpp.
#include "comm/link_times.h"
#include "comm/sum.h"
#include "model/machine/compile_cuda.cuh"

namespace duet {
DUET_COMPILE_CUDA(OrderedSum)
DUET_COMPILE_CUDA(Rounded)
DUET_COMPILE_CUDA(LinkBook)
DUET_COMPILE_CUDA(LinkWait)
}  // namespace duet
