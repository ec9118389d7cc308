// See schedule_command.h.
#include "pipeline/insight/pictures/schedule_command.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <optional>

#include "model/base/command_line.h"

namespace duet {
namespace {

StageCosts mean_of(const CostProfile& profile) {
  StageCosts sum{0, 0, 0, 0};
  for (const StageCosts& s : profile.stages)
    sum.F += s.F, sum.I += s.I, sum.W += s.W, sum.FB += s.FB;
  return sum.scaled(1 / double(profile.stages.size()));
}

std::string percent(double fraction) { return format("%.1f%%", 100 * fraction); }

// At most two decimals, none that are zero: "57.6".
std::string rounded(double value) { return format("%.12g", std::round(value * 100) / 100); }

// With `equal_work` the costs are those of one pp-th of the model.
Picture make_picture(const std::string& name, const ScheduleSize& size, const CostProfile& profile,
    bool equal_work = false) {
  Picture p{make_schedule(name, size), mean_of(profile), {}, {}, {}};
  p.usage = check(p.schedule);
  require(profile.fits(p.schedule), "--cost: found a profile of ", profile.stages.size(),
      " stages, allowed: 1 or the schedule's ", p.schedule.model_stages());
  if (equal_work) p.costs = p.costs.scaled(p.schedule.stage_share());
  p.timing = simulate(p.schedule, equal_work ? CostProfile{{p.costs}} : profile);
  p.caption = cat(p.schedule.pp, " ranks, ", p.schedule.microbatches, " microbatches  ·  time ",
      rounded(p.timing.makespan), "  ·  bubble ", percent(p.timing.bubble()));
  return p;
}

std::string describe(const StageCosts& c) {
  return cat("F=", rounded(c.F), " I=", rounded(c.I), " W=", rounded(c.W), " B=", rounded(c.B()),
      " FB=", rounded(c.FB));
}

std::string describe_overlap(const StageCosts& c) {
  const double hidden = 1 - c.FB / (c.F + c.B());
  return std::abs(hidden) < 1e-9 ? "FB = F + B: a pair hides nothing"
                                 : cat("a pair saves ", percent(hidden), " of F + B");
}

void print_text(std::ostream& out, const Picture& p, const Terminal& terminal) {
  const Schedule& s = p.schedule;
  out << title_of(s) << ": " << s.pp << " ranks, " << s.microbatches << " microbatches, "
      << s.stages() << " stages"
      << (s.two_directions ? cat(" in two directions (", s.model_stages(),
                                 " parts of the model, each held twice)")
                           : "")
      << "\n\n";
  paint_text(out, s, p.timing, terminal);
  out << "\n F forward  B full backward  I backward for inputs  W backward for weights  [F B] "
         "overlapped pair"
      << (terminal.color ? "\n" : "  . idle\n") << " Second "
      << (s.two_directions ? "direction" : "and later chunks") << ": "
      << (terminal.color ? "darker, and " : "")
      << "small letters.\n\n rank    bubble   peak activations\n";
  for (int rank = 0; rank < s.pp; ++rank)
    out << format("%5d%10s%19d\n", rank, percent(p.timing.bubble_fraction[rank]).c_str(),
        p.usage.peak_activations[rank]);
  out << "\n makespan " << rounded(p.timing.makespan) << ", bubble " << percent(p.timing.bubble())
      << ", with " << describe(p.costs) << " (" << describe_overlap(p.costs) << ")\n";
}

void print_json(std::ostream& out, const Picture& p) {
  const Schedule& s = p.schedule;
  Json ranks = Json::array();
  for (const auto& actions : s.ranks) {
    Json row = Json::array();
    for (const Action& action : actions) row.push(to_string(action));
    ranks.push(std::move(row));
  }
  out << Json::object({{"schedule", s.name}, {"pp", s.pp}, {"microbatches", s.microbatches},
                          {"ranks", ranks}, {"makespan", p.timing.makespan},
                          {"bubble_fraction", Json(p.timing.bubble_fraction)},
                          {"peak_activations", Json(p.usage.peak_activations)}})
             .dump(2)
      << "\n";
}

// --- --compare -----------------------------------------------------------------------------------

struct Comparison {
  ScheduleSize size;
  StageCosts costs;     // of one pp-th of the model
  double baseline = 0;  // makespan of 1F1B
  std::vector<Picture> pictures = {};
  std::vector<std::string> left_out = {};  // why
  double gain(const Picture& p) const { return baseline / p.timing.makespan - 1; }
};

Comparison compare(const ScheduleOptions& options, const ScheduleSize& size) {
  const auto picture = [&](const std::string& name) {
    return make_picture(name, size, options.cost, true);
  };
  Comparison result{size, options.cost.stages[0], picture("1f1b").timing.makespan};
  const bool all = options.schedule.empty();
  for (const std::string& name : split(all ? schedule_names() : options.schedule)) try {
      result.pictures.push_back(picture(name));
    } catch (const UsageError& why) {
      if (!all) throw;
      result.left_out.push_back(why.what());
    }
  return result;
}

// What part of F + B a pair must save for the schedule to be `gain` faster than 1F1B; nothing if no
// FB >= max(F, B) does it.
std::optional<double> saving_for(double gain, const Picture& p, double baseline) {
  const double none = p.costs.F + p.costs.B(), most = std::max(p.costs.F, p.costs.B());
  const auto reaches = [&](double FB) {
    const StageCosts costs{p.costs.F, p.costs.I, p.costs.W, FB};
    return baseline / simulate(p.schedule, {{costs}}).makespan >= 1 + gain;
  };
  if (!reaches(most)) return std::nullopt;
  double slow = none, fast = most;
  if (reaches(none)) return 0;
  for (int i = 0; i < 20; ++i) (reaches((slow + fast) / 2) ? fast : slow) = (slow + fast) / 2;
  return 1 - fast / none;
}

void print_comparison(std::ostream& out, const Comparison& c) {
  out << c.size.pp << " ranks, " << c.size.microbatches
      << " microbatches, the same model under each\n\n"
      << " schedule          stages  makespan   bubble  activations  weight copies  speed over "
         "1F1B\n";
  for (const Picture& p : c.pictures) {
    const Schedule& s = p.schedule;
    const double gain = std::round(1000 * c.gain(p)) / 10 + 0.0;  // percent; + 0.0: never -0
    out << format(" %-18s%6d%10.2f%9s%13.1f%15d%+16.1f%%\n", title_of(s).c_str(), s.stages(),
        p.timing.makespan, percent(p.timing.bubble()).c_str(), p.usage.peak() * s.stage_share(),
        s.weight_copies(), gain);
  }
  for (const std::string& why : c.left_out) out << " left out: " << why << "\n";
  out << "\n Assumed: one " << c.size.pp << "-th of the model costs " << describe(c.costs) << ";\n "
      << describe_overlap(c.costs) << ". Messages take no time, all stages cost the same.\n"
      << " bubble: mean over ranks. activations: the largest rank's, one = a microbatch in one "
      << c.size.pp << "-th of the model.\n";
  for (const Picture& p : c.pictures) {
    if (std::ranges::none_of(p.schedule.ranks[0], &Action::overlapped)) continue;
    const auto saving = saving_for(0.30, p, c.baseline);
    out << " For +30% over 1F1B a pair of " << title_of(p.schedule) << " must "
        << (saving ? "save " + percent(*saving) : "cost less than its longer part: out of reach")
        << ".\n";
  }
}

void print_comparison_json(std::ostream& out, const Comparison& c) {
  Json rows = Json::array();
  for (const Picture& p : c.pictures) {
    const Schedule& s = p.schedule;
    rows.push(Json::object({{"schedule", s.name}, {"stages", s.stages()},
        {"makespan", p.timing.makespan}, {"bubble_fraction", p.timing.bubble()},
        {"peak_activations", p.usage.peak() * s.stage_share()},
        {"weight_copies", s.weight_copies()}, {"gain_over_1f1b", c.gain(p)}}));
  }
  out << Json::object(
             {{"pp", c.size.pp}, {"microbatches", c.size.microbatches}, {"cost", to_json(c.costs)},
                 {"schedules", rows}, {"left_out", Json(c.left_out)}})
             .dump(2)
      << "\n";
}

}  // namespace

CostProfile read_costs(const std::string& text) {
  if (!text.ends_with(".json")) return {{parse_costs(text)}};
  CostProfile profile = read_profile(text);
  for (StageCosts& s : profile.stages) s = s.scaled(1e3);
  profile.forward_message *= 1e3, profile.backward_message *= 1e3;
  return profile;
}

void add_schedule_command(CLI::App& duet, int&) {
  Command cli(duet, "schedule",
      "draw, check and time a schedule; without options DualPipe, 8 ranks, 20 microbatches");
  const auto o = std::make_shared<ScheduleOptions>();
  cli.text("--schedule", o->schedule,
      cat(schedule_names(), ", a CSV file, or - for one on stdin; default: dualpipe"));
  cli.number("--pp", o->pp, 0, 4096, "pipeline ranks; 0: 8, or the file's");
  cli.number(
      "--microbatches", o->microbatches, 0, 1 << 20, "per step; 0: 20 or 2 a rank, or the file's");
  cli.number(
      "--virtual-stages", o->virtual_stages, 1, 4096, "stages a rank holds under interleaved");
  cli.parsed("--cost", o->cost, read_costs,
      "what actions take, in any unit; FB is an overlapped pair; or FILE.json, a profile that "
      "analyze or plan wrote: milliseconds; default: F=1,I=1,W=1,FB=3");
  cli.choice("--format", o->format, {Format::text, Format::csv, Format::json, Format::svg},
      format_name, "what is written to stdout; csv is PyTorch's and reads back");
  cli.flag("--compare", o->compare,
      "all schedules (or those of --schedule a,b) at equal devices and model");
  cli.runs([o] { schedule_command(*o, std::cout, terminal_of_stdout()); });
}

void schedule_command(const ScheduleOptions& options, std::ostream& out, const Terminal& terminal) {
  const Format format = options.format;
  require(format != Format::csv || !options.compare,
      "--format: found 'csv' with --compare, allowed: text, json, svg");
  const std::string name = options.schedule.empty() ? "dualpipe" : options.schedule;
  ScheduleSize size{options.pp, options.microbatches, options.virtual_stages};
  if (options.compare || !is_schedule_file(name)) {
    if (size.pp == 0) size.pp = 8;
    if (size.microbatches == 0) size.microbatches = std::max(20, 2 * size.pp);
  }
  if (options.compare) {
    const size_t stages = options.cost.stages.size();
    require(
        stages == 1, "--cost: found a profile of ", stages, " stages, allowed with --compare: 1");
    const Comparison all = compare(options, size);
    if (format == Format::json) return print_comparison_json(out, all);
    if (format == Format::svg) return paint_svg(out, all.pictures);
    return print_comparison(out, all);
  }
  const Picture picture = make_picture(name, size, options.cost);
  if (format == Format::csv) write_csv(out, picture.schedule);
  if (format == Format::json) print_json(out, picture);
  if (format == Format::svg) paint_svg(out, {&picture, 1});
  if (format == Format::text) print_text(out, picture, terminal);
}

}  // namespace duet
