// The row operations of model/ on the CPU.
// Read next: rows_cuda.cu.
#include "model/machine/compile_cpu.h"
#include "model/rows/fused_attention.h"
#include "model/rows/list.h"

namespace duet {
DUET_MODEL_ROWS(DUET_COMPILE_CPU)
DUET_CAUSAL_SOFTMAX(DUET_COMPILE_CPU)
DUET_FUSED_ATTENTION(DUET_NO_CPU)
}  // namespace duet
