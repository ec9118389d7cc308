// What `duet schedule` prints. Read next: README.md, the chapter; then the executor, which runs the same lists.
#include "pipeline/schedule_command.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iomanip>
#include <numeric>
#include <optional>
#include <ostream>
#include <sstream>

#include "pipeline/checker.h"
#include "pipeline/simulator.h"

namespace duet {
namespace {

// A schedule with all that is known about it.
struct Entry {
  Schedule schedule;
  Costs costs;  // of its stages
  Usage usage;
  Timing timing;

  double share() const { return double(schedule.pp) / schedule.model_stages(); }  // of a pp-th of the model, in a stage
  int weight_copies() const { return schedule.two_directions ? 2 : 1; }
  int peak() const { return *std::max_element(usage.peak_activations.begin(), usage.peak_activations.end()); }
  double bubble() const {
    return std::accumulate(timing.bubble_fraction.begin(), timing.bubble_fraction.end(), 0.0) / schedule.pp;
  }
};

Entry make_entry(const std::string& name, const ScheduleSize& size, const Costs& costs, bool equal_work) {
  Entry entry{make_schedule(name, size), costs, {}, {}};
  entry.usage = check(entry.schedule);
  if (equal_work) entry.costs = costs.scaled(entry.share());
  entry.timing = simulate(entry.schedule, entry.costs);
  return entry;
}

std::string fixed(double value, int digits) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(digits) << value;
  return out.str();
}
std::string percent(double fraction) { return fixed(100 * fraction, 1) + "%"; }

// The shortest text that reads back as the same number: "66", "2.4".
std::string number(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += (unsigned char)c < ' ' ? ' ' : c;
  }
  return out + '"';
}

template <class Items, class Format>
std::string json_list(const Items& items, Format format) {
  std::string out;
  for (const auto& item : items) out += (out.empty() ? "" : ", ") + format(item);
  return "[" + out + "]";
}

// For people: at most two decimals, none that are zero. "57.6".
std::string rounded(double value) { return number(std::round(value * 100) / 100); }

std::string describe(const Costs& c) {
  return cat("F=", rounded(c.F), " I=", rounded(c.I), " W=", rounded(c.W), " B=", rounded(c.B()), " FB=", rounded(c.FB));
}

std::string describe_overlap(const Costs& c) {
  const double hidden = 1 - c.FB / (c.F + c.B());
  return std::abs(hidden) < 1e-9 ? "FB = F + B: a pair hides nothing" : cat("a pair saves ", percent(hidden), " of F + B");
}

std::string caption_of(const Entry& e) {
  return cat(e.schedule.pp, " ranks, ", e.schedule.microbatches, " microbatches  ·  time ", rounded(e.timing.makespan),
             "  ·  bubble ", percent(e.bubble()));
}

void print_text(std::ostream& out, const Entry& e, const Terminal& terminal) {
  const Schedule& s = e.schedule;
  out << title_of(s) << ": " << s.pp << " ranks, " << s.microbatches << " microbatches, " << s.stages() << " stages"
      << (s.two_directions ? cat(" in two directions (", s.model_stages(), " parts of the model, each held twice)") : "")
      << "\n\n";
  paint_text(out, s, e.timing, terminal);
  out << "\n F forward  B full backward  I backward for inputs  W backward for weights  [F B] overlapped pair"
      << (terminal.color ? "\n" : "  . idle\n") << " Second " << (s.two_directions ? "direction" : "and later chunks") << ": "
      << (terminal.color ? "darker, and " : "") << "small letters.\n\n rank    bubble   peak activations\n";
  for (int rank = 0; rank < s.pp; ++rank) {
    out << std::setw(5) << rank << std::setw(10) << percent(e.timing.bubble_fraction[rank]) << std::setw(19)
        << e.usage.peak_activations[rank];
    if (e.usage.held_w[rank] > 0) out << "   " << e.usage.held_w[rank] << " Ws held for their predecessors";
    out << "\n";
  }
  out << "\n makespan " << rounded(e.timing.makespan) << ", bubble " << percent(e.bubble()) << ", with "
      << describe(e.costs) << " (" << describe_overlap(e.costs) << ")\n";
}

