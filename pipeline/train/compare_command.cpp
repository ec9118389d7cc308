// See compare_command.h.
#include "pipeline/train/compare_command.h"

#include <algorithm>
#include <iostream>
#include <ostream>
#include <set>

#include "model/base/command_line.h"
#include "model/base/hash.h"
#include "model/base/temporary_folder.h"
#include "pipeline/checkpoint/diff_command.h"
#include "pipeline/schedule/simulator.h"
#include "pipeline/train/same_run.h"
#include "pipeline/train/trainer.h"

namespace duet {
namespace {

// What is compared beside the schedules where nothing is stated.
constexpr const char* kLayouts =
    "dp=4 ep=4; dp=2 ep=2 pp=2 schedule=dualpipe; pp=4 schedule=zbv micro-batch-size=2; "
    "dp=4 ep=4 redundant-experts=4 eplb-interval=2";

// Their reference, on threads.
constexpr const char* kOneRank = "dp=1 pp=1 ep=1 redundant-experts=0 eplb-interval=0 schedule=1f1b";

// What a job did.
struct Outcome {
  std::vector<double> loss, norm;     // [steps]
  std::vector<TensorHashes> tensors;  // [steps + 1]: each step's gradient, then the final state
  double measured = 0;
  int64_t activation_bytes = 0;  // of the rank with the most
  std::string near;              // the first step that came near the limit of exact sums, if any
};

// A schedule or a layout.
struct Row {
  std::string name;
  Job job;
  Outcome outcome = {};
  // Where its bits first differ from the first row's: the step, 0 where none does, steps + 1 where
  // only the final state does; and its first tensor, in the order of the forward pass.
  int64_t step = 0;
  std::string tensor = {};
  // and the first activation of that step, found by a second run: "layer.1.output [0, 5, 3]"
  std::string activation = {};
};

void find_difference(Row& row, const Outcome& reference) {
  const Outcome& o = row.outcome;
  for (size_t i = 0; i < o.tensors.size() && !row.step; ++i) {
    std::set<ForwardPlace> places;
    for (const auto& [name, hash] : reference.tensors[i])
      if (o.tensors[i].at(name) != hash) places.insert(forward_place(name));
    const bool same_numbers =
        i == o.loss.size() || (o.loss[i] == reference.loss[i] && o.norm[i] == reference.norm[i]);
    if (places.empty() && same_numbers) continue;
    row.step = int64_t(i) + 1;
    row.tensor = places.empty() ? "no gradient" : std::get<std::string>(*places.begin());
  }
}

// One rank's part in running a job, up to step `last`, of which `dump` is kept unless it is empty;
// what rank 0 returns counts.
Outcome train(const Job& job, Comm& world, int64_t last, const std::string& dump = "") {
  if (job.run.transport != Wire::local) require_same_job(world, job);
  Outcome o;
  const std::unique_ptr<Device> device = make_device(job, world);
  Trainer trainer(job, world, *device);
  if (!job.options.init.empty()) load_checkpoint(trainer, job.options.init, Restore::weights);
  StepHooks hooks;
  hooks.on_gradients = [&] { o.tensors.push_back(tensor_hashes(trainer, Hashed::gradient)); };
  for (int64_t step = 1; step <= last; ++step) {
    if (step == last) hooks.dump = dump;
    const StepResult r = train_step(trainer, step, hooks);
    if (o.near.empty()) o.near = near_the_limit(step, r.largest_gradient);
    o.loss.push_back(r.loss);
    o.norm.push_back(r.grad_norm);
    o.measured += r.idle / double(job.options.steps);
  }
  o.tensors.push_back(tensor_hashes(trainer, Hashed::state));
  o.activation_bytes = std::ranges::max(world.gather_values(device->memory(Use::activations).peak));
  return o;
}

// Runs two jobs again up to the step at which the second one's bits differ, and looks for the first
// activation that does.
std::string first_activation(const Row& reference, const Row& row) {
  const Job& job = row.job;
  const double floats = double(job.global_sequences()) * double(job.options.seq_len) *
      double(job.config.vocab_size + job.config.n_layers * job.config.d_model);
  if (floats > 1 << 28) return "not looked for: a dump would be over 1 GiB";
  const TemporaryFolder folder;
  std::vector<std::string> dumps;
  for (const Row* run : {&reference, &row}) {
    dumps.push_back(cat(folder.path, "/", dumps.size(), ".safetensors"));
    run_ranks(run->job.run, [&](Comm& world) { train(run->job, world, row.step, dumps.back()); });
  }
  const std::string first = first_difference(dumps[0], dumps[1]);
  return first.starts_with("grad.") || first.empty() ? "none" : first;
}

// --- what is compared ----------------------------------------------------------------------------

int64_t data_parallel_ranks(const TrainOptions& o) {
  return o.dp ? o.dp : std::max<int64_t>(1, find_launcher().ranks / o.pp);
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
  o.resolve();
  const int64_t sequences = data_parallel_ranks(o) * o.microbatches * o.micro_batch_size;
  std::vector<std::string> schedules = options.schedules, layouts = options.layouts;
  if (schedules.empty() && layouts.empty()) {
    schedules = split(schedule_names());
    if (find_launcher().ranks == 1) layouts = split(kLayouts, ';');
  }

  std::vector<Row> rows;
  if (o.transport != Wire::mpi && find_launcher().ranks == 1) {
    TrainOptions one = o;
    one.split.clear();
    rows.push_back({"one rank", make_job(apply_layout(kOneRank, one, sequences))});
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

double bubble(const Job& job) { return simulate(job.compute, {{StageCosts()}}).bubble(); }
double activations(const Job& job) { return job.usage.peak() * job.compute.stage_share(); }

std::string device_of(const Row& row) { return device_kind_name(*row.job.options.device); }
std::string dtype_of(const Row& row) { return dtype_name(*row.job.options.dtype); }

// Why `measured` means nothing in some rows.
std::string reason(const std::vector<Row>& rows) {
  std::string why;
  for (const Row& row : rows)
    if (const std::string of_row = why_not_timed(row.job); !of_row.empty()) why = of_row;
  return why;
}

void print_text(const std::vector<Row>& rows, std::ostream& out) {
  std::vector<std::string> bits;
  size_t name_width = 0, bits_width = 0;
  for (const Row& row : rows) {
    bits.push_back(&row == &rows[0] ? "the reference"
            : row.step == 0         ? "identical"
            : row.step > row.job.options.steps
            ? "state differs at the end: " + row.tensor
            : cat("differ from step ", row.step, ": ", row.tensor));
    name_width = std::max(name_width, row.name.size());
    bits_width = std::max(bits_width, bits.back().size());
  }
  const auto line = [&](const std::string& name, const std::string& loss, const std::string& bits,
                        const std::string& rest) {
    out << format("%-*s  %-11s  %-*s  %s\n", int(name_width), name.c_str(), loss.c_str(),
        int(bits_width), bits.c_str(), rest.c_str());
  };
  out << "device " << device_of(rows[0]) << ", dtype " << dtype_of(rows[0]) << "\n";
  line("", "final loss", "bits", "bubble  measured  activations      MiB  copies");
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto& [name, job, o, step, tensor, activation] = rows[i];
    const std::string measured =
        why_not_timed(job).empty() ? format("%.1f%%", 100 * o.measured) : "-";
    line(name, format("%.8f", o.loss.back()), bits[i],
        format("%5.1f%% %9s %12.1f %8.1f %7d", 100 * bubble(job), measured.c_str(),
            activations(job), double(o.activation_bytes) / (1 << 20), job.compute.weight_copies()));
  }
  for (const Row& row : rows) {
    if (!row.activation.empty())
      out << row.name << ": activations of step " << row.step << " that differ: " << row.activation
          << "\n";
    // rows that are identical have the same sums
    if (!row.outcome.near.empty() && (&row == &rows[0] || row.step > 0))
      out << row.name << ": " << row.outcome.near << "\n";
  }
  if (const std::string why = reason(rows); !why.empty())
    out << "measured: - because " << why << "\n";
}

void print_json(const std::vector<Row>& rows, std::ostream& out) {
  Json list = Json::array();
  for (const auto& [name, job, o, step, tensor, activation] : rows)
    list.push(Json::object({{"schedule", name}, {"final_loss", o.loss.back()},
        {"final_loss_hex", format("%a", o.loss.back())},
        {"fingerprint", hash_text(fingerprint(o.tensors.back()))}, {"identical", step == 0},
        {"first_step_that_differs", step ? Json(step) : Json()},
        {"first_tensor_that_differs", step ? Json(tensor) : Json()},
        {"first_activation_that_differs", activation.empty() ? Json() : Json(activation)},
        {"near_the_limit_of_exact_sums", o.near.empty() ? Json() : Json(o.near)},
        {"ideal_bubble", bubble(job)},
        {"measured_bubble", why_not_timed(job).empty() ? Json(o.measured) : Json()},
        {"peak_activations", activations(job)}, {"peak_activation_bytes", o.activation_bytes},
        {"parameter_copies", job.compute.weight_copies()}}));
  out << Json::object({{"device", device_of(rows[0])}, {"dtype", dtype_of(rows[0])}, {"rows", list},
                          {"why_not_measured", reason(rows)}})
             .dump(2)
      << "\n";
}

}  // namespace

void add_compare_command(CLI::App& duet, int& exit_status) {
  Command cli(duet, "compare",
      "train under each schedule and layout and compare every bit; exit status 1 if one differs");
  const auto o = std::make_shared<CompareOptions>();
  add_compare_options(cli, o->train);
  cli.parsed(
      "--schedules", o->schedules, [](const std::string& text) { return split(text); },
      "names or CSV files, with commas between; default: all published, and some layouts");
  cli.parsed(
      "--layouts", o->layouts, [](const std::string& text) { return split(text, ';'); },
      cat("options instead of those of all rows, with semicolons between; --pp is 1 here unless it "
          "is stated; default: ",
          kLayouts));
  CLI::App* app = duet.get_subcommand("compare");
  app->get_option("--dtype")->description("bf16: on cuda, whose bits hold where shapes are equal");
  cli.runs([o, app, &exit_status] {
    if (app->count("--pp")) o->layouts_pp = o->train.pp;
    exit_status = compare_command(*o, std::cout) ? 0 : 1;
  });
}

bool compare_command(const CompareOptions& options, std::ostream& out) {
  std::vector<Row> rows = rows_of(options);
  if (!options.train.init.empty()) check_checkpoint(options.train.init, rows[0].job.config);
  for (auto first = rows.begin(), end = first; first != rows.end(); first = end) {
    end = std::find_if(first, rows.end(),
        [&](const Row& row) { return row.job.run.ranks != first->job.run.ranks; });
    run_ranks(first->job.run, [&](Comm& world) {
      for (Row& row : std::span(first, end)) {
        Outcome outcome = train(row.job, world, row.job.options.steps);
        if (world.rank() == 0) row.outcome = std::move(outcome);
      }
    });
  }
  const Outcome& reference = rows[0].outcome;
  if (reference.loss.empty()) return true;  // of another MPI process than rank 0, which decides
  for (Row& row : rows) {
    find_difference(row, reference);
    if (row.step && row.step <= row.job.options.steps && find_launcher().ranks == 1)
      row.activation = first_activation(rows[0], row);
  }
  (options.train.format == Format::json ? print_json : print_text)(rows, out);
  return std::all_of(rows.begin(), rows.end(), [](const Row& row) { return row.step == 0; });
}

}  // namespace duet
