// In a build without nvcc the row operations of comm/ have no CUDA kernels.
#include "comm/gpu_link.h"
#include "comm/sum.h"

namespace duet {
DUET_NO_CUDA(OrderedSum)
DUET_NO_CUDA(LinkBook)
DUET_NO_CUDA(LinkWait)
}  // namespace duet
