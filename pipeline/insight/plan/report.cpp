// See report.h.
#include "pipeline/insight/plan/report.h"

#include <algorithm>
#include <map>
#include <ostream>

namespace duet {
namespace {

struct Rates {
  double tokens_per_s, full, causal, hours;  // FLOP/s a GPU; GPU hours of a trillion tokens
  Rates(const PlanJob& job, const Prediction& p) {
    tokens_per_s = double(job.batch * job.seq_len) / p.step;
    full = step_flops(job, Flops::megatron, false) / p.step / double(job.gpus);
    causal = step_flops(job, Flops::megatron, true) / p.step / double(job.gpus);
    hours = 1e12 / tokens_per_s / 3600 * double(job.gpus);
  }
};

NamedValues memory_parts(const Memory& m) {
  return {{"parameters", m.parameters}, {"gradients", m.gradients}, {"optimizer", m.optimizer},
      {"activations", m.activations}, {"logits", m.logits}, {"buffers", m.buffers},
      {"fragmentation", m.fragmentation}, {"reserved", m.reserved}};
}

std::string bottleneck(const Prediction& p) {
  const NamedValues parts = step_parts(p);
  const auto worst = std::ranges::max_element(parts, {}, [](auto& part) { return part.second; });
  return format("%s, %.0f%% of the step", worst->first.c_str(), 100 * worst->second / p.step);
}

}  // namespace

NamedValues step_parts(const Prediction& p) {
  NamedValues parts;
  for (size_t i = 0; i < kParts; ++i)
    parts.push_back({kPartNames[i], p.parts[i] - (i == kExpertComm ? p.hidden_in_pairs : 0)});
  parts.insert(parts.end(),
      {{"bubble and messages", p.bubble},
          {"gradients and weights between dp ranks", p.exposed_data}, {"optimizer", p.optimizer},
          {"all else", p.other}});
  std::erase_if(parts, [&](const auto& part) { return std::abs(part.second) < 1e-6 * p.step; });
  return parts;
}

// Why the best of the others is slower than `now`, or faster: the parts of the step that differ
// most, which are at least a tenth of all that differs.
static NamedValues differing_parts(const Prediction& now, const Prediction& other) {
  std::map<std::string, double> by_name;
  for (const auto& [name, seconds] : step_parts(other)) by_name[name] += seconds;
  for (const auto& [name, seconds] : step_parts(now)) by_name[name] -= seconds;
  NamedValues parts(by_name.begin(), by_name.end());
  const auto size = [](const auto& part) { return std::abs(part.second); };
  std::ranges::stable_sort(parts, std::greater(), size);
  double all = 0;
  for (const auto& part : parts) all += size(part);
  std::erase_if(parts, [&](const auto& part) { return size(part) < all / 10; });
  return parts;
}

NamedValues by_action(const Prediction& p, const ByAction& by) {
  NamedValues parts = {{"1F", by.F}, {"1B", by.B}, {"1W", by.W}, {"1F1B", by.pairs},
      {"bubble", p.pipeline - by.busy()}, {"optimizer", p.exposed_data + p.optimizer}};
  for (auto& [name, seconds] : parts) seconds *= p.step / (p.step - p.other);
  return parts;
}

// As `duet plan --validate` has it under "like this".
std::string known_error(const PlanJob& job) {
  const std::string& gpu = job.cluster.name;
  const bool moe = job.model.experts > 0;
  if (gpu.starts_with("a100") && !moe) return "suites like this: 7% median error (632 runs)";
  if (!gpu.starts_with("h")) return "no published run of this kind was checked";
  return cat(
      gpu.starts_with("h100") ? "suites like this" : "no suite of this GPU was checked; H100s",
      moe ? ": 5% median error (21 runs of one model)" : ": 13% median error (84 runs)");
}

static void print_search(const Answer& a, std::ostream& out) {
  out << format("  %lld layouts tried, %lld legal, %lld fit, %lld predicted",
      (long long)a.found.tried, (long long)a.found.legal, (long long)a.found.fitting,
      (long long)a.found.predicted);
  out << (a.found.best.empty() ? "; none fits"
                               : "; of all others that agree with what is fixed bounds are longer")
      << "\n";
  if (a.found.best.size() < 2) return;
  out << "  the second takes longer by:";
  for (const auto& [name, seconds] : differing_parts(a.now, a.found.best[1]))
    out << format(" %s %+.4f s", name.c_str(), seconds);
  out << "\n";
}

void print_answer(const Answer& a, std::ostream& out) {
  const PlanJob& job = a.job;
  const Prediction& p = a.now;
  const Rates r(job, p);
  const double peak = job.cluster.wide_peak();
  out << format("%s, %.4g B parameters (%.4g B active), %d x %s, %d sequences of %d\n",
      job.model.name.c_str(), double(job.model.parameters()) / 1e9,
      double(job.model.active_parameters()) / 1e9, int(job.gpus), job.cluster.name.c_str(),
      int(job.batch), int(job.seq_len));
  for (const std::string& note : job.model.notes) out << "  note     " << note << "\n";
  out << "  layout   " << p.layout.text() << ", " << p.microbatches << " microbatches\n";
  out << format("  memory   %.1f of %.1f GB%s:", p.memory.total() / 1e9,
      job.cluster.memory_bytes / 1e9, p.fits ? "" : ", DOES NOT FIT");
  for (const auto& [name, bytes] : memory_parts(p.memory))
    if (bytes > 5e7) out << format(" %s %.1f", name.c_str(), bytes / 1e9);
  out << "\n";
  if (!a.nearest.empty()) out << "  nearest  " << a.nearest << "\n";
  out << format(
      "  step     %.4g s, %.4g tokens/s; %s\n", p.step, r.tokens_per_s, known_error(job).c_str());
  out << format(
      "  rate     %.3g TFLOP/s a GPU, MFU %.1f%%, of products, head and full attention; "
      "causal: %.3g, %.1f%%\n",
      r.full / 1e12, 100 * r.full / peak, r.causal / 1e12, 100 * r.causal / peak);
  out << format("  cost     %.4g GPU hours, %.4g $ a trillion tokens\n\n", r.hours,
      r.hours * a.usd_per_gpu_hour);
  for (const auto& [name, seconds] : step_parts(p))
    out << format("  %-40s %10.4f s %6.1f%%\n", name.c_str(), seconds, 100 * seconds / p.step);
  out << format("  %-40s %10.4f s %6.1f%%\n\n", "step", p.step, 100.0);
  if (p.hidden_in_pairs > 1e-6 * p.step)
    out << format(
        "  hidden in pairs, besides: %.3f s of expert-parallel communication\n", p.hidden_in_pairs);
  if (p.layout.pp > 1)
    for (const auto& [whose, by] :
        {std::pair("rank 0", p.of_first), {"mean over ranks", p.of_mean}}) {
      out << "  " << whose << ":";
      for (const auto& [name, seconds] : by_action(p, by))
        out << format(" %s %.3f s", name.c_str(), seconds);
      out << "\n";
    }
  out << "  bottleneck: " << bottleneck(p) << "\n";
  for (const Change& c : a.changes)
    out << format("  with %-58s %+6.1f%%%s\n", c.what.c_str(), 100 * (p.step / c.step - 1),
        c.fits ? "" : ", does not fit");
  for (const Prediction& other : a.others)
    out << format(
        "  %-63s %+6.1f%%\n", other.layout.text().c_str(), 100 * (p.step / other.step - 1));
  out << "  +30% would take one of:";
  const auto lines = for_thirty_percent(p);
  for (size_t i = 0; i < lines.size(); ++i) out << (i ? "; " : " ") << lines[i];
  out << "\n";
  print_search(a, out);
}

Json answer_json(const Answer& a) {
  const PlanJob& job = a.job;
  const Prediction& p = a.now;
  const Rates r(job, p);
  const double peak = job.cluster.wide_peak();
  const auto object = [](const NamedValues& values) {
    return Json::object({values.begin(), values.end()});
  };
  Json memory = object(memory_parts(p.memory)), changes = Json::array(), next = Json::array();
  memory.set("total", p.memory.total()), memory.set("available", job.cluster.memory_bytes);
  for (const Change& c : a.changes)
    changes.push(Json::object(
        {{"change", c.what}, {"layout", c.layout.replicas ? Json() : Json(c.layout.text())},
            {"step_s", c.step}, {"gain", p.step / c.step - 1}, {"fits", c.fits}}));
  Json slower;
  if (a.found.best.size() > 1) slower = object(differing_parts(p, a.found.best[1]));
  for (const Prediction& other : a.others)
    next.push(Json::object({{"layout", other.layout.text()}, {"step_s", other.step},
        {"gain", p.step / other.step - 1}}));
  return Json::object({{"model", job.model.name}, {"parameters", job.model.parameters()},
      {"active_parameters", job.model.active_parameters()}, {"notes", Json(job.model.notes)},
      {"cluster", job.cluster.name}, {"gpus", job.gpus}, {"batch", job.batch},
      {"seq_len", job.seq_len}, {"layout", p.layout.text()}, {"microbatches", p.microbatches},
      {"fits", p.fits}, {"memory_bytes", memory}, {"step_s", p.step},
      {"tokens_per_s", r.tokens_per_s},
      {"tflops_per_gpu", object({{"full", r.full / 1e12}, {"causal", r.causal / 1e12}})},
      {"mfu", object({{"full", r.full / peak}, {"causal", r.causal / peak}})},
      {"gpu_hours_per_trillion_tokens", r.hours},
      {"usd_per_trillion_tokens", r.hours * a.usd_per_gpu_hour}, {"parts_s", object(step_parts(p))},
      {"by_action_s", object(by_action(p, p.of_first))},
      {"mean_by_action_s", object(by_action(p, p.of_mean))},
      {"hidden_in_pairs_s", p.hidden_in_pairs}, {"bottleneck", bottleneck(p)}, {"what_if", changes},
      {"next", next}, {"for_thirty_percent", Json(for_thirty_percent(p))},
      {"nearest", a.nearest.empty() ? Json() : Json(a.nearest)}, {"error", known_error(job)},
      {"search",
          Json::object(
              {{"tried", a.found.tried}, {"legal", a.found.legal}, {"fit", a.found.fitting},
                  {"predicted", a.found.predicted}, {"second_takes_longer_by_s", slower}})}});
}

void print_table(
    const PlanJob& job, const std::vector<Prediction>& predictions, std::ostream& out) {
  out << format("%9s %12s %9s %7s %7s %5s  %s\n", "step s", "tokens/s", "TFLOP/s", "bubble", "GB",
      "fits", "layout");
  for (const Prediction& p : predictions) {
    const Rates r(job, p);
    out << format("%9.4g %12.4g %9.3g %6.1f%% %7.1f %5s  %s\n", p.step, r.tokens_per_s,
        r.full / 1e12, 100 * p.mean_bubble() / p.step, p.memory.total() / 1e9,
        p.fits ? "yes" : "NO", p.layout.text().c_str());
  }
  out << known_error(job) << "\n";
}

}  // namespace duet
