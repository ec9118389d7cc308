// See schedule.h. Schedules by name and from files.
#include "pipeline/schedule/schedule.h"

#include <algorithm>
#include <map>
#include <ostream>
#include <sstream>

#include "model/base/read_file.h"
#include "model/base/text.h"
#include "pipeline/schedule/published/published.h"

namespace duet {
namespace {

// of a stage or microbatch number in a file: a typing error, not a schedule
constexpr int kLargest = 1 << 20;
constexpr int64_t kMostActions = 1 << 24;  // of a schedule that fits into memory
constexpr int64_t kActionBytes = 256;      // of one through checker, messages and simulator, about

struct Place {
  int rank = 0, column = 0;
};

// What PyTorch adds to a lowered schedule beside sends and receives: a stage's weights gathered and
// let go, its gradients reduced, a send waited for. As that send, or as one of microbatch -1.
std::optional<Action> parse_upkeep(std::string cell) {
  for (const std::string_view name : {"UNSHARD", "RESHARD", "REDUCE_GRAD", "WAIT_REDUCE_GRAD"}) {
    if (!cell.ends_with(name)) continue;
    const auto stage = parse_number<int>(cell.substr(0, cell.size() - name.size()));
    if (stage) return Action{Kind::SEND_F, *stage, -1};
  }
  const size_t wait = cell.find("WAIT_SEND_");
  return wait == cell.npos ? std::nullopt : parse_action(cell.erase(wait, 5));
}

// A cell that is no computation.
struct Aside {
  std::string found;
  Place at;
  Action action;
};

class CsvReader {
 public:
  Schedule read(const std::string& text, const std::string& name) {
    s_.name = name;
    std::istringstream in(text);
    std::vector<std::string> rows;
    std::string all;
    int number = 0;
    for (std::string line; std::getline(in, line);) {
      ++number;
      if (line.starts_with("#") || trimmed(line).empty()) continue;
      s_.lines.push_back(number);
      all += rows.emplace_back(line);
    }
    // PyTorch 2.5 and before wrote B for the backward for inputs and BW for the full one. (Where a
    // later one waits, I is in WAIT.)
    old_ = all.find('W') != all.npos && all.find('I') == all.npos;
    for (const std::string& row : rows) read_row(row);
    require(
        !microbatches_.empty(), s_.name, ": expected one row of actions for each rank, found none");
    expect_no_gap(stages_, "stage");
    expect_no_gap(microbatches_, "microbatch");
    s_.microbatches = int(microbatches_.size());
    // stages are where their actions stand
    for (const auto& [stage, place] : stages_) s_.rank_of.push_back(place.rank);
    find_directions();
    for (const auto& [message, place] : messages_) {
      Action other = message;
      other.kind = Kind(int(message.kind) + (is_send(message.kind) ? 1 : -1));
      other.stage = other_stage(message);
      require(messages_.contains(other), where(place), ": found ", to_string(message),
          ", but no cell has ", to_string(other), ", the other end of the message");
    }
    return s_;
  }

 private:
  // In a schedule of two directions every microbatch of the second half visits the second half of
  // the stages and none of the first; in one direction half of all actions do. A few wrong cells
  // must not change how the rest is read (the checker is to name them), hence three quarters.
  void find_directions() {
    int64_t total = 0, matching = 0;
    for_all_parts(s_, [&](int, int, const Action& part) {
      ++total;
      matching += s_.second_half(part.microbatch) == (part.stage >= s_.stages() / 2);
    });
    s_.two_directions = s_.stages() % 2 == 0 && s_.microbatches > 1 && 4 * matching > 3 * total;
  }

  std::string where(const Place& at) const {
    return cat(s_.name, ":", s_.lines[at.rank], ", cell ", at.column);
  }

  void read_row(const std::string& line) {
    std::vector<Action>& row = s_.ranks.emplace_back();
    std::vector<int>& cells = s_.cells.emplace_back();
    std::vector<Aside> asides;
    Place at{s_.pp++, 0};
    for (std::string cell : split(line)) {
      ++at.column;
      if (cell.empty()) continue;
      const std::string found = shortened(cell);
      const size_t full = old_ ? cell.find("BW") : cell.npos;
      if (full != cell.npos) cell.erase(full + 1, 1);
      std::optional<Action> action = parse_action(cell);
      const bool upkeep = !action && (action = parse_upkeep(cell));
      require(action.has_value(), where(at),
          ": expected an action such as 0F1, 2I0, 2W0, 2B0 or (0F1;7B0)OVERLAP_F_B, found ", found);
      if (old_ && full == cell.npos && action->kind == Kind::B) action->kind = Kind::I;
      const int largest =
          std::max({action->stage, action->microbatch, action->b_stage, action->b_microbatch});
      require(
          largest < kLargest, where(at), ": expected numbers below ", kLargest, ", found ", found);
      if (action->is_comm()) {
        asides.push_back({found, at, *action});
        require(upkeep || messages_.emplace(*action, at).second, where(at), ": found ", found,
            " a second time");
        continue;
      }
      row.push_back(*action);
      cells.push_back(at.column);
      for_parts(*action, [&](const Action& part) {
        stages_.try_emplace(part.stage, at);
        microbatches_.try_emplace(part.microbatch, at);
      });
    }
    if (!asides.empty()) expect_in_place(asides);
  }

