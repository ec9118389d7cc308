// Job: a training job prepared from its options: what every rank of it reads, checked before the
// first rank starts: data, schedule with its messages, layout, batches. What a rank makes of it is
// a Trainer.
// Read next: stage.h.
#pragma once
#include "comm/comm.h"
#include "data/batch.h"
#include "pipeline/schedule/checker.h"
#include "pipeline/schedule/layout.h"
#include "pipeline/train/options.h"

namespace duet {

struct Job {
  TrainOptions options;  // resolved
  ModelConfig config;
  Layout layout;
  RunOptions run;     // transport, ranks, timeout, link
  Schedule compute;   // as generated or read
  Schedule schedule;  // with sends and receives
  Usage usage;        // what the checker counted
  // what this process may use, asked before emulated links pin ranks; how many ranks share them
  int cores = 1, ranks_on_cores = 1;
  int ranks_here = 1;                 // on this machine
  std::vector<int64_t> layer_bounds;  // [model stages + 1]
  Dataset dataset;
  std::unique_ptr<BatchSource> batches;

  int64_t global_sequences() const;  // of a step
};

// Throws UsageError that names the option for whatever does not fit together. Without data the job
// can only generate.
Job make_job(TrainOptions options, bool with_data = true);

// What a job takes at the least, of all ranks of this process together. make_job holds it against
// the machine, so that sizes that no machine holds are refused by the name of their option instead
// of ending in the middle. Memory is counted by the rows of the table that a run prints; the rest
// of it (scratch, what attention keeps) comes on top. Not a prediction of what a job takes.
struct Need {
  double weights = 0, gradients = 0, moments = 0, activations = 0;  // bytes
  double all() const { return weights + gradients + moments + activations; }
  int64_t threads = 0;
};
Need need_of(const Job& job);  // whose model, layout and transport are known

// The ranks that exchange messages: those with neighbouring stages and, where experts move or have
// replicas, all of an expert-parallel group.
std::vector<std::pair<int, int>> message_pairs(const Job& job);

// The rank's device as the options say; GPUs go round the ranks on a machine.
std::unique_ptr<Device> make_device(const Job& job, const Comm& world);
int threads_per_rank(const Job& job);
// Why times of this job's ranks say nothing about a real cluster ("4 ranks share 2 cores"); empty
// where each has its own cores.
std::string why_not_timed(const Job& job);

}  // namespace duet
