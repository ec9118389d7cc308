// A schedule is plain data: for every rank, the list of what it does, in order.
//
// The same list is read by the checker (checker.h), the simulator (simulator.h), the painters
// (insight/pictures/paint.h) and the executor (train/executor.h). It holds no time: an action
// starts when the one before it on its rank and the data it needs are done.
//
// Stages are *virtual stages*, numbered in the order in which a microbatch visits them;
// rank_of[stage] says who runs each.
//   one direction    every microbatch visits stages 0 .. S-1; stage s computes the s-th of S parts
//                    of the model
//   two directions   (DualPipe) microbatches 0 .. M/2-1 visit stages 0 .. S/2-1, microbatches M/2
//                    .. M-1 visit S/2 .. S-1; stages s and S/2+s compute the same s-th of S/2
//                    parts: two copies of its weights, on mirrored ranks
//
// Files are PyTorch's pipelining CSV: one row a rank, one cell an action, empty cells are idle. Who
// runs a stage is seen from the rows, and the directions from the (stage, microbatch) set: DualPipe
// and a V share their stage numbers and differ in that. Sends and receives must match and are left
// out, for duet adds its own; so is what else stands in a lowered schedule (UNSHARD, WAIT_SEND_F).
// A file with W and without I is one of PyTorch 2.5 or before, whose B is I and whose BW is B.
// Read next: published/published.h.
#pragma once
#include <iosfwd>
#include <set>
#include <string>
#include <vector>

#include "model/base/check.h"
#include "pipeline/schedule/action.h"

namespace duet {

struct Schedule {
  std::string name;  // of the generator, or the file's
  int pp = 0;
  int microbatches = 0;
  bool two_directions = false;
  std::vector<int> rank_of;                // [stages]
  std::vector<std::vector<Action>> ranks;  // [pp], each any length
  // of the file, where it came from one; both from 1
  std::vector<int> lines;               // [pp]
  std::vector<std::vector<int>> cells;  // [pp], as ranks; empty ones are counted

  int stages() const { return int(rank_of.size()); }
  // parts the model is cut into
  int model_stages() const { return two_directions ? stages() / 2 : stages(); }
  // which of them `stage` computes
  int model_stage(int stage) const { return stage % model_stages(); }
  int weight_copies() const { return two_directions ? 2 : 1; }
  // the ranks that have a part of the model, ascending: two as a rule where there are two
  // directions
  std::vector<int> ranks_of(int model_stage) const {
    std::set<int> ranks;
    for (int s = model_stage; s < stages(); s += model_stages()) ranks.insert(rank_of[size_t(s)]);
    return {ranks.begin(), ranks.end()};
  }
  // a stage as a part of a pp-th of the model
  double stage_share() const { return double(pp) / model_stages(); }
  // 0 or 1: of two directions, the one that the microbatch goes in
  int second_half(int microbatch) const { return microbatch >= microbatches / 2; }
  int first_stage(int microbatch) const {
    return two_directions && second_half(microbatch) ? stages() / 2 : 0;
  }
  int last_stage(int microbatch) const { return first_stage(microbatch) + model_stages() - 1; }
  bool visits(int stage, int microbatch) const {
    return stage >= first_stage(microbatch) && stage <= last_stage(microbatch);
  }
};

// Calls visit(rank, index, part) for the parts of all actions, rank after rank.
template <class Visit> void for_all_parts(const Schedule& s, Visit visit) {
  for (int rank = 0; rank < s.pp; ++rank)
    for (int i = 0; i < int(s.ranks[rank].size()); ++i)
      for_parts(s.ranks[rank][i], [&](const Action& part) { visit(rank, i, part); });
}

struct ScheduleSize {
  int pp = 8;
  int microbatches = 20;   // per step, of both directions together
  int virtual_stages = 2;  // stages a rank holds; interleaved only
};

struct ScheduleKind {
  const char* name;   // as in --schedule
  const char* title;  // as in its paper
  Schedule (*make)(const ScheduleSize&);
};
const std::vector<ScheduleKind>& schedule_kinds();  // in the order of their publication
std::string schedule_names();                       // of these, with commas between

// From a generator's name or from a file (whatever ends in .csv; "-" is standard input). For a
// file, sizes that are not 0 must be the file's. Throws UsageError for an unknown name and for
// sizes the schedule does not exist for. What comes from a file is not checked yet.
Schedule make_schedule(const std::string& name, const ScheduleSize& size);

bool is_schedule_file(const std::string& name);

Schedule read_csv(const std::string& text, const std::string& name);
void write_csv(std::ostream& out, const Schedule& schedule);

}  // namespace duet
