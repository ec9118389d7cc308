// Layouts of a batch, for the tests of the exactness ladder's first row: over threads
// (layouts_test.cpp), MPI (mpi_run_test.cpp) and NCCL (emulated/nccl_test.cpp).
#pragma once
#include <random>

#include "pipeline/train/job.h"

namespace duet {

// pp, dp and ep of 1, 2 and 4 as far as eight ranks go, each once where the schedule exists for it.
// What else makes a layout is drawn: micro-batch size, replicas that move every 2 steps, whether
// pairs overlap, threads. `batch` is one rank's, in microbatches of one sequence.
inline std::vector<TrainOptions> layouts_of(
    const TrainOptions& batch, const std::string& schedule, std::mt19937& rng) {
  std::vector<TrainOptions> all;
  const auto add_if_legal = [&](TrainOptions o) {
    o.microbatches = batch.microbatches / (o.dp * o.micro_batch_size);
    if (o.ep > o.dp || o.pp * o.dp > 8) return false;
    try {
      make_job(o, false);
    } catch (const UsageError&) {
      return false;
    }
    all.push_back(o);
    return true;
  };
  for (int64_t pp : {1, 2, 4})
    for (int64_t dp : {1, 2, 4})
      for (int64_t ep : {1, 2, 4}) {
        TrainOptions o = batch;
        o.schedule = schedule;
        o.pp = pp, o.dp = dp, o.ep = ep;
        const uint32_t drawn = uint32_t(rng());
        if (drawn & 1) o.redundant_experts = std::max<int64_t>(2, ep), o.balancer.interval = 2;
        o.balancer.threshold = 1;
        o.overlap = drawn & 2;
        o.threads = 1 + (drawn >> 2) % 2;
        for (uint32_t i = 0; i < 3; ++i) {
          o.micro_batch_size = 1 << (drawn + i) % 3;
          if (add_if_legal(o)) break;
        }
      }
  return all;
}

// Of n, n + 1, ... each has the next schedule, and any of its layouts.
inline TrainOptions nth_layout(const TrainOptions& batch, uint32_t n) {
  const std::vector<ScheduleKind>& kinds = schedule_kinds();
  std::mt19937 rng(n);
  const std::vector<TrainOptions> all = layouts_of(batch, kinds[n % kinds.size()].name, rng);
  return all[rng() % all.size()];
}

inline std::string text_of(const TrainOptions& o) {
  return cat(o.schedule, ": pp ", o.pp, ", dp ", o.dp, ", ep ", o.ep, ", ", o.micro_batch_size,
      " sequences, ", o.redundant_experts, " redundant, overlap ", o.overlap, ", ", o.threads,
      " threads");
}

}  // namespace duet
