// What a job takes at the least, told before anything is allocated, so that sizes that no machine
// holds are refused by the name of their option instead of ending in the middle. Memory is counted
// by the rows of the table that a run prints; the rest of it (scratch, what attention keeps) comes
// on top. Not a prediction of what a job takes.
// Read next: job.h.
#pragma once
#include "pipeline/train/job.h"

namespace duet {

struct Need {  // of all ranks of this process together
  // bytes
  double weights = 0, gradients = 0, moments = 0, activations = 0;
  double all() const { return weights + gradients + moments + activations; }
  int64_t threads = 0;
};
// of a job whose model, layout and transport are known
Need need_of(const Job& job);

// Throws UsageError that names the option, what it needs and what this machine has. Of GPUs the
// memory is not known here.
void check_fits(const Job& job);

}  // namespace duet
