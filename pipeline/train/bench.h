// `duet bench`: how fast this machine trains. One JSON line a measurement; scripts/bench.sh and
// gpu_day.sh put PyTorch's beside it. Not the speed of products alone (test/study/gemm_bench.h).
//
// On CUDA the line also says where a step's time goes, kind by kind and operation by operation (a
// call may be two or three launches), and what part of the speed of light each reaches: FLOP/s of
// the datasheet's, or bytes/s of the memory's; and how many GB adding exact sums reads and writes.
// That is of one more step, in which each call stands between two events; these take some
// microseconds, and where the GPU waits for the host, so does the kernel.
// Read next: test/exactness_test.cpp.
#pragma once
#include <cstdint>
#include <iosfwd>
#include <string>

#include "pipeline/train/options.h"

namespace CLI {
class App;
}

namespace duet {

void add_bench_command(CLI::App& duet, int& exit_status);

struct BenchOptions {
  std::string preset = "bench";
  Sizes model;  // as in train
  int64_t threads = 1;
  int64_t steps = 5;                 // timed, after one that is not; the median counts
  int64_t microbatches = 1;          // per step
  int64_t micro_batch_size = 0;      // 0: the preset's
  std::optional<DeviceKind> device;  // as in train, like dtype
  std::optional<Dtype> dtype;
};
void bench_command(const BenchOptions& options, std::ostream& out);

}  // namespace duet
