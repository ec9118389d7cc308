// duet's command line: the roll-call of its commands. Each command's options and body live with its
// subject; here are the TOML file, the version, CLI11's errors in duet's idiom, and what analyze
// and diff show when they are given no file. How it ends: comm/process.h.
//
// g++ compiles this file as plain C++ (the Makefile says -x c++). The reading of the whole begins
// here.
// Read next: model/README.md.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <set>

#include "comm/process.h"
#include "model/base/check.h"
#include "model/base/read_file.h"
#include "model/base/text.h"
#include "model/base/toml.h"
#include "model/machine/gemm_cpu.h"
#include "pipeline/checkpoint/diff_command.h"
#include "pipeline/insight/pictures/eplb_command.h"
#include "pipeline/insight/pictures/schedule_command.h"
#include "pipeline/insight/plan/plan_command.h"
#include "pipeline/insight/trace/analyze_command.h"
#include "pipeline/train/bench.h"
#include "pipeline/train/compare_command.h"
#include "pipeline/train/generate.h"
#include "pipeline/train/train_command.h"

using namespace duet;

// TOML whose options outside any [section] are those of the command that was given, wherever
// --config stands. A key that is no option, or stands twice, is refused by name.
class CommandConfig : public CLI::ConfigBase {
 public:
  explicit CommandConfig(const CLI::App& duet) : duet_(duet) {}
  std::vector<CLI::ConfigItem> from_config(std::istream&) const override {
    if (duet_.get_subcommands().empty()) throw CLI::RequiredError::Subcommand(1);
    const auto file = duet_.get_config_ptr()->as<std::string>();
    std::vector<CLI::ConfigItem> items;
    std::set<std::string> seen;
    for (const TomlItem& toml : read_toml(read_file(file), "--config: " + file)) {
      const std::string command =
          toml.section.empty() ? duet_.get_subcommands()[0]->get_name() : toml.section;
      items.push_back({{command}, toml.key, toml.values});
      const std::string name = shortened(items.back().fullname());
      const auto commands_with_it = duet_.get_subcommands([&](const CLI::App* app) {
        return app->get_name() == command && app->get_option_no_throw("--" + toml.key);
      });
      require(!commands_with_it.empty(), "--config: found '", name, "' in ", file,
          ", allowed: what --help lists, without dashes; [sections] named like commands");
      require(seen.insert(name).second, "--config: found '", name, "' twice in ", file,
          ", allowed: once");
    }
    return items;
  }
  std::string to_flag(const CLI::ConfigItem& item) const override {
    const std::string value = item.inputs.size() == 1 ? item.inputs[0] : "a list";
    require(value == "true" || value == "false", "--", item.name, ": found ", shortened(value),
        ", allowed: true, false");
    return value;
  }

 private:
  const CLI::App& duet_;
};

// What CLI11 refuses, in duet's idiom. Of values the options' own checks say it already.
static std::string explained(const CLI::App& duet, const CLI::ParseError& error) {
  std::string found = "found", command;
  for (const std::string& argument : duet.remaining(true)) found += " " + argument;
  if (!duet.get_subcommands().empty()) command = duet.get_subcommands()[0]->get_name() + " ";
  const bool of_value = dynamic_cast<const CLI::ValidationError*>(&error);
  const std::string what = of_value || found == "found" ? error.what() : found;
  return shortened(what, 1000) +
      (of_value ? "" : ", allowed: what duet " + command + "--help lists");
}

// What `duet analyze` looks at when it is given no file: overlapped pairs on an emulated link.
static void record_demonstration(const std::string& file, std::ostream& out) {
  TrainOptions o;
  o.preset = "tiny";
  o.steps = 3;
  o.microbatches = 8;
  o.dp = o.ep = o.pp = 2;
  o.schedule = "dualpipe";
  o.link = parse_link("intra=200MB/s,inter=200MB/s,latency=20us");
  o.sample = 0;
  o.trace = file;
  train_command(o, out);
}

// What `duet diff` compares when it is given nothing: a step of one rank and of DualPipe's two.
static std::array<std::string, 2> dump_demonstration(const std::string& folder, std::ostream& out) {
  TrainOptions o;
  o.preset = "tiny";
  o.steps = o.dump_step = 2;
  o.microbatches = 8;
  o.sample = 0;
  o.out = folder + "/A";
  train_command(o, out);
  o.pp = 2;
  o.schedule = "dualpipe";
  o.out = folder + "/B";
  train_command(o, out);
  return {folder + "/A/dump-step-2.safetensors", folder + "/B/dump-step-2.safetensors"};
}

int main(int argc, char** argv) {
  return run_process([&] {
    int exit_status = 0;
    CLI::App duet(
        "duet trains small DeepSeek-V3-style mixture-of-experts models, on a laptop or on GPUs.\n"
        "Change the schedule, or the layout: not one bit of the loss changes.");
    duet.require_subcommand(1);
    duet.get_formatter()->column_width(40);
    duet.set_version_flag("--version",
        [] { return cat("duet ", DUET_BUILD, "instruction set  ", cpu_instruction_set()); });
    duet.set_config("--config", "", "a TOML file with options of the command, e.g. steps=300")
        ->check(CLI::ExistingFile)
        ->check([](const std::string& path) {  // a pipe would be waited for
          return std::filesystem::is_regular_file(path)
              ? ""
              : cat("found ", shortened(path), ", a pipe or device, allowed: a file");
        });
    duet.config_formatter(std::make_shared<CommandConfig>(duet));

    add_train_command(duet, exit_status);     // trains a model, leaves checkpoints and metrics
    add_generate_command(duet, exit_status);  // text from a checkpoint
    add_compare_command(duet, exit_status);   // trains under each schedule: not one bit may differ
    // which tensors of two dumps or checkpoints differ
    add_diff_command(duet, exit_status, dump_demonstration);
    add_schedule_command(duet, exit_status);  // draws, checks and times a pipeline schedule
    add_eplb_command(duet, exit_status);      // plans where experts and their replicas go
    add_plan_command(duet, exit_status);      // what a step of a large model will cost, and where
    // where the time of a trace went
    add_analyze_command(duet, exit_status, record_demonstration);
    add_bench_command(duet, exit_status);  // tokens/s and GFLOP/s of this machine

    try {
      duet.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      if (error.get_exit_code() == 0) return duet.exit(error);  // --help, --version
      throw UsageError(explained(duet, error));
    }
    return exit_status;
  });
}
