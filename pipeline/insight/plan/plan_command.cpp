// See plan_command.h. The options of `duet plan`, and what becomes of them.
#include "pipeline/insight/plan/plan_command.h"

#include <iostream>

#include "model/base/command_line.h"
#include "pipeline/checkpoint/durable.h"
#include "pipeline/insight/pictures/loads.h"
#include "pipeline/insight/plan/report.h"
#include "pipeline/insight/plan/validate.h"

namespace duet {
namespace {

const char* const kDeepSeekV3 =
    "pp=16,ep=64,dp=128,micro-batch-size=1,zero=1,schedule=dualpipe,recompute=selective,dtype=fp8,"
    "imbalance=1.1";

void print(std::ostream& out, const Json& json) { out << json.dump(1) << "\n"; }

Loads loads_of(const std::string& path, int64_t experts) {
  if (path.empty()) return {};
  require(experts > 0, "--loads: found with a model without routed experts");
  const Loads loads = read_loads(path);
  require(int64_t(loads[0].size()) == experts, "--loads: ", path, ": found ", loads[0].size(),
      " loads of a layer, allowed: the model's ", experts, " routed experts");
  return loads;
}

// Which of the options is to blame that no layout is legal: one that leaves none by itself, or one
// without which there would be some; and the rule.
std::string refusal(
    const PlanJob& job, const PlanLayout& free, const KeyValues& fixed, const SearchResult& found) {
  const auto with = [&](auto wanted) {
    PlanLayout l = free;
    for (const auto& [key, value] : fixed)
      if (wanted(key)) set_layout(l, key, value);
    return search(job, l, 0);
  };
  // its own, or that of another of the options, or what else is broken where it holds
  const auto rule = [&](const auto& option, const SearchResult& of) {
    for (const std::string& name : {option.first, std::string()})
      for (const auto& [key, value] : fixed)
        if ((name.empty() || key == name) && of.rules.contains("--" + key))
          return of.rules.at("--" + key);
    return cat("--", option.first, ": found ", option.second, ", but then ", of.first_rule);
  };
  for (const auto& option : fixed) {
    const SearchResult alone = with([&](const std::string& key) { return key == option.first; });
    if (!alone.legal) return rule(option, alone);
  }
  for (const auto& option : fixed)
    if (with([&](const std::string& key) { return key != option.first; }).legal)
      return rule(option, found);
  return found.first_rule;
}

// As they are given, of which at least one must be legal.
SearchResult find_layouts(
    const PlanJob& job, const PlanLayout& free, const KeyValues& fixed, size_t keep) {
  SearchResult found = search(job, with_options(free, fixed), keep);
  if (!found.legal) throw UsageError(refusal(job, free, fixed, found));
  return found;
}

// The fewest GPUs, in whole nodes beyond one, on which some layout fits that has what is fixed; 0
// where none was found.
int64_t fewest_gpus(PlanJob job, const PlanLayout& fixed) {
  const int64_t node = int64_t(job.cluster.gpus_per_node);
  // each parameter with its gradient and optimizer is somewhere (predict.h)
  const double states = double(job.model.parameters()) * (12 + fixed.gradient_bytes);
  job.gpus = std::max(job.gpus, int64_t(states / job.cluster.memory_bytes));
  for (int tries = 0; tries < 64; ++tries) {
    job.gpus = job.gpus < node ? job.gpus + 1 : (job.gpus / node + 1) * node;
    if (!search(job, fixed, 1).best.empty()) return job.gpus;
  }
  return 0;
}

// What fits instead: on these GPUs the layout with the fewest options changed, the fastest of
// these; or more of them.
std::string nearest_that_fits(const PlanJob& job, const PlanLayout& free, const PlanLayout& fixed,
    const SearchResult& found) {
  PlanLayout wanted = fixed;
  const auto degrees = {&PlanLayout::dp, &PlanLayout::tp, &PlanLayout::pp, &PlanLayout::cp};
  int64_t ranks = 1;
  for (auto degree : degrees) ranks *= std::max(1, fixed.*degree);
  for (auto degree : degrees)  // what is not named of all GPUs is 1
    if (ranks == job.gpus) wanted.*degree = std::max(1, fixed.*degree);
  const SearchResult other = search(job, free, 1, &wanted);
  if (!other.best.empty()) {
    const Prediction& p = other.best[0];
    return format("%s: options changed: %d; %.4g s", p.layout.text().c_str(),
        changed_options(wanted, p.layout), p.step);
  }
  const double bytes = found.smallest.memory.total() * double(job.gpus);
  const int64_t gpus = fewest_gpus(job, fixed);
  const std::string needed = format("does not fit on %lld GPUs: %.0f GB needed, %.0f there",
      (long long)job.gpus, bytes / 1e9, job.cluster.memory_bytes * double(job.gpus) / 1e9);
  const bool nodes = gpus > int64_t(job.cluster.gpus_per_node);
  const std::string nearest = gpus
      ? cat("; the fewest ", nodes ? "whole nodes that fit: --gpus " : "that fit: --gpus ", gpus)
      : "";
  require(found.legal == 1, "--gpus: ", needed, nearest);
  return needed + nearest;
}

Answer answer_of(
    const PlanOptions& o, const PlanJob& job, const PlanLayout& free, const KeyValues& options) {
  const PlanLayout fixed = with_options(free, options);
  PlanLayout open = free;  // what is given, not laid out
  open.precision = fixed.precision, open.imbalance = fixed.imbalance;
  Answer a{.job = job, .usd_per_gpu_hour = o.usd_per_gpu_hour};
  a.found = find_layouts(job, free, options, size_t(o.top));
  a.now = predict(job, a.found.pick().layout);
  if (a.found.best.empty()) a.nearest = nearest_that_fits(job, open, fixed, a.found);
  a.changes = what_if(job, a.now, fixed, o.replicas);
  const bool searched = a.found.best.size() > 1;
  for (const Prediction& p : searched ? a.found.best : search(job, open, size_t(o.top)).best)
    if (int64_t(a.others.size()) + 1 < o.top && p.layout.text() != a.now.layout.text())
      a.others.push_back(p);
  return a;
}

void side_by_side(
    const PlanOptions& o, const PlanJob& job, const PlanLayout& free, std::ostream& out) {
  std::vector<Prediction> all;
  for (const std::string& text : split(o.layouts, ';')) {
    if (text.empty()) continue;
    try {
      all.push_back(find_layouts(job, free, read_layout_text(text, "--layouts"), 1).pick());
    } catch (const UsageError& error) {
      throw UsageError(cat("--layouts: ", text, ": ", error.what()));
    }
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
  PlanJob job{find_model(o.model), find_cluster(o.cluster), o.gpus, o.batch, o.seq_len, {}};
  require(o.loads.empty() || !o.layout.contains("imbalance"),
      "--imbalance: found with --loads, which have an imbalance of their own, allowed: one of "
      "them");
  job.loads = loads_of(o.loads, job.model.experts);
  require(
      !o.replicas || job.model.experts, "--replicas: found with a model without routed experts");
  PlanLayout free;
  if (!job.cluster.peak[size_t(Precision::bf16)]) {
    free.precision = Precision::fp32;
    if (!o.layout.contains("dtype"))
      job.model.notes.push_back(cat(job.cluster.name, " has no bf16_tflops: planned in fp32"));
  }
  if (job.cluster.core) free.gradient_bytes = 8;  // duet's own (model/machine/grid.h)
  if (!o.layouts.empty()) return side_by_side(o, job, free, out);
  KeyValues options(o.layout.begin(), o.layout.end());
  if (o.demonstration) {
    options = read_layout_text(kDeepSeekV3, "");
    job.model.mtp = 1, job.model.notes = {"trained with one layer of multi-token prediction"};
  }
  const Answer answer = answer_of(o, job, free, options);
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
        "--" + key, [o, name = key](const std::string& value) { o->layout[name] = value; }, help);
  cli.text("--layouts", o->layouts, "layouts side by side, e.g. \"tp=8,pp=4; tp=4,pp=8\"");
  cli.text("--loads", o->loads,
      cat("tokens of each routed expert, in layers whose imbalances are averaged: ", kLoadsFile));
  cli.number("--replicas", o->replicas, 0, 1 << 20,
      "physical experts a layer under EPLB; 0: one more a rank");
  cli.text("--profile", o->profile, "a cost profile to run the layout's schedule against");
  cli.text("--write-profile", o->write_profile, "write the stages' costs to this file");
  cli.number("--top", o->top, 1, 1 << 20, "layouts that are printed: the answer and the next best");
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
