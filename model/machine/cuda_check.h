// The error idiom for calls of CUDA's libraries:
//
//   CUDA_CHECK(cudaStreamSynchronize(stream));
//
// throws Error with file, line, the call, and the status found instead of success. CUDA reports a
// failure of work on the GPU at whatever call comes later, so the call named is where it was
// noticed, not always where it happened. And what CUDA must find in the environment. Included by
// files that need nvcc only.
// Read next: cuda_peaks.h.
#pragma once
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstdlib>
#include <iostream>
#include <string>

#include "model/base/check.h"

namespace duet {

// A failure that left the GPU usable (no memory, say) is also kept for cudaGetLastError; asking for
// it here lets the next row kernel find its own errors only.
inline void check_cuda(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw Error(cat(file, ":", line, ": ", call, ": expected cudaSuccess, found ",
      cudaGetErrorName(status), ", ", cudaGetErrorString(status)));
}

inline void check_cuda(cublasStatus_t status, const char* call, const char* file, int line) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(cat(file, ":", line, ": ", call, ": expected CUBLAS_STATUS_SUCCESS, found ",
      cublasGetStatusName(status), ", ", cublasGetStatusString(status)));
}

// People export what other programs need, LAZY or 1 connection; here runs would stand still.
inline void set_environment(const char* name, const char* needed, const char* why) {
  const char* found = getenv(name);
  if (found && std::string(found) == needed) return;
  if (found)
    std::cerr << "duet: " << name << ": found '" << found << "', set to " << needed << ": " << why
              << std::endl;
  setenv(name, needed, 1);
}

}  // namespace duet

#define CUDA_CHECK(call) ::duet::check_cuda((call), #call, __FILE__, __LINE__)
