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
#include <iosfwd>

#include "pipeline/train/options.h"

namespace duet {

void add_bench_command(CLI::App& duet, int& exit_status);

// Of `train`'s options those that --help lists count; `steps` are timed, after one that is not, and
// the median counts.
inline const TrainOptions kBenchOptions = {
    .preset = "bench", .microbatches = 1, .steps = 5, .dp = 1, .threads = 1};
void bench_command(TrainOptions options, std::ostream& out);

}  // namespace duet
