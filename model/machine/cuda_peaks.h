// What a GPU can do at most: the speed of light that its kernels are measured by. 0 where unknown.
// Memory and fp32 follow from what the GPU says of itself. Tensor cores run at a clock that it does
// not tell, so bf16 is the datasheet's, dense, with sums in fp32.
// Read next: device_cuda.cu.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "model/machine/cuda_check.h"
#include "model/machine/tensor.h"

namespace duet {

// TFLOP/s by whole words of a GPU's name; the first that are found count. A part of a GPU (MIG) is
// none of them.
struct CudaPeak {
  const char* words;
  double bf16;
};
inline constexpr CudaPeak kCudaPeaks[] = {{"MIG", 0}, {"Laptop", 0}, {"A100", 312}, {"A800", 312},
    {"A30", 165}, {"A10", 125}, {"A10G", 70}, {"A40", 150}, {"RTX A6000", 155}, {"L4", 121},
    {"L40", 181}, {"L40S", 362}, {"RTX 6000 Ada", 364}, {"RTX 3090 Ti", 80}, {"RTX 3090", 71},
    {"RTX 4090 D", 147}, {"RTX 4090", 165}, {"RTX 5090 D", 0}, {"RTX 5090", 210},
    {"H100 PCIe", 756}, {"H800 PCIe", 756}, {"H100 NVL", 835}, {"H200 NVL", 835}, {"H100", 989},
    {"H800", 989}, {"H200", 989}, {"GH200", 989}, {"H20", 148}, {"B200", 2250}, {"B300", 2250},
    {"GB200", 2500}, {"GB300", 2500}};

inline bool has_words(std::string name, const char* words) {
  std::replace(name.begin(), name.end(), '-', ' ');
  return cat(" ", name, " ").find(cat(" ", words, " ")) != name.npos;
}

// kilohertz: its highest clock
inline double cuda_peak_flops(const cudaDeviceProp& gpu, int kilohertz, Dtype dtype) {
  if (dtype == Dtype::f32) {  // a multiply-add a tick on each core of each multiprocessor
    const int cores = gpu.major == 7 || (gpu.major == 8 && gpu.minor == 0) ? 64 : 128;
    return 2e3 * kilohertz * cores * gpu.multiProcessorCount;
  }
  for (const CudaPeak& p : kCudaPeaks)
    if (dtype == Dtype::bf16 && has_words(gpu.name, p.words)) return p.bf16 * 1e12;
  return 0;
}

// of the GPU's memory, a second; it takes two words of its width a tick
inline double cuda_peak_bytes(const cudaDeviceProp& gpu, int index) {
  if (has_words(gpu.name, "MIG")) return 0;
  int kilohertz = 0, bits = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, index));
  CUDA_CHECK(cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, index));
  return 2e3 * kilohertz * bits / 8;
}

}  // namespace duet
