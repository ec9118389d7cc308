// In a build without nvcc no row operation of moe/ has a CUDA kernel.
// Read next: eplb.h.
#include "model/machine/launch.h"
#include "moe/rows/list.h"

namespace duet {
DUET_MOE_ROWS(DUET_NO_CUDA)
}  // namespace duet
