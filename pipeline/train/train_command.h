// `duet train`: a run from its first line to its last.
//
//   job (data, schedule, ranks) -> on every rank: weights (initial, --init or --resume) -> steps,
//     checkpoints -> a sample
//
// A run with --out keeps OUT/metrics.jsonl and OUT/step-NNNNNN/ (run_folder.h). SIGINT and SIGTERM
// let the step finish, or if it takes more than a second give it up, write a checkpoint of the last
// step done and say how to go on.
// Read next: compare_command.h.
#pragma once
#include <iosfwd>

#include "pipeline/train/options.h"

namespace duet {

void add_train_command(CLI::App& duet, int& exit_status);

// Lines go to `out`. Throws UsageError for wrong input (nothing is written then), Error where the
// run fails. Returns the exit status: 0, or 128 + the signal that stopped the run.
int train_command(const TrainOptions& options, std::ostream& out);

}  // namespace duet
