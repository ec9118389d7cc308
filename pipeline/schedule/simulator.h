// The simulator: runs a schedule against costs and says when everything happens.
//
// Each action takes a fixed time, messages take none, a rank does one action at a time, in its
// list's order, as early as it can. That is the model in which papers state their bubbles; what a
// real run adds (latency, uneven stages) is seen in its trace. Units: any; the text speaks of F =
// 1.
// Read next: layout.h.
#pragma once
#include <numeric>
#include <string>
#include <vector>

#include "pipeline/schedule/schedule.h"

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

}  // namespace duet
