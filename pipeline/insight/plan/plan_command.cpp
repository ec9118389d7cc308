// See plan_command.h. The options of `duet plan`, and what becomes of them.
#include "pipeline/insight/plan/plan_command.h"

#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>

#include "pipeline/insight/plan/measure.h"
#include "pipeline/insight/plan/report.h"
#include "pipeline/insight/plan/validate.h"
#include "pipeline/schedule/simulator.h"

namespace duet {
namespace {

const char* const kDeepSeekV3 =
    "pp=16,ep=64,dp=128,micro-batch-size=1,zero=1,schedule=dualpipe,recompute=selective,dtype=fp8,"
    "imbalance=1.1";

void write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.close();
  require(file.good(), path, ": cannot be written");
}

std::vector<float> read_loads(const std::string& path, int64_t experts) {
  if (path.empty()) return {};
  Json json = Json::load(path);
  if (json.dump().starts_with("{")) json = Json(json.at("weight").items().at(0));
  std::vector<float> loads;
  for (const Json& load : json.items()) loads.push_back(float(load.number()));
  require(int64_t(loads.size()) == experts, "--loads: ", path, ": expected ", experts,
      " tokens, one a routed expert, as [..] or {\"weight\": [[..]]}, found ", loads.size());
  return loads;
}

PlanJob job_of(const PlanOptions& o) {
  PlanJob job{find_model(o.model), find_cluster(o.cluster), o.gpus, o.batch, o.seq_len};
  require(
      job.gpus >= 1 && job.gpus <= 1 << 20, "--gpus: found ", job.gpus, ", allowed: 1 to 1048576");
  require(job.batch >= 1, "--batch: found ", job.batch, ", allowed: 1 or more");
  require(job.seq_len >= 1, "--seq-len: found ", job.seq_len, ", allowed: 1 or more");
  return job;
}

// The fewest GPUs, in whole nodes beyond one, on which some layout fits; 0 where none was found.
int64_t smallest_that_fits(PlanJob job, PlanLayout fixed, double bytes) {
  const int64_t node = int64_t(job.cluster.gpus_per_node);
  fixed.dp = 0;
  job.gpus = std::max(job.gpus + 1, int64_t(bytes / job.cluster.memory_bytes / 4));
  for (int tries = 0; tries < 64; ++tries, job.gpus += job.gpus < node ? 1 : node) {
    if (job.gpus > node) job.gpus = (job.gpus + node - 1) / node * node;
    if (!search(job, fixed, 1).best.empty()) return job.gpus;
  }
  return 0;
}

// What fits instead: another layout on these GPUs, or more of them.
std::string nearest_that_fits(
    const PlanJob& job, const PlanLayout& fixed, const SearchResult& found) {
  PlanLayout free;
  free.precision = fixed.precision, free.imbalance = fixed.imbalance;
  if (const SearchResult other = search(job, free, 1); !other.best.empty())
    return other.best[0].layout.text();
  const double bytes = found.smallest.memory.total() * double(job.gpus);
  const int64_t gpus = smallest_that_fits(job, free, bytes);
  const std::string needed = format("does not fit on %lld GPUs: %.0f GB needed, %.0f there",
      (long long)job.gpus, bytes / 1e9, job.cluster.memory_bytes * double(job.gpus) / 1e9);
  const std::string nearest = gpus ? cat("; smallest that fits: ", gpus) : "";
  require(found.legal == 1, "--gpus: ", needed, nearest);
  return needed + nearest;
}

Answer answer_of(const PlanOptions& o, const PlanJob& job, PlanLayout fixed) {
  const std::vector<float> loads = read_loads(o.loads, job.model.experts);
  if (!loads.empty() && fixed.ep && job.model.experts % fixed.ep == 0)
    fixed.imbalance = std::max(1.0, expert_imbalance(loads, fixed.ep, 0));
  Answer a{.job = job, .usd_per_gpu_hour = o.usd_per_gpu_hour};
  a.found = search(job, fixed, size_t(std::max<int64_t>(4, o.top)));
  require(a.found.legal > 0,
      a.found.first_rule.empty()
          ? cat("--gpus: found ", job.gpus, ", allowed: a multiple of tp x pp x cp")
          : a.found.first_rule);
  const bool fits = !a.found.best.empty();
  a.now = predict(job, fits ? a.found.best[0].layout : a.found.smallest.layout);
  if (!fits) a.nearest = nearest_that_fits(job, fixed, a.found);
  a.changes = what_if(job, a.now, o.replicas, loads);
  PlanLayout free;
  free.precision = fixed.precision, free.imbalance = fixed.imbalance;
  const SearchResult others = search(job, free, 4);
  for (const Prediction& p : others.best)
    if (a.others.size() < 3 && p.layout.text() != a.now.layout.text()) a.others.push_back(p);
  return a;
}

void side_by_side(
    const PlanOptions& o, const PlanJob& job, const PlanLayout& fixed, std::ostream& out) {
  std::vector<Prediction> all;
  std::istringstream list(o.layouts);
  for (std::string text; std::getline(list, text, ';');) {
    SearchResult found = search(job, parse_layout(text, fixed, "--layouts"), 1);
    require(found.legal > 0, "--layouts: ", text, ": ", found.first_rule);
    all.push_back(found.best.empty() ? found.smallest : found.best[0]);
  }
  require(!all.empty(), "--layouts: found nothing, allowed: e.g. \"tp=8,pp=4; tp=4,pp=8\"");
  if (o.format != "json") return print_table(job, all, out);
  Json json = Json::array();
  for (const Prediction& p : all) json.push(answer_json({.job = job, .now = p}));
  out << json.dump(1) << "\n";
}

// The layout's schedule against given costs instead of the model's.
void with_profile(
    const PlanOptions& o, const PlanJob& job, const PlanLayout& l, std::ostream& out) {
  const CostProfile profile = read_profile(o.profile);
  const Schedule schedule = layout_schedule(l, microbatches(job, l), profile.stages[0]);
  require(profile.fits(schedule), "--profile: ", o.profile, " has ", profile.stages.size(),
      " stages, allowed: 1 or the layout's ", model_stages(l));
  const Timing timing = simulate(schedule, profile);
  out << format(
      "%s: %.6g s, bubble %.1f%%\n", l.text().c_str(), timing.makespan, 100 * timing.bubble());
}

}  // namespace

