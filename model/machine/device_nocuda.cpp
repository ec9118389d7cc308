// A build without nvcc has no GPU.
#include "model/machine/device.h"

namespace duet {

int cuda_device_count() { return 0; }

std::unique_ptr<Device> make_cuda_device(int) {
  throw UsageError(
      "--device cuda: this binary was built without CUDA; use --device cpu, or build where nvcc is "
      "found");
}

}  // namespace duet
