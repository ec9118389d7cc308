// Compiles a row operation for the CPU: a loop over rows with a group of one. Included by
// rows_cpu.cpp files, which the Makefile compiles with the flags that vectorize reductions, and by
// comm.cpp for its few, which have no reduction within a row. Which operations there are, each
// room's rows/list.h says.
// Read next: gemm.cpp.
#pragma once
#include "model/machine/group.h"
#include "model/machine/launch.h"

namespace duet {

template <class Op, class T> void cpu_rows(int64_t begin, int64_t end, const void* args) {
  const typename Op::Args a = *static_cast<const typename Op::Args*>(args);
  for (int64_t r = begin; r < end; ++r) Op::template row<T>(Serial{}, r, a);
}

}  // namespace duet

#define DUET_COMPILE_CPU(Op)                          \
  template <> RowKernel row_kernel_cpu<Op>(Dtype t) { \
    return {#Op,                                      \
        t == Dtype::f32       ? cpu_rows<Op, float>   \
            : t == Dtype::f64 ? cpu_rows<Op, double>  \
                              : nullptr,              \
        nullptr};                                     \
  }
#define DUET_NO_CPU(Op) \
  template <> RowKernel row_kernel_cpu<Op>(Dtype) { return {#Op, nullptr, nullptr}; }
