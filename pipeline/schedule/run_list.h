// Runs a schedule without time: each rank does its list in order, an action as soon as the data it
// needs exist.
//
// What an action needs (the rules of pipeline training, nothing else):
//   F of a stage     the F of the stage before, unless the microbatch starts here
//   I or B           its own F, and the I or B of the stage after, unless the microbatch ends here
//   W                its own I
// A pair needs what both of its parts need when it starts, and both are done when it ends.
//
// The order of visits is one in which everything comes after what it needs: the simulator adds the
// clock. If ranks are left that wait for each other, the schedule deadlocks, whatever the costs.
// Read next: add_comms.h.
#pragma once
#include <functional>
#include <optional>
#include <vector>

#include "pipeline/schedule/schedule.h"

namespace duet {

// A rank that cannot go on: the action at `index` of its list waits for `missing` (an F, or the I
// that may be part of a B).
struct Stuck {
  int rank;
  int index;
  Action missing;
};

// Calls need(kind, stage, microbatch) with kind F or I for each of the (at most two) things `part`,
// not a pair, needs.
template <class Need> void for_needs(const Schedule& s, const Action& part, Need need) {
  const int stage = part.stage, m = part.microbatch;
  if (part.kind == Kind::F) {
    if (stage != s.first_stage(m)) need(Kind::F, stage - 1, m);
  } else if (part.kind == Kind::W) {
    need(Kind::I, stage, m);
  } else {
    need(Kind::F, stage, m);
    if (stage != s.last_stage(m)) need(Kind::I, stage + 1, m);
  }
}

// Numbers what actions make, outputs of F and input gradients of I or B: 0 .. 2 S M - 1.
inline size_t result_id(const Schedule& s, Kind kind, int stage, int microbatch) {
  return (size_t(kind != Kind::F) * s.stages() + stage) * s.microbatches + microbatch;
}

// Lets every rank act down its list until none can go on, in sweeps up and down the ranks, as data
// go: published schedules take time linear in their actions. act(rank, index) does an action and
// returns nothing, or says what it misses. Returns the ranks that are stuck, none if all lists ran
// to their ends.
std::vector<Stuck> sweep(
    const Schedule& schedule, const std::function<std::optional<Action>(int rank, int index)>& act);

// Requires compute actions whose stages and microbatches are in range. Visits each action at most
// once; returns as sweep.
std::vector<Stuck> run_list(
    const Schedule& schedule, const std::function<void(int rank, int index)>& visit);

}  // namespace duet
