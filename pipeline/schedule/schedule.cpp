// See schedule.h. Schedules by name and from files.
#include "pipeline/schedule/schedule.h"

#include <algorithm>
#include <fstream>
#include <istream>
#include <ostream>

#include "model/base/text.h"
#include "pipeline/schedule/published/published.h"

namespace duet {
namespace {

// of a stage or microbatch number in a file: a typing error, not a schedule
constexpr int kLargest = 1 << 20;
constexpr int64_t kMostActions = 1 << 24;  // of a schedule that fits into memory

std::vector<Action> read_row(const std::string& line, const std::string& where) {
  std::vector<Action> row;
  int column = 0;
  for (const std::string& cell : split(line)) {
    ++column;
    if (cell.empty()) continue;
    const auto action = parse_action(cell);
    require(action.has_value(), where, ", cell ", column,
        ": expected an action such as 0F1, 2I0, 2W0, 2B0 or ", "(0F1;7B0)OVERLAP_F_B, found ",
        cell);
    require(!action->is_comm(), where, ", cell ", column, ": found ", cell,
        "; leave sends and receives out, duet adds them");
    const int largest =
        std::max({action->stage, action->microbatch, action->b_stage, action->b_microbatch});
    require(largest < kLargest, where, ", cell ", column, ": expected numbers below ", kLargest,
        ", found ", cell);
    row.push_back(*action);
  }
  return row;
}

// Stages are where their actions stand. In a schedule of two directions every microbatch of the
// second half visits the second half of the stages and none of the first; in one direction half of
// all actions do. A few wrong cells must not change how the rest is read (the checker is to name
// them), hence three quarters.
void infer_placement(Schedule& s) {
  for (int rank = 0; rank < s.pp; ++rank) {
    for (const Action& action : s.ranks[rank]) {
      for_parts(action, [&](const Action& part) {
        if (part.stage >= s.stages()) s.rank_of.resize(part.stage + 1, -1);
        if (s.rank_of[part.stage] < 0) s.rank_of[part.stage] = rank;
      });
    }
  }
  int total = 0, matching = 0;
  for (const auto& row : s.ranks) {
    for (const Action& action : row) {
      for_parts(action, [&](const Action& part) {
        ++total;
        matching += s.second_half(part.microbatch) == (part.stage >= s.stages() / 2);
      });
    }
  }
  s.two_directions = s.stages() % 2 == 0 && s.microbatches > 1 && 4LL * matching > 3LL * total;
}

}  // namespace

const std::vector<ScheduleKind>& schedule_kinds() {
  static const std::vector<ScheduleKind> kinds = {{"gpipe", "GPipe", gpipe},
      {"1f1b", "1F1B", one_f_one_b}, {"interleaved", "Interleaved 1F1B", interleaved},
      {"zb1p", "ZB1P", zb1p}, {"zbv", "ZBV", zbv}, {"dualpipe", "DualPipe", dualpipe},
      {"dualpipev", "DualPipeV", dualpipev}};
  return kinds;
}

Schedule make_schedule(const std::string& name, const ScheduleSize& size) {
  if (name.ends_with(".csv")) {
    std::ifstream file(name);
    require(file.good(), "--schedule: cannot open ", name);
    Schedule s = read_csv(file, name);
    require(
        size.pp == 0 || size.pp == s.pp, "--pp: ", name, " has ", s.pp, " ranks, found ", size.pp);
    require(size.microbatches == 0 || size.microbatches == s.microbatches, "--microbatches: ", name,
        " has ", s.microbatches, ", found ", size.microbatches);
    return s;
  }
  require(size.pp >= 1 && size.pp <= 4096, "--pp: expected 1 to 4096 ranks, found ", size.pp);
  require(size.microbatches >= 1 && size.microbatches <= kLargest, "--microbatches: expected 1 to ",
      kLargest, ", found ", size.microbatches);
  require(int64_t(size.pp) * size.virtual_stages <= kMostActions / size.microbatches,
      "--microbatches: found ", size.microbatches, " through ", size.pp, " ranks of ",
      size.virtual_stages, " stages, allowed: products of the three up to ", kMostActions);
  std::string names;
  for (const ScheduleKind& kind : schedule_kinds()) {
    if (name == kind.name) return kind.make(size);
    names += cat(kind.name, ", ");
  }
  throw UsageError(
      cat("--schedule: expected ", names, "or a file that ends in .csv, found ", shortened(name)));
}

Schedule read_csv(std::istream& in, const std::string& name) {
  Schedule s;
  s.name = name;
  int line_number = 0;
  for (std::string line; std::getline(in, line);) {
    const std::string where = cat(name, ":", ++line_number);
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!line.starts_with("#") && line.find_first_not_of(" \t") != line.npos)
      s.ranks.push_back(read_row(line, where));
  }
  s.pp = int(s.ranks.size());
  for (const auto& row : s.ranks) {
    for (const Action& a : row)
      s.microbatches = std::max({s.microbatches, a.microbatch + 1, a.b_microbatch + 1});
  }
  require(s.microbatches > 0, name, ": expected one row of actions for each rank, found none");
  infer_placement(s);
  for (int stage = 0; stage < s.stages(); ++stage)
    require(
        s.rank_of[stage] >= 0, name, ": stage ", stage, " is missing: no row has an action of it");
  return s;
}

void write_csv(std::ostream& out, const Schedule& s) {
  for (const auto& row : s.ranks) {
    for (size_t i = 0; i < row.size(); ++i) out << (i ? "," : "") << to_string(row[i]);
    out << "\n";
  }
}

}  // namespace duet
