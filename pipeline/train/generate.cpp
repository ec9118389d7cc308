// See generate.h.
#include "pipeline/train/generate.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <numeric>
#include <random>

#include "model/base/command_line.h"
#include "pipeline/train/train_command.h"

namespace duet {

int32_t sample_token(std::span<const float> logits, const SampleOptions& o, double draw) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto likelier = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  const size_t kept = o.top_k > 0 ? std::min(size_t(o.top_k), ids.size()) : ids.size();
  std::partial_sort(ids.begin(), ids.begin() + ptrdiff_t(kept), ids.end(), likelier);
  if (o.temperature == 0) return ids[0];
  std::vector<double> up_to(kept);  // cumulative weights
  double sum = 0;
  for (size_t i = 0; i < kept; ++i)
    up_to[i] = sum += std::exp((double(logits[ids[i]]) - double(logits[ids[0]])) / o.temperature);
  const size_t i = size_t(std::upper_bound(up_to.begin(), up_to.end(), draw * sum) - up_to.begin());
  return ids[std::min(i, kept - 1)];
}

int generate(Trainer& trainer, const Tokenizer& tokenizer, const SampleOptions& o,
    std::ostream& out, const std::function<int()>& stop) {
  std::vector<int32_t> ids = tokenizer.encode(o.prompt);
  std::mt19937_64 random(o.seed);
  Printable printable;
  const auto print = [&](std::string_view bytes, bool last = false) {
    out << (o.raw ? std::string(bytes) : printable.add(bytes, last)) << std::flush;
  };
  print(o.prompt);
  int signal = 0;
  for (int64_t i = 0; i < o.tokens && !signal; ++i) {
    const std::vector<float> logits = next_token_logits(trainer, ids);
    if (!std::ranges::all_of(logits, [](float x) { return std::isfinite(x); }))
      throw Error(cat("token ", i + 1, ": expected finite logits, found others"));
    // a model's vocabulary may be padded
    const size_t known = std::min(logits.size(), size_t(tokenizer.vocab_size()));
    const double draw = double(random() >> 11) * 0x1p-53;
    ids.push_back(sample_token(std::span(logits).first(known), o, draw));
    print(tokenizer.decode(std::span(ids).last(1)));
    signal = std::ranges::max(trainer.world.gather_values(stop()));
  }
  print("", true);
  out << std::endl;
  return signal;
}

void add_generate_command(CLI::App& duet, int&) {
  Command cli(
      duet, "generate", "continue a prompt; without options with a model trained on the spot");
  const auto o = std::make_shared<GenerateOptions>();
  cli.text("--from", o->from,
      "a run's folder or a checkpoint; default: a small model is trained on the spot");
  cli.parsed(
      "--prompt", o->sample.prompt, [](const std::string& text) { return text; },
      "text to continue; default: a line end");
  cli.number("--tokens", o->sample.tokens, 0, INT32_MAX,
      "how many tokens to add; each sees the last max_position_embeddings (config.json) before it");
  cli.number("--temperature", o->sample.temperature, 0, 1e6, "0: always the most likely token");
  cli.number("--top-k", o->sample.top_k, 0, INT32_MAX,
      "sample from the k most likely tokens; 0: from all");
  cli.number("--seed", o->sample.seed, 0, INT64_MAX, "of the sampling");
  cli.flag("--raw", o->sample.raw,
      "sampled bytes as they are; else \\xNN for control characters and what is not UTF-8");
  cli.text("--tokenizer", o->tokenizer,
      "llm.c's tokenizer .bin; default: the one the run was trained with, else bytes");
  cli.choice("--device", o->device, {DeviceKind::cpu, DeviceKind::cuda}, device_kind_name,
      "where it runs; default: cuda if there is one");
  cli.number("--threads", o->threads, 0, 4096, "cores used; 0: all");
  cli.runs([o] { generate_command(*o, std::cout); });
}

// The tokenizer that is asked for, else the one that the checkpoint names.
static Tokenizer tokenizer_of(const GenerateOptions& g, const std::string& dir) {
  if (!g.tokenizer.empty()) return Tokenizer(g.tokenizer);
  if (dir.empty()) return Tokenizer();
  const Json trainer = checkpoint_trainer(dir);
  if (trainer.is_null()) {
    const int64_t vocab_size = checkpoint_config(dir).vocab_size;
    require(vocab_size <= kBytes, "--tokenizer: found none for the ", vocab_size, " tokens of ",
        dir, ", allowed: llm.c's tokenizer .bin, bytes are too few");
    return Tokenizer();
  }
  const auto named = trainer.find("tokenizer");
  const std::string path = named ? named->string() : "";
  if (path.empty()) return Tokenizer();
  require(std::filesystem::exists(path), named->where(), ": found ", shortened(path),
      ", which is not there, allowed: name it with --tokenizer");
  return Tokenizer(path);
}

void generate_command(const GenerateOptions& g, std::ostream& out) {
  const SampleOptions& s = g.sample;
  require(!s.prompt.empty(), "--prompt: found nothing, allowed: at least one character");
  const Launcher launcher = find_launcher();
  require(launcher.ranks == 1, "generate: found ", launcher.ranks, " processes of ", launcher.name,
      ", allowed: one, for a sample has one rank");
  TrainOptions o;
  o.device = g.device;
  o.threads = g.threads;
  o.dp = 1;
  if (g.from.empty()) {
    out << "no --from: a small model is trained on the spot\n";
    o.steps = 60;
  }
  const std::string dir = g.from.empty() ? "" : newest_checkpoint(g.from);
  require(g.from.empty() || !dir.empty(), "--from: found no checkpoint in ", g.from,
      ", allowed: a run's folder or a checkpoint");
  const Tokenizer tokenizer = tokenizer_of(g, dir);
  if (!dir.empty()) {
    o.init = dir;
    // memory is for the context that will be there, not for the longest that the model knows
    const int64_t most =
        Json::load(dir + "/config.json").at("max_position_embeddings").integer(1, INT32_MAX);
    o.seq_len = std::min(most, int64_t(tokenizer.encode(s.prompt).size()) + s.tokens);
    o.micro_batch_size = o.microbatches = 1;
  }
  const Job job = make_job(o, dir.empty());
  require(tokenizer.vocab_size() <= job.config.vocab_size || g.tokenizer.empty(),
      "--tokenizer: found ", tokenizer.vocab_size(), " tokens, allowed: at most the model's ",
      job.config.vocab_size);
  for (int32_t id : tokenizer.encode(s.prompt))
    require(id < job.config.vocab_size, "--prompt: found token ", id, ", '",
        Printable().add(tokenizer.decode({&id, 1}), true), "', allowed: those below the model's ",
        job.config.vocab_size);
  if (!dir.empty()) check_checkpoint(dir, job.config);
  run_ranks(job.run, [&](Comm& world) {
    const std::unique_ptr<Device> device = make_device(job, world);
    Trainer trainer(job, world, *device);
    if (!dir.empty()) load_checkpoint(trainer, dir, Restore::weights);
    for (int64_t step = 1; dir.empty() && step <= o.steps; ++step) train_step(trainer, step);
    generate(trainer, tokenizer, s, out);
  });
}

}  // namespace duet