void plan_command(const PlanOptions& o, std::ostream& out) {
  require(o.format == "text" || o.format == "json", "--format: found ", o.format,
      ", allowed: text, json");
  if (!o.validate.empty()) return print_validation(validate(o.validate), o.format == "json", out);
  if (!o.measure.empty()) {
    const Cluster c = measure_cluster();
    write_file(o.measure, write_cluster(c));
    out << o.measure << ": " << c.name << "\n";
    return;
  }
  const PlanJob job = job_of(o);
  PlanLayout fixed;
  if (o.demonstration) fixed = parse_layout(kDeepSeekV3, fixed, "");
  for (const auto& [key, value] : o.layout) set_layout(fixed, key, value);
  if (!o.layout.contains("dtype") && !job.cluster.peak[size_t(Precision::bf16)])
    fixed.precision = Precision::fp32;
  if (!o.layouts.empty()) return side_by_side(o, job, fixed, out);
  const Answer answer = answer_of(o, job, fixed);
  const PlanLayout& l = answer.now.layout;
  if (!o.profile.empty()) return with_profile(o, job, l, out);
  if (!o.write_profile.empty())
    write_file(o.write_profile, write_profile(cost_profile(job, l, stage_costs(job, l))));
  if (o.format == "json") {
    out << answer_json(answer).dump(1) << "\n";
  } else {
    print_answer(answer, out);
  }
}

void add_plan_command(CLI::App& duet, int& exit_status) {
  auto o = std::make_shared<PlanOptions>();
  CLI::App* cli = duet.add_subcommand("plan",
      "predict a training run: memory, step time, the best layout; without options DeepSeek-V3's");
  cli->fallthrough();
  cli->option_defaults()->always_capture_default();
  cli->add_option("--model", o->model,
      "a preset, a public model's name, or the path of a Hugging Face config.json");
  cli->add_option("--cluster", o->cluster,
      "a100-40g, a100-80g, h100, h800, h200, b200, b300, gb200, gb300, or a cluster file");
  cli->add_option("--gpus", o->gpus, "GPUs of the whole job");
  cli->add_option("--batch", o->batch, "sequences of a step");
  cli->add_option("--seq-len", o->seq_len, "tokens of a sequence");
  const std::map<std::string, std::string> help = {{"dp", "data-parallel ranks"},
      {"tp", "tensor-parallel ranks"}, {"pp", "pipeline ranks"},
      {"ep", "ranks that share the experts"}, {"etp", "tensor-parallel ranks of an expert"},
      {"cp", "context-parallel ranks"}, {"virtual-stages", "stages a rank holds under interleaved"},
      {"micro-batch-size", "sequences of a microbatch"}, {"zero", "ZeRO stage, 0 to 3"},
      {"sequence-parallel", "1: row operations are divided among tensor-parallel ranks"},
      {"overlap-ep", "1: all-to-alls hide under computation"},
      {"overlap-dp", "1: gradients and weights of replicas hide"},
      {"overlap-tp", "1: tensor-parallel communication hides"},
      {"schedule",
          "gpipe, 1f1b, interleaved, zb1p, zb-h2, zb2p, zbv, v-half, v-min, dualpipe, "
          "dualpipev, or a CSV file"},
      {"split", "layers of each stage, e.g. 3,4,4,3 (in --layouts 3+4+4+3)"},
      {"recompute", "none, selective, full"},
      {"dtype", "of products: fp32, bf16, fp8, mxfp8, nvfp4"},
      {"imbalance", "the busiest GPU's tokens / the mean"}};
  for (const std::string& key : layout_keys())
    cli->add_option_function<std::string>(
        "--" + key, [o, key](const std::string& value) { o->layout[key] = value; },
        help.at(key) + "; default: searched for");
  cli->add_option("--layouts", o->layouts, "layouts side by side, e.g. \"tp=8,pp=4; tp=4,pp=8\"")
      ->delimiter('\0');
  cli->add_option("--loads", o->loads, "JSON: tokens of each routed expert, for EPLB");
  cli->add_option(
      "--replicas", o->replicas, "physical experts a layer under EPLB; 0: one more a rank");
  cli->add_option("--profile", o->profile, "a cost profile to run the layout's schedule against");
  cli->add_option("--write-profile", o->write_profile, "write the stages' costs to this file");
  cli->add_option("--top", o->top, "layouts that a search keeps");
  cli->add_option("--usd-per-gpu-hour", o->usd_per_gpu_hour, "price");
  cli->add_option("--validate", o->validate, "predict the published runs in this file");
  cli->add_option("--measure", o->measure, "write a cluster file of this machine");
  cli->add_option("--format", o->format, "text, or json: one document");
  cli->callback([cli, o, &exit_status] {
    o->demonstration = o->layout.empty() && o->layouts.empty();
    for (const char* option : {"--model", "--cluster", "--gpus", "--batch", "--seq-len"})
      o->demonstration &= cli->count(option) == 0;
    plan_command(*o, std::cout);
    exit_status = 0;
  });
}

}  // namespace duet
