// Launching a row operation: how one piece of row code becomes a CPU loop and a CUDA kernel.
//
// A row operation is
//
//   struct RmsNormF {
//     struct Args { Tensor x, gain, y, rstd; double eps; };  // every Args has an x: its dtype is T
//     template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
//       for (int i = g.lane(); i < a.x.cols; i += Group::size) ...
//     }
//   };
//
// and a caller says
//
//   launch<RmsNormF>(stream, rows, {.x = x, .gain = gain, .y = y, .rstd = rstd, .eps = eps});
//
// Its Args begin with their tensors. How many bytes it reads and writes is those tensors', once
// each, unless it says so itself: static int64_t bytes(const Args&).
//
// Each folder lists its operations once (rows/list.h) and compiles the list once for each backend:
// rows_cpu.cpp, with the flags that let g++ vectorize reductions, and rows_cuda.cu (in a build
// without nvcc, rows_nocuda.cpp); comm/, whose few have no reduction to vectorize, compiles
// them in comm.cpp.
// Read next: group.h.
#pragma once
#include "model/machine/device.h"

namespace duet {

using CudaRows = void (*)(void* cuda_stream, int64_t rows, const void* args);

// The compiled kernel of Op for a dtype; null where the backend or the dtype is not built. Defined
// by the lists.
template <class Op> RowKernel row_kernel_cpu(Dtype dtype);
template <class Op> CudaRows row_kernel_cuda(Dtype dtype);

// How many tensors an operation's Args begin with.
template <class Args, class... T> constexpr size_t tensors_of() {
  if constexpr (requires { Args{T()..., Tensor()}; })
    return tensors_of<Args, T..., Tensor>();
  else
    return sizeof...(T);
}
template <class Op> int64_t row_bytes(const void* args) {
  const typename Op::Args& a = *static_cast<const typename Op::Args*>(args);
  if constexpr (requires { Op::bytes(a); }) {
    return Op::bytes(a);
  } else {
    int64_t sum = 0;
    for (size_t i = 0; i < tensors_of<typename Op::Args>(); ++i)
      sum += static_cast<const Tensor*>(args)[i].bytes();
    return sum;
  }
}

template <class Op> void launch(Stream& stream, int64_t rows, const typename Op::Args& args) {
  if (rows == 0) return;
  RowKernel kernel = row_kernel_cpu<Op>(args.x.dtype);
  kernel.cuda = row_kernel_cuda<Op>(args.x.dtype);
  kernel.bytes = row_bytes<Op>;
  stream.launch(kernel, rows, &args, sizeof args, args.x.cols);
}

}  // namespace duet

#define DUET_NO_CUDA(Op) \
  template <> CudaRows row_kernel_cuda<Op>(Dtype) { return nullptr; }
