// In a build without nvcc the row operations of comm/ have no CUDA kernels.
// Read next: moe/README.md.
#include "comm/rows.h"

namespace duet {
DUET_COMM_ROWS(DUET_NO_CUDA)
}  // namespace duet