  // Of the row just read: a send stands after what it sends, a receive before what needs it.
  void expect_in_place(const std::vector<Aside>& asides) const {
    std::map<Action, int> cell_of;  // each F, and each I or B as an I
    std::set<int> stages;
    for (size_t i = 0; i < s_.cells.back().size(); ++i)
      for_parts(s_.ranks.back()[i], [&](const Action& part) {
        stages.insert(part.stage);
        if (part.kind == Kind::W) return;
        const Kind made = part.kind == Kind::F ? Kind::F : Kind::I;
        cell_of.try_emplace({made, part.stage, part.microbatch}, s_.cells.back()[i]);
      });
    for (const auto& [found, at, a] : asides) {
      require(stages.contains(a.stage), where(at), ": found ", found,
          " in a row that does not run stage ", a.stage);
      if (a.microbatch < 0) continue;
      const bool forward = is_forward_message(a.kind);
      const char* const what = forward ? "forward" : "backward";
      const auto own = cell_of.find({forward ? Kind::F : Kind::I, a.stage, a.microbatch});
      require(own != cell_of.end(), where(at), ": found ", found, ", but its row has no ", what,
          " of stage ", a.stage, " for microbatch ", a.microbatch);
      require((own->second < at.column) == is_send(a.kind), where(at), ": found ", found,
          is_send(a.kind) ? " before" : " after", " its ", what, " in cell ", own->second);
    }
  }

  // Names the first cell beyond a gap: what is missing is rarely wrong, a typing error is.
  void expect_no_gap(const std::map<int, Place>& numbers, const char* what) const {
    int next = 0;
    for (const auto& [number, place] : numbers) {
      const std::string missing = number == next + 1
          ? cat(what, " ", next, " is missing")
          : cat(what, what[0] == 's' ? "s " : "es ", next, " to ", number - 1, " are missing");
      require(number == next++, where(place), ": found ", what, " ", number, ", but ", missing,
          ": no row has an action of it");
    }
  }

  Schedule s_;
  bool old_ = false;
  std::map<int, Place> stages_, microbatches_;  // where each comes first
  std::map<Action, Place> messages_;            // sends and receives; duet makes its own
};

}  // namespace

const std::vector<ScheduleKind>& schedule_kinds() {
  static const std::vector<ScheduleKind> kinds = {{"gpipe", "GPipe", gpipe},
      {"1f1b", "1F1B", one_f_one_b}, {"interleaved", "Interleaved 1F1B", interleaved},
      {"zb1p", "ZB1P", zb1p}, {"zb-h2", "ZB-H2", zb_h2}, {"zbv", "ZBV", zbv},
      {"v-half", "V-Half", v_half}, {"v-min", "V-Min", v_min}, {"dualpipe", "DualPipe", dualpipe},
      {"dualpipev", "DualPipeV", dualpipev}};
  return kinds;
}

std::string schedule_names() {
  std::string names;
  for (const ScheduleKind& kind : schedule_kinds())
    names += cat(names.empty() ? "" : ", ", kind.name);
  return names;
}

Schedule make_schedule(const std::string& name, const ScheduleSize& size) {
  if (is_schedule_file(name)) {
    Schedule s = read_csv(read_file(name), file_name(name));
    require(
        size.pp == 0 || size.pp == s.pp, "--pp: ", name, " has ", s.pp, " ranks, found ", size.pp);
    require(size.microbatches == 0 || size.microbatches == s.microbatches, "--microbatches: ", name,
        " has ", s.microbatches, ", found ", size.microbatches);
    return s;
  }
  require(size.pp >= 1 && size.pp <= 4096, "--pp: expected 1 to 4096 ranks, found ", size.pp);
  require(size.microbatches >= 1 && size.microbatches <= kLargest, "--microbatches: expected 1 to ",
      kLargest, ", found ", size.microbatches);
  const int64_t stages = int64_t(size.pp) * size.virtual_stages;
  require(stages <= kMostActions / size.microbatches, "--microbatches: found ", size.microbatches,
      " through ", size.pp, " ranks of ", size.virtual_stages, " stages, whose actions need about ",
      stages * size.microbatches * kActionBytes >> 30,
      " GiB, allowed: products of the three up to ", kMostActions, ", ",
      kMostActions * kActionBytes >> 30, " GiB");
  for (const ScheduleKind& kind : schedule_kinds())
    if (name == kind.name) return kind.make(size);
  throw UsageError(cat("--schedule: expected ", schedule_names(),
      ", or a file that ends in .csv, or - for standard input, found ", shortened(name)));
}

bool is_schedule_file(const std::string& name) { return name == "-" || name.ends_with(".csv"); }

Schedule read_csv(const std::string& text, const std::string& name) {
  return CsvReader().read(text, name);
}

void write_csv(std::ostream& out, const Schedule& s) {
  for (const auto& row : s.ranks) {
    for (size_t i = 0; i < row.size(); ++i) out << (i ? "," : "") << to_string(row[i]);
    out << (row.empty() ? ",\n" : "\n");  // an empty line would be no rank
  }
}

}  // namespace duet
