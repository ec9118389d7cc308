// The command `duet schedule`: checks a schedule, times it and draws it; with `compare`, sets all
// of them side by side.
//
// Without options it is a demonstration: DualPipe on 8 ranks with 20 microbatches, in the terminal.
//   text  the grid, then each rank's bubble and activations
//   csv   PyTorch's pipelining CSV, which reads back
//   json  {"schedule","pp","microbatches","ranks":[["0F0",...],...],"makespan",
//         "bubble_fraction","peak_activations"}
//   svg   the picture
//
// Costs are one set for all stages, or a profile of each (pipeline/schedule/profile.h), whose times
// the command line gives in milliseconds.
//
// With `compare` every schedule does the same work: the same microbatches through the same model on
// the same ranks. The costs are then those of one pp-th of the model, and a stage that is 1/k of
// the model costs pp/k times that. One activation counts as one microbatch in one pp-th of the
// model.
// Read next: loads.h.
#pragma once
#include <iosfwd>
#include <string>

#include "model/base/text.h"
#include "pipeline/insight/pictures/paint.h"

namespace duet {

void add_schedule_command(CLI::App& duet, int& exit_status);

struct ScheduleOptions {
  // a name or FILE.csv; with compare, names with commas between. "": dualpipe; with compare, all
  std::string schedule = "";
  int pp = 0;              // 0: 8, or what the file says
  int microbatches = 0;    // 0: 20 or, from 11 ranks on, 2 a rank; or what the file says
  int virtual_stages = 2;  // interleaved: stages per rank
  CostProfile cost = {{StageCosts()}};
  Format format = Format::text;  // with compare not csv
  bool compare = false;
};

// The value of --cost: keys with values (profile.h), or FILE.json, a profile, in milliseconds.
CostProfile read_costs(const std::string& text);

// Throws UsageError for wrong options and for a schedule that the checker refuses; nothing is
// written then.
void schedule_command(const ScheduleOptions& options, std::ostream& out, const Terminal& terminal);

}  // namespace duet
