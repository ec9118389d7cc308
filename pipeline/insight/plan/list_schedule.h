// Schedules that are published as a rule rather than as a list.
//   zb-h2   ("Zero Bubble Pipeline Parallelism") made by running the rule: a rank takes an I where
//           one is ready, else an F while it keeps fewer than 2P activations, else a W; a W comes
//           right after its I until the last microbatches, whose Is are wanted upstream. On actions
//           of equal cost
//   zb2p    the same on the actions' own costs, the best of a few such rules
//   v-half  ("Pipeline Parallelism with Controllable Memory") two stages a rank in a V; the pattern
//   v-min   of one microbatch is repeated every six actions, and a pattern that is longer keeps
//           more: half, or a third, of 1F1B's activations
// What holds of the published lists (activations, bubble) is tested; the lists themselves differ.
//
// Read next: costs.h.
#pragma once
#include <string>

#include "pipeline/schedule/simulator.h"

namespace duet {

// From a rank's first action to its last, of the rank that takes longest: the step, where ranks
// start their next one while others finish this one.
double longest_span(const Timing& timing);

bool is_list_schedule(const std::string& name);
Schedule list_schedule(const std::string& name, int pp, int microbatches, const StageCosts& costs);

}  // namespace duet
