// The checker: refuses a wrong schedule before anything is trained with it, and counts what a right
// one holds.
//
// A schedule is right if
//   - every (stage, microbatch) that is visited has one F, then either one B or one I and one W,
//     all on the stage's rank;
//   - no rank waits for ever: decided by running the lists without time (run_list.h), so whatever
//     things cost;
//   - with the messages added, none is left over and no queue of them blocks another (run_comms in
//     add_comms.h).
//
// What it counts, per rank:
//   activations  from the F of a microbatch and stage to its W (or B); one is what a stage keeps of
//                one microbatch
// Read next: simulator.h.
#pragma once
#include <algorithm>
#include <vector>

#include "pipeline/schedule/schedule.h"

namespace duet {

struct Usage {
  std::vector<int> peak_activations;  // [pp]
  int peak() const { return *std::max_element(peak_activations.begin(), peak_activations.end()); }
};

// Throws UsageError: what is wrong in the first line, then the ranks' lists with the cells in
// question marked >like this<.
Usage check(const Schedule& schedule);

}  // namespace duet
