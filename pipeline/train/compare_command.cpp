// See compare_command.h.
#include "pipeline/train/compare_command.h"

#include <algorithm>
#include <iostream>
#include <ostream>
#include <set>
#include <span>

#include "model/base/command_line.h"
#include "pipeline/checkpoint/diff_command.h"
#include "pipeline/schedule/simulator.h"
#include "pipeline/train/trainer.h"

namespace duet {
namespace {

// What is compared beside the schedules where nothing is stated.
constexpr const char* kLayouts =
    "dp=4 ep=4; dp=2 ep=2 pp=2 schedule=dualpipe; pp=4 schedule=zbv micro-batch-size=2; "
    "dp=4 ep=4 redundant-experts=4 eplb-interval=2";

// What a schedule or a layout did.
struct Outcome {
  std::string name;
  std::vector<double> loss, norm;     // [steps]
  std::vector<TensorHashes> tensors;  // [steps + 1]: each step's gradient, then the final state
  std::string why_not_timed;          // empty: `measured` means something
  double bubble = 0, measured = 0;
  double activations = 0;        // parts of 1/pp of the model
  int64_t activation_bytes = 0;  // of the rank with the most
  int copies = 1;
};

// The first step whose bits differ from the reference's, 0 where none does, steps + 1 where only
// the final state does; and its first tensor, in the order of the forward pass.
struct Difference {
  int64_t step = 0;
  std::string tensor;
};

Difference differs(const Outcome& o, const Outcome& reference) {
  for (size_t i = 0; i < o.tensors.size(); ++i) {
    std::set<ForwardPlace> places;
    for (const auto& [name, hash] : reference.tensors[i])
      if (o.tensors[i].at(name) != hash) places.insert(forward_place(name));
    if (!places.empty()) return {int64_t(i) + 1, std::get<std::string>(*places.begin())};
    if (i < o.loss.size() && (o.loss[i] != reference.loss[i] || o.norm[i] != reference.norm[i]))
      return {int64_t(i) + 1, "no gradient"};
  }
  return {};
}

// One rank's part in running a job; what rank 0 returns counts.
Outcome train(const Job& job, Comm& world) {
  const Schedule& s = job.compute;
  Outcome o;
  o.bubble = simulate(s, {{StageCosts()}}).bubble();
  o.activations = job.usage.peak() * s.stage_share();
  o.copies = s.weight_copies();
  o.why_not_timed = why_not_timed(job);
  const std::unique_ptr<Device> device = make_device(job, world);
  Trainer trainer(job, world, *device);
  if (!job.options.init.empty()) load_checkpoint(trainer, job.options.init, Restore::weights);
  StepHooks hooks;
  hooks.on_gradients = [&] { o.tensors.push_back(tensor_hashes(trainer, Hashed::gradient)); };
  for (int64_t step = 1; step <= job.options.steps; ++step) {
    const StepResult r = train_step(trainer, step, hooks);
    o.loss.push_back(r.loss);
    o.norm.push_back(r.grad_norm);
    o.measured += r.idle / double(job.options.steps);
  }
  o.tensors.push_back(tensor_hashes(trainer, Hashed::state));
  DUET_CHECK(copies_agree(trainer), job.compute.name,
      ": expected all copies of a parameter to hold the same bits");
  for (int64_t bytes : world.gather_values(device->memory(Use::activations).peak))
    o.activation_bytes = std::max(o.activation_bytes, bytes);
  return o;
}

// --- what is compared ----------------------------------------------------------------------------

struct Row {
  std::string name;
  Job job;
};

int64_t data_parallel_ranks(const TrainOptions& o) {
  return o.dp ? o.dp : std::max<int64_t>(1, find_launch().ranks / o.pp);
}

// The common options with those of a layout, "dp=2 schedule=zbv", in their place. The global batch
// stays: the number of microbatches follows from it.
TrainOptions apply_layout(const std::string& layout, TrainOptions o, int64_t sequences) {
  const std::string where = "--layouts: found '" + shortened(layout) + "': ";
  o.microbatches = 0;
  CLI::App app;
  Command cli(app, "layout", "");
  add_layout_options(cli, o);
  std::vector<std::string> arguments;  // as CLI11 wants them, the last one first
  for (const std::string& item : split(layout, ' ')) {
    if (item.empty()) continue;
    const std::string key = item.substr(0, item.find('='));
    const bool known = app.get_subcommand("layout")->get_option_no_throw("--" + key);
    require(known && key != "help" && key.size() < item.size(), where, "'", shortened(item),
        "', allowed: dp=4 ep=2 and the like, of ", cli.option_names());
    arguments.insert(arguments.begin(), "--" + item);
  }
  arguments.push_back("layout");
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    throw UsageError(where + error.what());
  }
  const int64_t at_once = data_parallel_ranks(o) * o.micro_batch_size;
  const int64_t stated = o.microbatches;
  if (!stated) o.microbatches = at_once ? sequences / at_once : 0;
  require(o.microbatches > 0 && o.microbatches * at_once == sequences, where,
      data_parallel_ranks(o), " dp x ", o.micro_batch_size, " micro-batch-size",
      stated ? cat(" x ", stated, " microbatches") : "", ", allowed: what ",
      stated ? "makes" : "divides", " the global batch of ", sequences, " sequences");
  return o;
}

std::vector<Row> rows_of(const CompareOptions& options) {
  TrainOptions o = options.train;
  require(o.steps >= 1, "--steps: found ", o.steps, ", allowed: at least 1");
  o.out.clear();
  o.dump_step = 0;
  o.trace.clear();
  o.trace_steps.reset();
  o.resolve();
  const int64_t sequences = data_parallel_ranks(o) * o.microbatches * o.micro_batch_size;
  std::vector<std::string> schedules = options.schedules, layouts = options.layouts;
  if (schedules.empty() && layouts.empty()) {
    for (const ScheduleKind& kind : schedule_kinds()) schedules.push_back(kind.name);
    if (find_launch().ranks == 1) layouts = split(kLayouts, ';');
  }

  std::vector<Row> rows;
  if (o.transport != Wire::mpi && find_launch().ranks == 1) {
    TrainOptions one = o;
    one.dp = one.pp = one.ep = 1;
    one.redundant_experts = one.eplb_interval = 0;
    one.schedule = "1f1b";
    one.split.clear();
    one.microbatches = sequences / one.micro_batch_size;
    rows.push_back({"one rank", make_job(one)});
  }
  for (const std::string& name : schedules) {
    TrainOptions of_row = o;
    of_row.schedule = name;
    rows.push_back({name, make_job(of_row)});
    rows.back().name = rows.back().job.compute.name;
  }
  o.pp = options.layouts_pp;
  for (const std::string& layout : layouts)
    rows.push_back({layout, make_job(apply_layout(layout, o, sequences))});
  return rows;
}

// --- printing ------------------------------------------------------------------------------------

std::string reason(const std::vector<Outcome>& outcomes) {
  std::string why;
  for (const Outcome& o : outcomes)
    if (!o.why_not_timed.empty()) why = o.why_not_timed;
  return why;
}

void print_text(const std::vector<Outcome>& outcomes, std::ostream& out) {
  std::vector<std::string> bits;
  size_t name_width = 0, bits_width = 0;
  for (const Outcome& o : outcomes) {
    const auto [step, tensor] = differs(o, outcomes[0]);
    bits.push_back(&o == &outcomes[0]       ? "the reference"
            : step == 0                     ? "identical"
            : step > int64_t(o.loss.size()) ? "state differs at the end: " + tensor
                                            : cat("differ from step ", step, ": ", tensor));
    name_width = std::max(name_width, o.name.size());
    bits_width = std::max(bits_width, bits.back().size());
  }
  const auto line = [&](const std::string& name, const std::string& loss, const std::string& bits,
                        const std::string& rest) {
    out << format("%-*s  %-11s  %-*s  %s\n", int(name_width), name.c_str(), loss.c_str(),
        int(bits_width), bits.c_str(), rest.c_str());
  };
  line("", "final loss", "bits", "bubble  measured  activations      MiB  copies");
  for (size_t i = 0; i < outcomes.size(); ++i) {
    const Outcome& o = outcomes[i];
    const std::string measured = o.why_not_timed.empty() ? format("%.1f%%", 100 * o.measured) : "-";
    line(o.name, format("%.8f", o.loss.back()), bits[i],
        format("%5.1f%% %9s %12.1f %8.1f %7d", 100 * o.bubble, measured.c_str(), o.activations,
            double(o.activation_bytes) / (1 << 20), o.copies));
  }
  if (const std::string why = reason(outcomes); !why.empty())
    out << "measured: - because " << why << "\n";
}

void print_json(const std::vector<Outcome>& outcomes, std::ostream& out) {
  Json rows = Json::array();
  for (const Outcome& o : outcomes) {
    const auto [step, tensor] = differs(o, outcomes[0]);
    rows.push(Json::object({{"schedule", o.name}, {"final_loss", o.loss.back()},
        {"final_loss_hex", format("%a", o.loss.back())},
        {"fingerprint", format("%016llx", (unsigned long long)fingerprint(o.tensors.back()))},
        {"identical", step == 0}, {"first_step_that_differs", step ? Json(step) : Json()},
        {"first_tensor_that_differs", step ? Json(tensor) : Json()}, {"ideal_bubble", o.bubble},
        {"measured_bubble", o.why_not_timed.empty() ? Json(o.measured) : Json()},
        {"peak_activations", o.activations}, {"peak_activation_bytes", o.activation_bytes},
        {"parameter_copies", o.copies}}));
  }
  out << Json::object({{"rows", rows}, {"why_not_measured", reason(outcomes)}}).dump(2) << "\n";
}

}  // namespace

