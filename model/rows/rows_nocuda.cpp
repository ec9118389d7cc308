// In a build without nvcc no row operation of model/ has a CUDA kernel.
// Read next: config.h.
#include "model/machine/launch.h"
#include "model/rows/fused_attention.h"
#include "model/rows/grid_sums.h"
#include "model/rows/list.h"

namespace duet {
DUET_MODEL_ROWS(DUET_NO_CUDA)
DUET_GRID_SUMS(DUET_NO_CUDA)
DUET_FUSED_ATTENTION(DUET_NO_CUDA)
DUET_CAUSAL_SOFTMAX(DUET_NO_CUDA)
}  // namespace duet
