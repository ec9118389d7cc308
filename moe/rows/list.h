// The row operations of moe/, listed once; rows_cpu.cpp, rows_cuda.cu and rows_nocuda.cpp compile
// this list. The router's are in the accumulation type, so that their bf16 form is never asked for.
// Read next: rows_cpu.cpp.
#pragma once
#include "moe/rows/permute.h"
#include "moe/rows/router.h"

// clang-format off
#define DUET_MOE_ROWS(X) \
  X(RouterF) X(BalanceSums) X(BalanceLossF) X(RouterI) X(CombineF) X(CombineI) X(DispatchI)
// clang-format on