void print_json(std::ostream& out, const Entry& e) {
  const Schedule& s = e.schedule;
  const auto row = [](const auto& actions) {
    return "\n    " + json_list(actions, [](const Action& action) { return quoted(to_string(action)); });
  };
  const auto integer = [](int value) { return std::to_string(value); };
  out << "{\"schedule\": " << quoted(s.name) << ", \"pp\": " << s.pp << ", \"microbatches\": " << s.microbatches
      << ",\n  \"ranks\": " << json_list(s.ranks, row) << ",\n  \"makespan\": " << number(e.timing.makespan)
      << ",\n  \"bubble_fraction\": " << json_list(e.timing.bubble_fraction, number)
      << ",\n  \"peak_activations\": " << json_list(e.usage.peak_activations, integer)
      << ",\n  \"held_w\": " << json_list(e.usage.held_w, integer) << "}\n";
}

// --- --compare -------------------------------------------------------------------------------------------------------------

struct Comparison {
  std::vector<Entry> entries;
  std::vector<std::string> left_out;  // why
  double baseline = 0;                // makespan of 1F1B
};

Comparison compare(const ScheduleOptions& options, const ScheduleSize& size, const Costs& costs) {
  Comparison result;
  result.baseline = make_entry("1f1b", size, costs, true).timing.makespan;
  if (!options.schedule.empty()) {
    std::istringstream names(options.schedule);
    for (std::string name; std::getline(names, name, ',');) result.entries.push_back(make_entry(name, size, costs, true));
    return result;
  }
  for (const ScheduleKind& kind : schedule_kinds()) {
    try {
      result.entries.push_back(make_entry(kind.name, size, costs, true));
    } catch (const UsageError& why) {
      result.left_out.push_back(why.what());
    }
  }
  return result;
}

// What part of F + B a pair must save for the schedule to be `gain` faster than 1F1B; nothing if no FB >= max(F, B) does it.
std::optional<double> saving_for(double gain, const Entry& e, double baseline) {
  const double none = e.costs.F + e.costs.B(), most = std::max(e.costs.F, e.costs.B());
  const auto reaches = [&](double FB) {
    Costs costs = e.costs;
    costs.FB = FB;
    return baseline / simulate(e.schedule, costs).makespan >= 1 + gain;
  };
  if (!reaches(most)) return std::nullopt;
  double slow = none, fast = most;
  if (reaches(none)) return 0;
  for (int i = 0; i < 20; ++i) (reaches((slow + fast) / 2) ? fast : slow) = (slow + fast) / 2;
  return 1 - fast / none;
}

bool has_pairs(const Schedule& s) {
  const auto overlapped = [](const Action& a) { return a.overlapped(); };
  return std::any_of(s.ranks[0].begin(), s.ranks[0].end(), overlapped);
}

void print_comparison(std::ostream& out, const Comparison& c, const ScheduleSize& size, const Costs& costs) {
  out << size.pp << " ranks, " << size.microbatches << " microbatches, the same model under each\n\n"
      << " schedule          stages  makespan   bubble  activations  weight copies  speed over 1F1B\n";
  for (const Entry& e : c.entries) {
    const double gain = c.baseline / e.timing.makespan - 1;
    out << " " << std::left << std::setw(18) << title_of(e.schedule) << std::right << std::setw(6) << e.schedule.stages()
        << std::setw(10) << fixed(e.timing.makespan, 2) << std::setw(9) << percent(e.bubble()) << std::setw(13)
        << fixed(e.peak() * e.share(), 1) << std::setw(15) << e.weight_copies() << std::setw(17)
        << cat(gain >= -0.0005 ? "+" : "", percent(gain)) << "\n";
  }
  for (const std::string& why : c.left_out) out << " left out: " << why << "\n";
  out << "\n Assumed: one " << size.pp << "-th of the model costs " << describe(costs) << ";\n " << describe_overlap(costs)
      << ". Messages take no time, all stages cost the same.\n"
      << " bubble: mean over ranks. activations: the largest rank's, one = a microbatch in one " << size.pp
      << "-th of the model.\n";
  for (const Entry& e : c.entries) {
    if (!has_pairs(e.schedule)) continue;
    const auto saving = saving_for(0.30, e, c.baseline);
    out << " For +30% over 1F1B a pair of " << title_of(e.schedule) << " must "
        << (saving ? "save " + percent(*saving) : "cost less than its longer part: out of reach") << ".\n";
  }
}

