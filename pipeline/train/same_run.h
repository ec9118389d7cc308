// What makes a run the same run: from a checkpoint to what resumes it, and from rank to rank.
//
//   definition   seed, tokens, sequence and segment length, global batch: resuming with others
//                would go on with other batches, and is refused
//   options      what else its numbers depend on: the learning rate and the like. They may change,
//                and the run says so
//
// Layout, schedule, threads, transport and the like are neither: they change no bit. But the ranks
// of a run, where they are processes, were each told for themselves, and must have been told the
// same.
// Read next: run_folder.h.
#pragma once
#include <string>
#include <vector>

#include "comm/comm.h"
#include "model/base/json.h"
#include "pipeline/train/job.h"

namespace duet {

// Members of trainer.json.
Json run_definition(const Job& job);
Json run_options(const Job& job);  // its "options", by name

// Throws UsageError that names the option and both values where `trainer`, the trainer.json of
// `dir`, is another run's. Returns a line for each option that has changed.
std::vector<std::string> check_same_run(
    const Job& job, const Json& trainer, const std::string& dir);

// Throws UsageError that names the option, two ranks and their values where the ranks of the world
// were not told the same, or read other data. Paths, threads and devices may differ. Collective.
void require_same_job(Comm& world, const Job& job);
// Likewise where the directories are not the same checkpoint.
void require_same_checkpoint(Comm& world, const std::string& option, const std::string& dir);

}  // namespace duet
