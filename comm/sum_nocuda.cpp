// In a build without nvcc the ordered sum has no CUDA kernel.
#include "comm/sum.h"

namespace duet {
DUET_NO_CUDA(OrderedSum)
}  // namespace duet
