// The simulator: runs a schedule against costs and says when everything happens.
//
// A rank does one action at a time, in its list's order, as early as it can; what another rank made
// arrives a message's time later. With one entry for all stages and messages that take no time it
// is the model in which papers state their bubbles, in any unit (the text speaks of F = 1).
// Read next: layout.h.
#pragma once
#include <numeric>
#include <vector>

#include "pipeline/schedule/profile.h"

namespace duet {

struct Span {
  double start, end;
};

struct Timing {
  double makespan = 0;                   // from 0 to the last end
  std::vector<std::vector<Span>> spans;  // [pp], as schedule.ranks
  std::vector<double> bubble_fraction;   // [pp]: the part of the makespan in which the rank idles
  double bubble() const {                // mean over ranks
    return std::accumulate(bubble_fraction.begin(), bubble_fraction.end(), 0.0) /
        bubble_fraction.size();
  }
};

// Requires a schedule that passed the checker, and a profile of one stage or of as many as the
// schedule cuts the model into. About 100 ns an action.
Timing simulate(const Schedule& schedule, const CostProfile& profile);

// From a rank's first action to its last, of the rank that takes longest: the step, where ranks
// start their next one while others finish this one.
double longest_span(const Timing& timing);

}  // namespace duet
