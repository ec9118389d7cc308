// A build without nvcc has no GPU, and says so where one is asked for.
// Read next: compile_cuda.cuh.
#include "model/machine/device.h"

namespace duet {

int cuda_device_count() { return 0; }
bool cuda_has_bf16() { return false; }

std::unique_ptr<Device> make_cuda_device(int, int, int) {
  throw UsageError(
      "--device cuda: this binary was built without CUDA; use --device cpu, or build where nvcc is "
      "found");
}

}  // namespace duet