void add_compare_command(CLI::App& duet, int& exit_status) {
  Command cli(duet, "compare",
      "train under each schedule and layout and compare every bit; exit status 1 if one differs");
  const auto o = std::make_shared<CompareOptions>();
  add_train_options(cli, o->train);
  cli.parsed(
      "--schedules", o->schedules, [](const std::string& text) { return split(text); },
      "names or CSV files, with commas between; default: all published, and some layouts");
  cli.parsed(
      "--layouts", o->layouts, [](const std::string& text) { return split(text, ';'); },
      cat("options instead of those of all rows, with semicolons between; --pp is 1 here unless it "
          "is stated; default: ",
          kLayouts));
  const CLI::App* app = duet.get_subcommand("compare");
  cli.runs([o, app, &exit_status] {
    if (app->count("--pp")) o->layouts_pp = o->train.pp;
    exit_status = compare_command(*o, std::cout) ? 0 : 1;
  });
}

bool compare_command(const CompareOptions& options, std::ostream& out) {
  const std::vector<Row> rows = rows_of(options);
  const ModelConfig& config = rows[0].job.config;
  if (!options.train.init.empty()) check_checkpoint(options.train.init, config);
  std::vector<Outcome> outcomes;
  for (auto first = rows.begin(), end = first; first != rows.end(); first = end) {
    end = std::find_if(first, rows.end(),
        [&](const Row& row) { return row.job.run.ranks != first->job.run.ranks; });
    run_ranks(first->job.run, [&](Comm& world) {
      for (const Row& row : std::span(first, end)) {
        Outcome outcome = train(row.job, world);
        outcome.name = row.name;
        if (world.rank() == 0) outcomes.push_back(outcome);
      }
    });
  }
  if (outcomes.empty()) return true;  // of another MPI process than rank 0, which decides
  (options.train.format == Format::json ? print_json : print_text)(outcomes, out);
  return std::all_of(outcomes.begin(), outcomes.end(),
      [&](const Outcome& x) { return differs(x, outcomes[0]).step == 0; });
}

}  // namespace duet
