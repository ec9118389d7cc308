// The readers: each takes an input apart as duet does, and what was taken must come back the same
// where duet can write it. Read next: command_line.cpp.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <sstream>

#include "data/batch.h"
#include "data/dataset.h"
#include "data/tokenizer.h"
#include "model/base/json.h"
#include "model/config.h"
#include "moe/load_monitor.h"
#include "pipeline/checkpoint/safetensors.h"
#include "pipeline/insight/pictures/eplb_command.h"
#include "pipeline/insight/trace/report.h"
#include "pipeline/schedule/checker.h"
#include "pipeline/schedule/simulator.h"
#include "test/fuzz/fuzz.h"

namespace duet {
namespace {

void run_schedule(std::string_view input) {
  const Schedule s = read_csv(std::string(input), "s.csv");
  check(s);
  if (!std::isfinite(simulate(s, {{StageCosts()}}).makespan))
    fault("a makespan that is not finite", input);
  std::stringstream csv;
  write_csv(csv, s);
  const Schedule again = read_csv(csv.str(), "again.csv");
  if (again.ranks != s.ranks || again.rank_of != s.rank_of ||
      again.two_directions != s.two_directions)
    fault("reads back as another schedule", input);
}

// Asks for each value as what it is not, too.
void visit(const Json& j, int depth = 0) {
  const auto ask = [&](auto f) {
    try {
      f();
    } catch (const UsageError&) {}
  };
  ask([&] { j.boolean(); });
  ask([&] { j.integer(0, 1000); });
  ask([&] { j.number(); });
  ask([&] { j.string(); });
  ask([&] { j.at("step"); });
  if (depth > 8) return;
  ask([&] {
    for (const Json& item : j.items()) visit(item, depth + 1);
  });
  ask([&] {
    for (const auto& [key, value] : j.members()) visit(value, depth + 1);
  });
}

void run_json(std::string_view input) {
  const Json j = Json::parse(input, "f.json");
  const std::string text = j.dump();
  if (Json::parse(text, "again").dump() != text || Json::parse(j.dump(2), "again").dump() != text)
    fault("reads back as another value: " + text, input);
  visit(j);
}

// The first byte chooses what is done with the loads.
void run_loads(std::string_view input) {
  if (input.empty()) return;
  EplbCommandOptions o;
  o.loads = as_file(input.substr(1), "loads");
  o.format = input[0] % 3 == 0 ? Format::text : input[0] % 3 == 1 ? Format::json : Format::svg;
  o.planning.policy = input[0] & 64 ? EplbPolicy::balanced : EplbPolicy::deepseek;
  std::ostringstream out;
  eplb_command(o, out);
}

void run_safetensors(std::string_view input) {
  const SafetensorsReader reader(as_file(input, "model.safetensors"));
  for (const auto& [name, tensor] : reader.tensors()) {
    if (reader.at(name, tensor.shape).begin != tensor.begin) fault("not the same tensor", input);
    reader.bytes(tensor, 0, tensor.size);
    try {
      reader.floats(tensor);
    } catch (const UsageError& refused) {  // integers
      expect_one_line(refused.what(), input);
    }
  }
}

void run_config(std::string_view input) {
  const ModelConfig c = ModelConfig::from_json(Json::parse(input, "config.json"), "config.json");
  c.parameters();
  c.active_parameters();
  const Json again = c.to_json(64, "float32");
  if (!(ModelConfig::from_json(again, "again") == c)) fault("reads back as other sizes", input);
}

void run_trainer(std::string_view input) {
  const Json trainer = Json::parse(input, "trainer.json");
  trainer.at("step").integer(0);
  BalancerOptions options;
  options.shape = {8, 10, 1, 1, 2};
  LoadMonitor monitor(options, {1, 2});
  if (const auto balancer = trainer.find("balancer"); balancer && monitor.restore(*balancer))
    if (!monitor.restore(Json::parse(monitor.state().dump(), "again")))
      fault("its own state is not accepted", input);
}

void run_done(std::string_view input) {
  const std::string done = as_file(input, "DONE");
  as_file("hello", "a.bin");
  verify(std::filesystem::path(done).parent_path().string());
}

void read_data(const std::string& path) {
  const Dataset dataset = load_dataset(path, 8);
  const BatchSource batches(dataset, 8, 2, dataset.vocab_size);
  std::vector<int32_t> tokens(9);
  for (int64_t step = 0; step < 3; ++step)
    for (int64_t i = 0; i < 2; ++i) batches.sequence(1, step, i, tokens);
  for (int64_t i = 0; i < std::min<int64_t>(4, batches.val_sequences()); ++i)
    batches.val_sequence(i, tokens);
}

void run_shard(std::string_view input) { read_data(as_file(input, "shard.bin")); }
void run_text(std::string_view input) { read_data(as_file(input, "text.txt")); }

void run_tokenizer(std::string_view input) {
  const Tokenizer tokenizer(as_file(input, "tokenizer.bin"));
  std::vector<int32_t> ids;
  for (int32_t id = -1; id <= std::min<int64_t>(300, tokenizer.vocab_size()); ++id)
    ids.push_back(id);
  const std::string text = tokenizer.decode(std::span(ids).subspan(1, ids.size() - 2));
  if (tokenizer.decode(tokenizer.encode(text)) != text) fault("decodes to another text", input);
  tokenizer.decode(ids);
}

// Of what is accepted nothing is more than the span: covered and exposed are parts of it.
void run_analyze(std::string_view input) {
  const Analysis a = analyze_bytes(input);
  for (const auto& rank : a.ranks)
    if (rank.measure.overlap.covered < 0 ||
        rank.measure.overlap.covered > rank.measure.overlap.span)
      fault("covered beyond the span", input);
  std::ostringstream report;
  report_json(report, a, 0);
  Json::parse(report.str(), "report");
  Json::parse(profile_json(a), "profile");
}

}  // namespace

const std::vector<Target>& targets() {
  static const std::vector<Target> all = {{"schedule", run_schedule, schedule_seeds, true},
      {"json", run_json, json_seeds}, {"loads", run_loads, loads_seeds},
      {"safetensors", run_safetensors, safetensors_seeds}, {"config", run_config, config_seeds},
      {"trainer", run_trainer, trainer_seeds}, {"done", run_done, done_seeds},
      {"shard", run_shard, shard_seeds}, {"text", run_text, text_seeds},
      {"tokenizer", run_tokenizer, tokenizer_seeds}, {"analyze", run_analyze, analyze_seeds},
      {"command_line", run_command_line, command_line_seeds}};
  return all;
}

}  // namespace duet
