// What a GPU can do at most: the speed of light that its kernels are measured by. Arithmetic is the
// datasheet's, memory what the GPU says of itself. 0 where unknown, and of a part of a GPU (MIG).
// Read next: device_cuda.cu.
#pragma once
#include <cuda_runtime.h>

#include <string>

#include "model/machine/cuda_check.h"
#include "model/machine/tensor.h"

namespace duet {

// NVIDIA's dense peaks in TFLOP/s, fp64 as cuBLAS computes it, on tensor cores; the first name
// found counts.
struct CudaPeaks {
  const char* name;
  double bf16, f32, f64;
};
inline constexpr CudaPeaks kCudaPeaks[] = {
    {"H100 PCIe", 756, 51, 51},
    {"H100 NVL", 835, 60, 60},
    {"H200 NVL", 835, 60, 60},
    {"H800 PCIe", 756, 51, 0.8},
    {"H100", 989, 67, 67},
    {"H200", 989, 67, 67},
    {"H800", 989, 67, 1},
    {"A100", 312, 19.5, 19.5},
};

inline double cuda_peak_flops(const std::string& gpu, Dtype dtype) {
  if (gpu.find("MIG") != gpu.npos) return 0;
  for (const CudaPeaks& p : kCudaPeaks)
    if (gpu.find(p.name) != gpu.npos)
      return 1e12 * (dtype == Dtype::bf16 ? p.bf16 : dtype == Dtype::f64 ? p.f64 : p.f32);
  return 0;
}

// of the GPU's memory, a second; it takes two words of its width a tick
inline double cuda_peak_bytes(const std::string& gpu, int index) {
  if (gpu.find("MIG") != gpu.npos) return 0;
  int kilohertz = 0, bits = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, index));
  CUDA_CHECK(cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, index));
  return 2e3 * kilohertz * bits / 8;
}

}  // namespace duet
