// The row operations of moe/ on the CPU.
// Read next: rows_cuda.cu.
#include "model/machine/compile_cpu.h"
#include "moe/rows/list.h"

namespace duet {
DUET_MOE_ROWS(DUET_COMPILE_CPU)
}  // namespace duet
