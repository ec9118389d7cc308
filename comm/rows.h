// The row operations of comm/, listed once; comm.cpp, rows_cuda.cu and rows_nocuda.cpp compile this
// list.
// Read next: rows_cuda.cu.
#pragma once
#include "comm/link_times.h"
#include "comm/sum.h"

#define DUET_COMM_ROWS(X) X(SumParts) X(Widen) X(LinkBook) X(LinkWait)