void print_comparison_json(std::ostream& out, const Comparison& c, const ScheduleSize& size, const Costs& costs) {
  const auto entry = [&](const Entry& e) {
    return cat("\n  {\"schedule\": ", quoted(e.schedule.name), ", \"stages\": ", e.schedule.stages(), ", \"makespan\": ",
               number(e.timing.makespan), ", \"bubble_fraction\": ", number(e.bubble()), ", \"peak_activations\": ",
               number(e.peak() * e.share()), ", \"weight_copies\": ", e.weight_copies(), ", \"gain_over_1f1b\": ",
               number(c.baseline / e.timing.makespan - 1), "}");
  };
  out << "{\"pp\": " << size.pp << ", \"microbatches\": " << size.microbatches << ", \"cost\": {\"F\": " << number(costs.F)
      << ", \"I\": " << number(costs.I) << ", \"W\": " << number(costs.W) << ", \"FB\": " << number(costs.FB)
      << "},\n \"schedules\": " << json_list(c.entries, entry)
      << ",\n \"left_out\": " << json_list(c.left_out, quoted) << "}\n";
}

void paint_entries(std::ostream& out, std::span<const Entry> entries) {
  std::vector<Panel> panels;
  for (const Entry& e : entries) panels.push_back({e.schedule, e.timing, e.costs, caption_of(e)});
  paint_svg(out, panels);
}

void run_compare(const ScheduleOptions& options, const ScheduleSize& size, const Costs& costs, std::ostream& out) {
  const Comparison result = compare(options, size, costs);
  if (options.format == "svg") {
    paint_entries(out, result.entries);
  } else if (options.format == "json") {
    print_comparison_json(out, result, size, costs);
  } else {
    print_comparison(out, result, size, costs);
  }
}

}  // namespace

void schedule_command(const ScheduleOptions& options, std::ostream& out, const Terminal& terminal) {
  const std::string& format = options.format;
  const bool known = format == "text" || format == "json" || format == "svg" || (format == "csv" && !options.compare);
  require(known, "--format: expected text, ", options.compare ? "" : "csv, ", "json or svg, found ", format);
  require(options.pp >= 0, "--pp: expected 1 or more, found ", options.pp);
  require(options.microbatches >= 0, "--microbatches: expected 1 or more, found ", options.microbatches);
  const Costs costs = parse_costs(options.cost);
  const std::string name = options.schedule.empty() ? "dualpipe" : options.schedule;
  ScheduleSize size{options.pp, options.microbatches, options.virtual_stages};
  if (options.compare || !name.ends_with(".csv")) {
    if (size.pp == 0) size.pp = 8;
    if (size.microbatches == 0) size.microbatches = std::max(20, 2 * size.pp);
  }
  if (options.compare) return run_compare(options, size, costs, out);

  const Entry entry = make_entry(name, size, costs, false);
  if (format == "csv") {
    write_csv(out, entry.schedule);
  } else if (format == "json") {
    print_json(out, entry);
  } else if (format == "svg") {
    paint_entries(out, {&entry, 1});
  } else {
    print_text(out, entry, terminal);
  }
}

}  // namespace duet
