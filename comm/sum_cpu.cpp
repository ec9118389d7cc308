// The ordered sum on the CPU.
#include "comm/sum.h"
#include "model/rows/compile_cpu.h"

namespace duet {
DUET_COMPILE_CPU(OrderedSum)
}  // namespace duet
