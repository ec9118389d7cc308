// `duet generate`: prompt in, text out. There is no key-value cache: duet is a trainer, and every
// token is a forward of the whole context.
// Read next: bench.h.
#pragma once
#include <iosfwd>
#include <string>

#include "data/tokenizer.h"
#include "pipeline/train/options.h"
#include "pipeline/train/trainer.h"

namespace duet {

void add_generate_command(CLI::App& duet, int& exit_status);

struct SampleOptions {
  std::string prompt = "\n";
  int64_t tokens = 200;
  double temperature = 0.8;  // 0: always the most likely token
  int64_t top_k = 0;         // sample from the k most likely only; 0: from all
  uint64_t seed = 0;
  bool raw = false;  // bytes as they are sampled, instead of Printable's
};

// The token to follow, given the logits of the last one; `draw` in [0, 1). Of equal logits the
// lower id comes first.
int32_t sample_token(std::span<const float> logits, const SampleOptions& options, double draw);

// Writes the prompt and then token after token as it comes. stop, on any rank: a signal that ends
// it after a token; returned. 0: go on.
int generate(
    Trainer& trainer, const Tokenizer& tokenizer, const SampleOptions& options, std::ostream& out,
    const std::function<int()>& stop = [] { return 0; });

struct GenerateOptions {
  // a run's folder or a checkpoint; empty: a small model trained on the spot
  std::string from;
  std::string tokenizer;             // llm.c's .bin; empty: the one that the checkpoint names
  std::optional<DeviceKind> device;  // empty: cuda if there is one
  int64_t threads = 0;
  SampleOptions sample;
};
void generate_command(const GenerateOptions& options, std::ostream& out);

}  // namespace duet
