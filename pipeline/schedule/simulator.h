// The simulator: runs a schedule against costs and says when everything happens.
//
// A rank does one action at a time, in its list's order, as early as it can. Against Costs all
// stages cost the same and messages take no time: the model in which papers state their bubbles, in
// any unit (the text speaks of F = 1). Against a CostProfile each stage has its own costs, and what
// another rank made arrives a message's time later.
// Read next: layout.h.
#pragma once
#include <numeric>
#include <string>
#include <vector>

#include "pipeline/schedule/profile.h"

namespace duet {

struct Costs {
  double F = 1;
  double I = 1;
  double W = 1;
  double FB = 3;  // an overlapped pair; F + B: nothing is hidden

  double B() const { return I + W; }
  double of(const Action& action) const;
  Costs scaled(double factor) const { return {F * factor, I * factor, W * factor, FB * factor}; }
};

// "F=1,I=1,W=1,FB=2.4", any of them in any order; the rest are 1, and FB is F + I + W. Throws
// UsageError.
Costs parse_costs(const std::string& text);

struct Span {
  double start, end;
};

struct Timing {
  double makespan = 0;                   // from 0 to the last end
  std::vector<std::vector<Span>> spans;  // [pp], as schedule.ranks
  std::vector<double> bubble_fraction;   // [pp]: the part of the makespan in which the rank idles
  double idle(int rank) const { return makespan * bubble_fraction[rank]; }
  double bubble() const {  // mean over ranks
    return std::accumulate(bubble_fraction.begin(), bubble_fraction.end(), 0.0) /
        bubble_fraction.size();
  }
};

// Requires a schedule that passed the checker. About 100 ns an action.
Timing simulate(const Schedule& schedule, const Costs& costs);
// Requires besides that the profile has one stage, or as many as the schedule cuts the model into.
Timing simulate(const Schedule& schedule, const CostProfile& profile);

}  // namespace duet
