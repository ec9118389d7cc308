// See validate.h.
#include "pipeline/insight/plan/validate.h"

#include <algorithm>
#include <numeric>
#include <ostream>

#include "pipeline/insight/plan/records.h"
#include "pipeline/insight/plan/search.h"
#include "pipeline/schedule/simulator.h"

namespace duet {
namespace {

// The bubble of a schedule from given times: of the longest of its ranks' spans where ranks part
// ways, else of the makespan.
double bubble_rate(const Record& r) {
  const PlanLayout l = filled(r.job, r.layout);
  const Schedule s = layout_schedule(l, microbatches(r.job, l), r.profile->stages.front());
  const Timing timing = simulate(s, *r.profile);
  double longest = 0, busy = 0;
  for (size_t rank = 0; rank < timing.spans.size(); ++rank) {
    longest = std::max(longest, timing.spans[rank].back().end - timing.spans[rank].front().start);
    busy += timing.makespan * (1 - timing.bubble_fraction[rank]) / s.pp;
  }
  return 1 - busy / longest;
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
  RecordResult out{r.id, r.suite, r.scan, r.kind};
  out.measured = r.measured, out.ran = r.kind != "out_of_memory";
  if (r.kind == "bubble_rate") {
    require(r.profile.has_value(), "bubble_rate without stage_times_ms");
    out.predicted = bubble_rate(r);
    return out;
  }
  SearchResult found = search(r.job, r.layout, 1);
  require(found.legal > 0, found.first_rule);
  const Prediction& p = found.best.empty() ? found.smallest : found.best.front();
  out.step = p.step, out.fits = p.fits;
  out.predicted = out.ran ? in_unit(r, p.step) : p.step;
  out.measured_step = r.kind == "step_s" ? r.measured : 1 / r.measured;
  out.memory_gib = p.memory.total() / double(1 << 30), out.measured_memory_gib = r.memory_gib;
  return out;
}

double mean(const std::vector<double>& v) {
  return v.empty() ? -1 : std::accumulate(v.begin(), v.end(), 0.0) / double(v.size());
}

double balanced_accuracy(const std::vector<const RecordResult*>& records) {
  std::vector<double> right[2];
  for (const RecordResult* r : records)
    if (r->kind != "bubble_rate") right[r->ran].push_back(r->fits == r->ran);
  std::vector<double> classes;
  for (const auto& c : right)
    if (!c.empty()) classes.push_back(mean(c));
  return mean(classes);
}

double pick_regret(const std::vector<const RecordResult*>& records) {
  std::map<std::string, std::vector<const RecordResult*>> scans;
  for (const RecordResult* r : records)
    if (r->kind != "bubble_rate") scans[r->scan].push_back(r);
  std::vector<double> regrets;
  for (const auto& [_, scan] : scans) {
    double best = INFINITY;
    for (const RecordResult* r : scan)
      if (r->ran) best = std::min(best, r->measured_step);
    if (scan.size() < 2 || best == INFINITY) continue;
    const RecordResult* pick = *std::min_element(scan.begin(), scan.end(),
        [](auto* a, auto* b) { return a->fits != b->fits ? a->fits : a->step < b->step; });
    regrets.push_back(pick->ran ? pick->measured_step / best - 1 : 1);
  }
  return mean(regrets);
}

SuiteErrors errors_of(const std::vector<const RecordResult*>& records) {
  SuiteErrors e;
  std::vector<double> absolute, bias, memory, bubble;
  for (const RecordResult* r : records) {
    ++e.n;
    if (r->kind == "bubble_rate") bubble.push_back(std::abs(r->predicted - r->measured));
    if (r->measured_memory_gib > 0)
      memory.push_back(std::abs(r->memory_gib / r->measured_memory_gib - 1));
    if (r->kind == "bubble_rate" || !r->ran) continue;
    bias.push_back(r->predicted / r->measured - 1);
    absolute.push_back(std::abs(bias.back()));
    e.worst.push_back({absolute.back(), r->id});
  }
  std::sort(e.worst.rbegin(), e.worst.rend());
  if (!e.worst.empty()) e.median = e.worst[e.worst.size() / 2].first;
  if (e.worst.size() > 5) e.worst.resize(5);
  e.mape = std::max(0.0, mean(absolute)), e.bias = bias.empty() ? 0 : mean(bias);
  e.fit_accuracy = balanced_accuracy(records), e.pick_regret = pick_regret(records);
  e.memory_mape = mean(memory), e.bubble_error = mean(bubble);
  return e;
}

Json to_json(const SuiteErrors& e) {
  const auto or_null = [](double x) { return x < 0 ? Json() : Json(x); };
  return Json::object({{"n", e.n}, {"mape", e.mape}, {"median_ape", e.median}, {"bias", e.bias},
      {"fit_accuracy", or_null(e.fit_accuracy)}, {"pick_regret", or_null(e.pick_regret)},
      {"memory_mape", or_null(e.memory_mape)}, {"bubble_error", or_null(e.bubble_error)}});
}

void print_json(const Validation& v, std::ostream& out) {
  Json suites = Json::object(), all = to_json(v.all), records = Json::array(),
       unpredicted = Json::array();
  for (const auto& [name, errors] : v.suites) suites.set(name, to_json(errors));
  all.set("macro_mape", v.macro_mape);
  for (const RecordResult& r : v.records)
    records.push(Json::object({{"id", r.id}, {"kind", r.kind}, {"predicted", r.predicted},
        {"measured", r.ran ? Json(r.measured) : Json()}, {"fits", r.fits}}));
  for (const auto& [id, reason] : v.unpredicted)
    unpredicted.push(Json::object({{"id", id}, {"reason", reason}}));
  out << Json::object(
             {{"suites", suites}, {"all", all}, {"records", records}, {"unpredicted", unpredicted}})
             .dump(1)
      << "\n";
}

}  // namespace

Validation validate(const std::string& path) {
  const Json json = Json::load(path);
  const Json records = json.at("records");
  Validation v;
  for (const Json& record : records.items()) {
    std::string id = cat("records[", v.records.size() + v.unpredicted.size(), "]");
    try {
      id = record.at("id").string();
      v.records.push_back(predict_record(read_record(record, id)));
    } catch (const UsageError& error) {
      v.unpredicted.push_back({id, error.what()});
    }
  }
  std::map<std::string, std::vector<const RecordResult*>> suites;
  std::vector<const RecordResult*> all;
  for (const RecordResult& r : v.records) suites[r.suite].push_back(&r), all.push_back(&r);
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
  const auto percent = [](double x) {
    return x < 0 ? std::string("-") : format("%.1f%%", x * 100);
  };
  const auto row = [&](const std::string& name, const SuiteErrors& e) {
    out << format("%-16s %5d %8s %8s %+7.1f%% %8s %8s %8s %8s\n", name.c_str(), e.n,
        percent(e.mape).c_str(), percent(e.median).c_str(), e.bias * 100,
        percent(e.fit_accuracy).c_str(), percent(e.pick_regret).c_str(),
        percent(e.memory_mape).c_str(), percent(e.bubble_error).c_str());
  };
  out << format("%-16s %5s %8s %8s %8s %8s %8s %8s %8s\n", "suite", "n", "MAPE", "median", "bias",
      "fits", "regret", "memory", "bubble");
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
