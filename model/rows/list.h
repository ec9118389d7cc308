// The row operations of model/, listed once; rows_cpu.cpp, rows_cuda.cu and rows_nocuda.cpp compile
// this list.
// Read next: rows_cpu.cpp.
#pragma once
#include "model/rows/attention.h"
#include "model/rows/ends.h"
#include "model/rows/norm.h"
#include "model/rows/optimizer.h"
#include "model/rows/swiglu.h"

// clang-format off
#define DUET_MODEL_ROWS(X)                                         \
  X(RmsNormF) X(AddRmsNormF) X(RmsNormI) X(RmsNormW)               \
  X(RopeQuery) X(KeyF) X(KeyI)                                     \
  X(SwigluF) X(SwigluI) X(Add)                                     \
  X(GatherRows) X(PadRows) X(CrossEntropy)                         \
  X(SumSquares) X(AdamW) X(CastRows)
#define DUET_CAUSAL_SOFTMAX(X) X(CausalSoftmaxF) X(CausalSoftmaxI)  // the CPU's
// clang-format on
