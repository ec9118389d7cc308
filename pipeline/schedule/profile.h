// A cost profile: what each stage's actions take and what a message between ranks takes, in
// seconds. The simulator runs a schedule against it. `duet plan --write-profile` writes one, of a
// model; `duet analyze --profile` another, of a trace; `duet schedule --cost`, `duet plan
// --profile` and `duet train --rehearse` read both.
//
//   {"unit": "s", "stages": [{"F": 0.011, "I": 0.011, "W": 0.008, "FB": 0.03}, ...],
//    "message": {"F": 0.0004, "B": 0.0004}}
//
// Stages are the model's, in order: both copies of a stage under DualPipe share an entry. A single
// entry is every stage's. "message" may be missing, and other members are of no concern here. FB is
// what F overlapped with B (I and W) takes where both have the same entry; a pair of entries s and
// t takes
//   F(s) + B(t) - the mean of what the two save, but no less than the longer of F(s) and B(t).
//
// On the command line a single entry may stand as "F=1,I=1,W=1,FB=2.4", in any unit. Costs are from
// 1e-12 to 1e9; but in a profile I or W, FB and messages may be 0.
// Read next: simulator.h.
#pragma once
#include <string>
#include <vector>

#include "model/base/json.h"
#include "pipeline/schedule/schedule.h"

namespace duet {

struct StageCosts {
  double F = 1, I = 1, W = 1;
  double FB = 3;  // an overlapped pair; F + B: nothing is hidden

  double B() const { return I + W; }
  double saved() const { return F + I + W - FB; }
  StageCosts scaled(double factor) const {
    return {F * factor, I * factor, W * factor, FB * factor};
  }
};

struct CostProfile {
  std::vector<StageCosts> stages;                    // [model stages], or one for all of them
  double forward_message = 0, backward_message = 0;  // between stages on different ranks

  bool fits(const Schedule& schedule) const;
  const StageCosts& of_stage(int model_stage) const {
    return stages[stages.size() == 1 ? 0 : size_t(model_stage)];
  }
  double of(const Schedule& schedule, const Action& action) const;
};

// Throw UsageError naming the file and the field.
CostProfile read_profile(const std::string& path);
Json to_json(const StageCosts& costs);
std::string write_profile(const CostProfile& profile);  // the text of the file
// Keys in any order; those left out are 1, and FB is F + B. Throws UsageError.
StageCosts parse_costs(const std::string& text);

}  // namespace duet
