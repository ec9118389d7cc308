// Options and TOML by main.cu itself, with every command's options that can be had without its
// model, and bodies that only check what must be true of several options together.
//
// An input is arguments, one a line; after an empty line, a TOML file. Read next: seeds.cpp.
#include <iostream>
#include <sstream>

#include "model/base/command_line.h"
#include "pipeline/checkpoint/diff_command.h"
#include "pipeline/insight/pictures/eplb_command.h"
#include "pipeline/insight/pictures/schedule_command.h"
#include "pipeline/insight/trace/analyze_command.h"
#include "pipeline/schedule/layout.h"
#include "pipeline/train/options.h"
#include "test/fuzz/fuzz.h"

namespace duet {
namespace {

// The options of a command of duet's; in place of its body, which owns them, all is well.
void without_body(
    CLI::App& duet, const char* name, int& status, void (*add)(CLI::App& duet, int& status)) {
  add(duet, status);
  duet.get_subcommand(name)->parse_complete_callback([] { throw CLI::Success(); });
}

void schedule_options(CLI::App& duet, int& status) {
  without_body(duet, "schedule", status, add_schedule_command);
}
void eplb_options(CLI::App& duet, int& status) {
  without_body(duet, "eplb", status, add_eplb_command);
}

void analyze_options(CLI::App& duet, int& status, RecordRun record) {
  add_analyze_command(duet, status, std::move(record));
  duet.get_subcommand("analyze")->parse_complete_callback([] { throw CLI::Success(); });
}

}  // namespace

// In place of those of pipeline/train, which need the model.
void add_train_command(CLI::App& duet, int&) {
  Command cli(duet, "train", "options of training");
  const auto o = std::make_shared<TrainOptions>();
  add_train_options(cli, *o);
  cli.runs([o] { o->resolve(); });
}
void add_generate_command(CLI::App& duet, int&) { Command(duet, "generate", "nothing"); }
void add_compare_command(CLI::App& duet, int&) { Command(duet, "compare", "nothing"); }
void add_bench_command(CLI::App& duet, int&) { Command(duet, "bench", "nothing"); }
void add_diff_command(CLI::App& duet, int&, MakeDumps) { Command(duet, "diff", "nothing"); }
void add_plan_command(CLI::App& duet, int&) { Command(duet, "plan", "nothing"); }
int train_command(const TrainOptions&, std::ostream&) { return 0; }

}  // namespace duet

#define DUET_BUILD "fuzzed\n"
#define add_schedule_command schedule_options
#define add_eplb_command eplb_options
#define add_analyze_command analyze_options
#define main duet_main
#include "main.cu"
#undef main

namespace duet {

void run_command_line(std::string_view input) {
  const size_t end = std::min(input.find("\n\n"), input.size());
  std::vector<std::string> arguments = {"duet"};
  std::istringstream lines{std::string(input.substr(0, end))};
  for (std::string line; std::getline(lines, line);) arguments.push_back(line.c_str());
  if (end < input.size()) {
    arguments.push_back("--config");
    arguments.push_back(as_file(input.substr(end + 2), "options.toml"));
  }
  std::vector<char*> argv;
  for (std::string& a : arguments) argv.push_back(a.data());
  std::ostringstream said, refused;
  std::streambuf* const out = std::cout.rdbuf(said.rdbuf());
  std::streambuf* const errors = std::cerr.rdbuf(refused.rdbuf());
  argv.push_back(nullptr);
  const int status = duet_main(int(argv.size()) - 1, argv.data());
  std::cout.rdbuf(out);
  std::cerr.rdbuf(errors);
  const std::string text = refused.str();
  if (status != 0 && status != 2) fault(cat("exit status ", status, ": ", text), input);
  if (status == 0 && !text.empty()) fault("exit status 0, and said: " + text, input);
  if (status == 2 && text.back() != '\n') fault("not a line: " + text, input);
  for (const unsigned char c : text)
    if (c != '\n' && (c < ' ' || c == 127)) fault("control characters in: " + text, input);
  if (status == 2) expect_one_line(text.substr(0, text.size() - 1), input);
}

}  // namespace duet
