// See validate.h.
#include "pipeline/insight/plan/validate.h"

#include <algorithm>
#include <numeric>
#include <ostream>

#include "pipeline/insight/plan/list_schedule.h"
#include "pipeline/insight/plan/search.h"

namespace duet {
namespace {

// The bubble of a schedule from given times, of the longest of its ranks' spans.
double bubble_rate(const Record& r) {
  const PlanLayout l = filled(r.job, r.layout);
  const Schedule s = layout_schedule(l, microbatches(r.job, l), r.profile->stages.front());
  const Timing timing = simulate(s, *r.profile);
  double busy = 0;
  for (double idle : timing.bubble_fraction) busy += timing.makespan * (1 - idle) / s.pp;
  return 1 - busy / longest_span(timing);
}

// In the unit that was measured; where the source leaves the count of attention open, the nearer.
double in_unit(const Record& r, double step) {
  if (r.kind == "step_s") return step;
  if (r.kind == "tokens_per_s") return double(r.job.batch * r.job.seq_len) / step;
  const Flops formula = r.formula == "6N" ? Flops::six_n
      : r.formula == "6N+attention"       ? Flops::six_n_attention
      : r.formula == "incl_recompute"     ? Flops::with_recompute
                                          : Flops::megatron;
  const auto rate = [&](bool causal) {
    const double flops = step_flops(r.job, formula, causal) / step / double(r.job.gpus);
    return r.kind == "mfu" ? flops / r.peak_flops : flops / 1e12;
  };
  if (r.attention == "full" || r.attention == "causal") return rate(r.attention == "causal");
  const double full = rate(false), causal = rate(true);
  return std::abs(full - r.measured) < std::abs(causal - r.measured) ? full : causal;
}

RecordResult predict_record(const Record& r) {
  RecordResult out{r};
  if (r.is_bubble()) {
    require(r.profile.has_value(), "bubble_rate without stage_times_ms");
    out.predicted = bubble_rate(r);
    return out;
  }
  const SearchResult found = search(r.job, r.layout, 1);
  require(found.legal > 0, found.first_rule);
  const Prediction& p = found.pick();
  out.step = p.step, out.fits = p.fits, out.memory_gib = p.memory.total() / double(1 << 30);
  out.predicted = r.ran() ? in_unit(r, p.step) : p.step;
  return out;
}

double mean(const std::vector<double>& v) {
  return v.empty() ? NAN : std::accumulate(v.begin(), v.end(), 0.0) / double(v.size());
}

using Results = std::vector<const RecordResult*>;

double balanced_accuracy(const Results& results) {
  std::vector<double> right[2], classes;
  for (const RecordResult* r : results)
    if (!r->record.is_bubble()) right[r->record.ran()].push_back(r->fits == r->record.ran());
  for (const auto& c : right)
    if (!c.empty()) classes.push_back(mean(c));
  return mean(classes);
}

double pick_regret(const Results& results) {
  std::map<std::string, Results> scans;
  for (const RecordResult* r : results)
    if (!r->record.is_bubble()) scans[r->record.scan].push_back(r);
  std::vector<double> regrets;
  for (const auto& [_, scan] : scans) {
    double best = INFINITY;
    for (const RecordResult* r : scan)
      if (r->record.ran()) best = std::min(best, r->record.measured_step());
    if (scan.size() < 2 || best == INFINITY) continue;
    const RecordResult* pick = *std::min_element(scan.begin(), scan.end(),
        [](auto* a, auto* b) { return a->fits != b->fits ? a->fits : a->step < b->step; });
    regrets.push_back(pick->record.ran() ? pick->record.measured_step() / best - 1 : 1);
  }
  return mean(regrets);
}

SuiteErrors errors_of(const Results& results) {
  SuiteErrors e{.n = int64_t(results.size())};
  std::vector<double> bias, memory, bubble;
  for (const RecordResult* result : results) {
    const Record& r = result->record;
    if (r.memory_gib > 0) memory.push_back(std::abs(result->memory_gib / r.memory_gib - 1));
    if (r.is_bubble()) bubble.push_back(std::abs(result->predicted - r.measured));
    if (r.is_bubble() || !r.ran()) continue;
    bias.push_back(result->predicted / r.measured - 1);
    e.mape += std::abs(bias.back());
    e.worst.push_back({std::abs(bias.back()), r.id});
  }
  std::sort(e.worst.rbegin(), e.worst.rend());
  if (!bias.empty()) {
    e.mape /= double(bias.size()), e.bias = mean(bias);
    e.median = e.worst[e.worst.size() / 2].first;
  }
  if (e.worst.size() > 5) e.worst.resize(5);
  e.fit_accuracy = balanced_accuracy(results), e.pick_regret = pick_regret(results);
  e.memory_mape = mean(memory), e.bubble_error = mean(bubble);
  return e;
}

// What is printed of a suite: its name in JSON and in the table.
struct Column {
  const char *key, *title;
  double SuiteErrors::*member;
  const char* percent = "%.1f%%";
};
constexpr Column kColumns[] = {{"mape", "MAPE", &SuiteErrors::mape},
    {"median_ape", "median", &SuiteErrors::median}, {"bias", "bias", &SuiteErrors::bias, "%+.1f%%"},
    {"fit_accuracy", "fits", &SuiteErrors::fit_accuracy},
    {"pick_regret", "regret", &SuiteErrors::pick_regret},
    {"memory_mape", "memory", &SuiteErrors::memory_mape},
    {"bubble_error", "bubble", &SuiteErrors::bubble_error}};

Json to_json(const SuiteErrors& e) {
  Json json = Json::object({{"n", e.n}});
  for (const Column& c : kColumns) json.set(c.key, e.*c.member);  // NaN: null
  return json;
}

void print_json(const Validation& v, std::ostream& out) {
  Json suites = Json::object(), records = Json::array(), unpredicted = Json::array();
  for (const auto& [name, errors] : v.suites) suites.set(name, to_json(errors));
  for (const auto& result : v.records) {
    const Record& r = result.record;
    records.push(Json::object({{"id", r.id}, {"kind", r.kind}, {"predicted", result.predicted},
        {"measured", r.ran() ? Json(r.measured) : Json()}, {"fits", result.fits}}));
  }
  for (const auto& [id, reason] : v.unpredicted)
    unpredicted.push(Json::object({{"id", id}, {"reason", reason}}));
  const Json all = to_json(v.all).set("macro_mape", v.macro_mape);
  out << Json::object(
             {{"suites", suites}, {"all", all}, {"records", records}, {"unpredicted", unpredicted}})
             .dump(1)
      << "\n";
}

}  // namespace

Validation validate(const std::string& path) {
  Validation v;
  for (const Json& record : Json::load(path).at("records").items()) {
    std::string id = cat("records[", v.records.size() + v.unpredicted.size(), "]");
    try {
      id = record.at("id").string();
      v.records.push_back(predict_record(read_record(record, id)));
    } catch (const UsageError& error) {
      v.unpredicted.push_back({id, error.what()});
    }
  }
  std::map<std::string, Results> suites;
  Results all;
  for (const RecordResult& r : v.records) suites[r.record.suite].push_back(&r), all.push_back(&r);
  std::vector<double> mapes;
  for (const auto& [name, records] : suites) {
    v.suites[name] = errors_of(records);
    if (!v.suites[name].worst.empty()) mapes.push_back(v.suites[name].mape);
  }
  v.all = errors_of(all);
  v.macro_mape = mean(mapes);
  return v;
}

void print_validation(const Validation& v, bool json, std::ostream& out) {
  if (json) return print_json(v, out);
  const auto percent = [](double x, const char* as = "%.1f%%") {
    return std::isnan(x) ? "-" : format(as, x * 100);
  };
  const auto row = [&](const std::string& name, const SuiteErrors& e) {
    out << format("%-16s %5d", name.c_str(), int(e.n));
    for (const Column& c : kColumns) out << format(" %8s", percent(e.*c.member, c.percent).c_str());
    out << "\n";
  };
  out << format("%-16s %5s", "suite", "n");
  for (const Column& c : kColumns) out << format(" %8s", c.title);
  out << "\n";
  for (const auto& [name, errors] : v.suites) row(name, errors);
  row("all", v.all);
  out << "mean over suites: " << percent(v.macro_mape) << "\n";
  for (const auto& [name, errors] : v.suites)
    for (const auto& [error, id] : errors.worst)
      out << format("  worst of %s: %.1f%% %s\n", name.c_str(), error * 100, id.c_str());
  for (const auto& [id, reason] : v.unpredicted)
    out << "not predicted: " << id << ": " << reason << "\n";
}

}  // namespace duet
