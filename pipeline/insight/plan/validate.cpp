// See validate.h.
#include "pipeline/insight/plan/validate.h"

#include <algorithm>
#include <numeric>
#include <ostream>

#include "pipeline/insight/plan/search.h"

namespace duet {
namespace {

// The bubble of a schedule from given times, of the longest of its ranks' spans.
double bubble_rate(const Record& r) {
  const PlanLayout l = filled(r.job, r.layout);
  const Schedule s = layout_schedule(
      l, microbatches(r.job, l), r.profile->stages.front(), waiting_share(r.job, l));
  const Timing timing = simulate(s, *r.profile);
  double busy = 0;
  for (double idle : timing.bubble_fraction) busy += timing.makespan * (1 - idle) / s.pp;
  return 1 - busy / longest_span(timing);
}

// In the unit that was measured; where the source leaves the count of attention open, the nearer.
double in_unit(const Record& r, double step) {
  if (r.kind == Measured::step_s) return step;
  if (r.kind == Measured::tokens_per_s) return double(r.job.batch * r.job.seq_len) / step;
  const auto rate = [&](bool causal) {
    const double flops = step_flops(r.job, r.formula, causal) / step / double(r.job.gpus);
    return r.kind == Measured::mfu ? flops / r.peak_flops : flops / 1e12;
  };
  if (r.causal) return rate(*r.causal);
  const double full = rate(false), causal = rate(true);
  return std::abs(full - r.measured) < std::abs(causal - r.measured) ? full : causal;
}

void predict_record(Record& r) {
  if (r.is_bubble()) {
    require(r.profile.has_value(), "bubble_rate without stage_times_ms");
    r.predicted = bubble_rate(r);
    return;
  }
  const SearchResult found = search(r.job, r.layout, 1);
  require(found.legal > 0, found.first_rule);
  const Prediction& p = found.pick();
  r.layout = p.layout;  // filled in
  r.fits = p.fits, r.predicted_step = p.step;
  r.predicted_gib = p.memory.total() / double(1 << 30);
  r.predicted = r.ran() ? in_unit(r, p.step) : p.step;
}

double mean(const std::vector<double>& v) {
  return v.empty() ? NAN : std::accumulate(v.begin(), v.end(), 0.0) / double(v.size());
}

using Records = std::vector<const Record*>;

double balanced_accuracy(const Records& records) {
  std::vector<double> right[2], classes;
  for (const Record* r : records)
    if (!r->is_bubble()) right[r->ran()].push_back(r->fits == r->ran());
  for (const auto& c : right)
    if (!c.empty()) classes.push_back(mean(c));
  return mean(classes);
}

double pick_regret(const Records& records) {
  std::map<std::string, Records> scans;
  for (const Record* r : records)
    if (!r->is_bubble()) scans[r->scan].push_back(r);
  std::vector<double> regrets;
  for (const auto& [_, scan] : scans) {
    double best = INFINITY;
    for (const Record* r : scan)
      if (r->ran()) best = std::min(best, r->measured_step());
    if (scan.size() < 2 || best == INFINITY) continue;
    const Record* pick = std::ranges::min(
        scan, {}, [](const Record* r) { return std::pair(!r->fits, r->predicted_step); });
    regrets.push_back(pick->ran() ? pick->measured_step() / best - 1 : 1);
  }
  return mean(regrets);
}

double median(const std::vector<std::pair<double, std::string>>& sorted) {
  if (sorted.empty()) return NAN;
  return (sorted[sorted.size() / 2].first + sorted[(sorted.size() - 1) / 2].first) / 2;
}

// Errors of records that ran, the largest first, with their ids.
std::vector<std::pair<double, std::string>> worst_first(const Records& records) {
  std::vector<std::pair<double, std::string>> errors;
  for (const Record* r : records)
    if (r->ran() && !r->is_bubble())
      errors.push_back({std::abs(r->predicted / r->measured - 1), r->id});
  std::sort(errors.rbegin(), errors.rend());
  return errors;
}

// What is printed of a suite: its name in JSON and in the table.
struct Column {
  const char *key, *title, *percent = "%.1f%%";
};
constexpr Column kColumns[] = {{"mape", "MAPE"}, {"median_ape", "median"},
    {"bias", "bias", "%+.1f%%"}, {"fit_accuracy", "fits"}, {"pick_regret", "regret"},
    {"memory_mape", "memory"}, {"bubble_error", "bubble"}};

Json or_null(double x) { return std::isnan(x) ? Json() : Json(x); }

Json errors_of(const Records& records) {
  std::vector<double> off, bias, memory, bubble;
  for (const Record* r : records) {
    if (r->memory_gib > 0) memory.push_back(std::abs(r->predicted_gib / r->memory_gib - 1));
    if (r->is_bubble()) bubble.push_back(std::abs(r->predicted - r->measured));
    if (r->is_bubble() || !r->ran()) continue;
    bias.push_back(r->predicted / r->measured - 1);
    off.push_back(std::abs(bias.back()));
  }
  return Json::object({{"n", records.size()}, {"mape", or_null(mean(off))},
      {"median_ape", or_null(median(worst_first(records)))}, {"bias", or_null(mean(bias))},
      {"fit_accuracy", or_null(balanced_accuracy(records))},
      {"pick_regret", or_null(pick_regret(records))}, {"memory_mape", or_null(mean(memory))},
      {"bubble_error", or_null(mean(bubble))}});
}

std::map<std::string, Records> by_suite(const std::vector<Record>& records) {
  std::map<std::string, Records> suites;
  for (const Record& r : records) suites[r.suite].push_back(&r);
  return suites;
}

// Of records that ran: bubbles by schedule, the others by GPU and whether there are experts.
std::map<std::string, Records> by_kind(const std::vector<Record>& records) {
  std::map<std::string, Records> kinds;
  for (const Record& r : records) {
    const std::string& gpu = r.job.cluster.name;
    const char* with = r.job.model.experts ? ", with experts" : ", without experts";
    const std::string kind = r.is_bubble() ? cat("bubbles of ", r.layout.schedule)
                                           : cat(gpu.substr(0, gpu.find('-')), with);
    if (r.ran()) kinds[kind].push_back(&r);
  }
  return kinds;
}

Json document_of(const Validation& v) {
  Json suites = Json::object(), records = Json::array(), unpredicted = Json::array();
  Records all;
  std::vector<double> mapes;
  for (const auto& [name, of_suite] : by_suite(v.records)) {
    suites.set(name, errors_of(of_suite));
    if (const Json mape = suites.at(name).at("mape"); !mape.is_null())
      mapes.push_back(mape.number());
  }
  for (const Record& r : v.records) {
    all.push_back(&r);
    records.push(Json::object({{"id", r.id}, {"kind", kMeasured[size_t(*r.kind)]},
        {"predicted", r.predicted}, {"measured", r.ran() ? Json(r.measured) : Json()},
        {"fits", r.fits}, {"layout", r.layout.text()},
        {"predicted_gib", r.is_bubble() ? Json() : Json(r.predicted_gib)}}));
  }
  for (const auto& [id, reason] : v.unpredicted)
    unpredicted.push(Json::object({{"id", id}, {"reason", reason}}));
  return Json::object(
      {{"suites", suites}, {"all", errors_of(all).set("macro_mape", or_null(mean(mapes)))},
          {"records", records}, {"unpredicted", unpredicted}});
}

}  // namespace

Validation validate(const std::string& path) {
  Validation v;
  for (const Json& record : Json::load(path).at("records").items()) {
    std::string id = cat("records[", v.records.size() + v.unpredicted.size(), "]");
    try {
      id = record.at("id").string();
      Record r = read_record(record);
      predict_record(r);
      v.records.push_back(std::move(r));
    } catch (const UsageError& error) {
      v.unpredicted.push_back({id, error.what()});
    }
  }
  v.document = document_of(v);
  return v;
}

void print_validation(const Validation& v, bool json, std::ostream& out) {
  if (json) return void(out << v.document.dump(1) << "\n");
  const auto percent = [](const Json& x, const char* as = "%.1f%%") {
    return x.is_null() ? "-" : format(as, x.number() * 100);
  };
  const auto row = [&](const std::string& name, const Json& errors) {
    out << format("%-16s %5d", name.c_str(), int(errors.at("n").integer()));
    for (const Column& c : kColumns)
      out << format(" %8s", percent(errors.at(c.key), c.percent).c_str());
    out << "\n";
  };
  out << format("%-16s %5s", "suite", "n");
  for (const Column& c : kColumns) out << format(" %8s", c.title);
  out << "\n";
  for (const auto& [name, errors] : v.document.at("suites").members()) row(name, errors);
  const Json all = v.document.at("all");
  row("all", all);
  out << "mean over suites: " << percent(all.at("macro_mape")) << "\n";
  for (const auto& [name, records] : by_kind(v.records)) {
    const Json errors = errors_of(records), median = errors.at("median_ape");
    const std::string error = median.is_null()
        ? percent(errors.at("bubble_error"), "%.2f points on the mean")
        : percent(median, "%.1f%% median error");
    out << "like this, " << name << ": " << error << " (" << records.size() << " runs)\n";
  }
  for (const auto& [name, records] : by_suite(v.records)) {
    auto worst = worst_first(records);
    if (worst.size() > 5) worst.resize(5);
    for (const auto& [error, id] : worst)
      out << format("  worst of %s: %.1f%% %s\n", name.c_str(), error * 100, id.c_str());
  }
  for (const auto& [id, reason] : v.unpredicted)
    out << "not predicted: " << id << ": " << reason << "\n";
}

}  // namespace duet
