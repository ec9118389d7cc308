// See plan_command.h. The options of `duet plan`, and what becomes of them.
#include "pipeline/insight/plan/plan_command.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iostream>

#include "model/base/command_line.h"
#include "pipeline/checkpoint/durable.h"
#include "pipeline/insight/plan/cluster.h"
#include "pipeline/insight/plan/report.h"
#include "pipeline/insight/plan/validate.h"
#include "pipeline/schedule/simulator.h"

namespace duet {
namespace {

const char* const kDeepSeekV3 =
    "pp=16,ep=64,dp=128,micro-batch-size=1,zero=1,schedule=dualpipe,recompute=selective,dtype=fp8,"
    "imbalance=1.1";

void require_writable(const std::string& path) {
  const std::string folder = std::filesystem::absolute(path).parent_path();
  require(!std::filesystem::is_directory(path) && access(folder.c_str(), W_OK) == 0, path,
      ": cannot be written");
}

// All at once: what was there stays until then. A pipe is written to.
void write_file(const std::string& path, const std::string& text) {
  require_writable(path);
  if (!std::filesystem::exists(path) || std::filesystem::is_regular_file(path))
    return replace_file(std::filesystem::weakly_canonical(path), text);
  std::ofstream file(path);
  file << text;
  file.close();
  require(file.good(), path, ": cannot be written");
}

void print(std::ostream& out, const Json& json) { out << json.dump(1) << "\n"; }

std::vector<float> read_loads(const std::string& path, int64_t experts) {
  if (path.empty()) return {};
  const Json json = Json::load(path);
  Json::Array layers = {json};  // of which the first counts
  if (!json.is_array()) layers = json.at("weight").items();
  std::vector<float> loads;
  if (!layers.empty())
    for (const Json& load : layers[0].items()) loads.push_back(float(load.number(0, 1e30)));
  require(int64_t(loads.size()) == experts, "--loads: ", path, ": expected ", experts,
      " tokens, one a routed expert, as [..] or {\"weight\": [[..]]}, found ", loads.size());
  return loads;
}

// The fewest GPUs, in whole nodes beyond one, on which some layout fits; 0 where none was found.
int64_t smallest_that_fits(PlanJob job, const PlanLayout& free, double bytes) {
  const int64_t node = int64_t(job.cluster.gpus_per_node);
  job.gpus = std::max(job.gpus + 1, int64_t(bytes / job.cluster.memory_bytes / 4));
  for (int tries = 0; tries < 64; ++tries, job.gpus += job.gpus < node ? 1 : node) {
    if (job.gpus > node) job.gpus = (job.gpus + node - 1) / node * node;
    if (!search(job, free, 1).best.empty()) return job.gpus;
  }
  return 0;
}

// What fits instead: another layout on these GPUs, or more of them.
std::string nearest_that_fits(
    const PlanJob& job, const PlanLayout& free, const SearchResult& found) {
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
  require(a.found.legal > 0, a.found.first_rule);
  a.now = predict(job, a.found.pick().layout);
  PlanLayout free;
  free.precision = fixed.precision, free.imbalance = fixed.imbalance;
  if (a.found.best.empty()) a.nearest = nearest_that_fits(job, free, a.found);
  a.changes = what_if(job, a.now, o.replicas, loads);
  for (const Prediction& p : search(job, free, 4).best)
    if (a.others.size() < 3 && p.layout.text() != a.now.layout.text()) a.others.push_back(p);
  return a;
}

void side_by_side(
    const PlanOptions& o, const PlanJob& job, const PlanLayout& fixed, std::ostream& out) {
  std::vector<Prediction> all;
  for (const std::string& text : split(o.layouts, ';')) {
    if (text.empty()) continue;
    const SearchResult found = search(job, parse_layout(text, fixed, "--layouts"), 1);
    require(found.legal > 0, "--layouts: ", text, ": ", found.first_rule);
    all.push_back(found.pick());
  }
  require(!all.empty(), "--layouts: found nothing, allowed: e.g. \"tp=8,pp=4; tp=4,pp=8\"");
  if (o.format != Format::json) return print_table(job, all, out);
  Json json = Json::array();
  for (const Prediction& p : all) json.push(answer_json({.job = job, .now = p}));
  print(out, json);
}

// The layout's schedule against given costs instead of the model's.
void with_profile(
    const PlanOptions& o, const PlanJob& job, const PlanLayout& l, std::ostream& out) {
  const CostProfile profile = read_profile(o.profile);
  const Schedule schedule = layout_schedule(l, microbatches(job, l), profile.stages[0]);
  require(profile.fits(schedule), "--profile: ", o.profile, " has ", profile.stages.size(),
      " stages, allowed: 1 or the layout's ", model_stages(l));
  const Timing timing = simulate(schedule, profile);
  // `duet plan --validate`, "like this, bubbles"
  const char* error = "published bubbles, from their stages' times: 0.04 points off (36 runs)";
  if (o.format == Format::json)
    return print(out,
        Json::object({{"layout", l.text()}, {"pipeline_s", timing.makespan},
            {"bubble", timing.bubble()}, {"error", error}}));
  out << format("%s: %.6g s, bubble %.1f%%; %s\n", l.text().c_str(), timing.makespan,
      100 * timing.bubble(), error);
}

}  // namespace

void plan_command(const PlanOptions& o, std::ostream& out) {
  if (!o.validate.empty())
    return print_validation(validate(o.validate), o.format == Format::json, out);
  if (!o.measure.empty()) {
    require_writable(o.measure);  // before seconds are spent
    const std::string text = write_cluster(measure_cluster());
    write_file(o.measure, text);
    out << (o.format == Format::json ? text : cat(o.measure, ": this machine, measured\n"));
    return;
  }
  PlanJob job{find_model(o.model), find_cluster(o.cluster), o.gpus, o.batch, o.seq_len};
  PlanLayout fixed;
  if (o.demonstration) {
    fixed = parse_layout(kDeepSeekV3, fixed, "");
    job.model.mtp = 1, job.model.notes = {"trained with one layer of multi-token prediction"};
  }
  for (const auto& [key, value] : o.layout) set_layout(fixed, key, value);
  if (!o.layout.contains("dtype") && !job.cluster.peak[size_t(Precision::bf16)]) {
    fixed.precision = Precision::fp32;
    job.model.notes.push_back(cat(job.cluster.name, " has no bf16_tflops: planned in fp32"));
  }
  if (job.cluster.core) fixed.gradient_bytes = 8;  // duet's own (model/machine/grid.h)
  if (!o.layouts.empty()) return side_by_side(o, job, fixed, out);
  const Answer answer = answer_of(o, job, fixed);
  const PlanLayout& l = answer.now.layout;
  if (!o.profile.empty()) return with_profile(o, job, l, out);
  if (!o.write_profile.empty())
    write_file(o.write_profile, write_profile(cost_profile(job, l, stage_costs(job, l))));
  if (o.format == Format::json) return print(out, answer_json(answer));
  print_answer(answer, out);
}

void add_plan_command(CLI::App& duet, int&) {
  const auto o = std::make_shared<PlanOptions>();
  Command cli(duet, "plan",
      "predict a training run: memory, step time, the best layout; without options DeepSeek-V3's");
  cli.text("--model", o->model,
      "a preset, a public model's name, or the path of a Hugging Face config.json");
  cli.text("--cluster", o->cluster,
      "a100-40g, a100-80g, h100, h100-96g, h800, h200, b200, b300, gb200, gb300, or a cluster "
      "file");
  cli.number("--gpus", o->gpus, 1, 1 << 20, "GPUs of the whole job");
  cli.number("--batch", o->batch, 1, 1 << 30, "sequences of a step");
  cli.number("--seq-len", o->seq_len, 1, 1 << 30, "tokens of a sequence");
  CLI::App* plan = duet.get_subcommand("plan");
  for (const auto& [key, help] : layout_keys())
    plan->add_option_function<std::string>(
        "--" + key, [o, name = key](const std::string& value) { o->layout[name] = value; },
        help + "; default: searched for");
  cli.text("--layouts", o->layouts, "layouts side by side, e.g. \"tp=8,pp=4; tp=4,pp=8\"");
  cli.text("--loads", o->loads, "JSON: tokens of each routed expert, for EPLB");
  cli.number("--replicas", o->replicas, 0, 1 << 20,
      "physical experts a layer under EPLB; 0: one more a rank");
  cli.text("--profile", o->profile, "a cost profile to run the layout's schedule against");
  cli.text("--write-profile", o->write_profile, "write the stages' costs to this file");
  cli.number("--top", o->top, 1, 1 << 20, "layouts that a search keeps");
  cli.number("--usd-per-gpu-hour", o->usd_per_gpu_hour, 0, 1e6, "price");
  cli.text("--validate", o->validate, "predict the published runs in this file");
  cli.text("--measure", o->measure, "write a cluster file of this machine");
  cli.choice("--format", o->format, {Format::text, Format::json}, format_name,
      "text, or json: one document");
  cli.runs([cli, o] {
    std::vector<std::string> job = {"--model", "--cluster", "--gpus", "--batch", "--seq-len"};
    for (const auto& [key, help] : layout_keys()) job.push_back("--" + key);
    const std::vector<std::string> given = cli.given();
    o->demonstration = o->layouts.empty() && std::ranges::find_first_of(given, job) == given.end();
    // Each way of asking makes something of some of the options alone.
    job.push_back("--format");
    if (!o->validate.empty())
      cli.refuse_beside("--validate", "says all of each run itself", {"--format"});
    if (!o->measure.empty()) cli.refuse_beside("--measure", "plans nothing", {"--format"});
    if (!o->layouts.empty()) cli.refuse_beside("--layouts", "only sets layouts side by side", job);
    if (!o->profile.empty()) cli.refuse_beside("--profile", "is given the costs", job);
    plan_command(*o, std::cout);
  });
}

}  // namespace duet
