// In a build without nvcc the row operations of comm/ have no CUDA kernels.
// Read next: moe/README.md.
#include "comm/link_times.h"
#include "comm/sum.h"

namespace duet {
DUET_NO_CUDA(OrderedSum)
DUET_NO_CUDA(Rounded)
DUET_NO_CUDA(LinkBook)
DUET_NO_CUDA(LinkWait)
}  // namespace duet
