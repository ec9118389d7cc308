// The one sum between ranks: element by element, in rank order, ((x0 + x1) + x2) + .... Compiled without the flags of the
// other row operations, which would allow the compiler to reorder it. Read next: comm.cpp.
#pragma once
#include "model/device.h"

namespace duet {

struct OrderedSum {
  static constexpr int64_t block = 1024;  // elements to a row of the launch
  struct Args {
    Tensor x;  // [ranks, elements]
    Tensor y;  // [1, elements]; not part of x
  };
};

void launch_ordered_sum(Stream& stream, const OrderedSum::Args& args);
void (*ordered_sum_cuda(Dtype dtype))(void* cuda_stream, int64_t rows, const void* args);  // null without CUDA

}  // namespace duet
