// What the tests of whole runs share: a text to train on, the options of a short run, a run's bits,
// and the check of refusals.
#pragma once
#include <functional>
#include <sstream>

#include "model/base/json.h"
#include "pipeline/checkpoint/checkpoint.h"
#include "pipeline/checkpoint/durable.h"
#include "pipeline/train/train_command.h"
#include "test/testing.h"

namespace duet {

// The default data are duet's own sources. Tests train on this instead, so that no change of a
// comment changes what they see: words of a small vocabulary, the frequent ones much more so.
inline std::string write_words(const std::string& path) {
  uint64_t state = 1;
  const auto random = [&](uint64_t n) {
    return (state = state * 6364136223846793005u + 1442695040888963407u) % 1000003 % n;
  };
  std::ofstream file(path);
  for (int i = 0; i < 20000; ++i) {
    const uint64_t rank = random(8) * random(8);
    for (uint64_t c = 0; c <= rank % 7; ++c) file << char('a' + (rank * 11 + c * 5) % 26);
    file << (i % 12 == 11 ? '\n' : ' ');
  }
  return path;
}

class RunTest : public FolderTest {
 protected:
  void SetUp() override { words_ = write_words(path("words.txt")); }

  // A short run of a very small model.
  TrainOptions options(const std::string& out, int64_t steps = 4) const {
    TrainOptions o;
    o.preset = "tiny";
    o.data = words_;
    o.model = parse_sizes("n_layers=3");
    o.seq_len = 16;
    o.microbatches = 4;
    o.steps = steps;
    o.decay_steps = 8;
    o.warmup_steps = 2;
    o.device = DeviceKind::cpu;
    o.threads = 1;
    o.val_sequences = 3;
    o.sample = 0;
    o.log_every = 1;
    if (!out.empty()) o.out = folder_ + "/" + out;
    return o;
  }
  std::string run(const TrainOptions& o) const {
    std::ostringstream text;
    train_command(o, text);
    return text.str();
  }
  // What a run computed: loss and norm of every step in all their bits, and a hash of its newest
  // checkpoint's tensors.
  std::vector<std::string> numbers(const std::string& out) const { return bits(out, false); }
  // The same, and where tokens and experts went.
  std::vector<std::string> bits(const std::string& out, bool where = true) const {
    std::vector<std::string> all;
    std::ifstream metrics(folder_ + "/" + out + "/metrics.jsonl");
    for (std::string line; std::getline(metrics, line);) {
      const Json j = Json::parse(line, "metrics");
      all.push_back(cat(j.at("step").integer(), " ", j.at("loss_hex").string(), " ",
          j.at("grad_norm_hex").string(), where ? " " + j.at("moe").dump() : ""));
    }
    const std::string dir = newest_checkpoint(folder_ + "/" + out);
    for (const char* name : {"model.safetensors", "optimizer.safetensors"})
      all.push_back(cat(name, " ", std::hash<std::string>()(contents(dir + "/" + name))));
    return all;
  }
  // The refusal says all of `words`. One line; of a schedule, more: the ranks' lists with a cell
  // marked.
  static void expect_refused(const std::function<void()>& call,
      const std::vector<std::string>& words, bool one_line = true) {
    try {
      call();
      FAIL() << "accepted, expected a refusal that says " << words[0];
    } catch (const UsageError& error) {
      for (const std::string& word : words)
        EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
      EXPECT_TRUE(!one_line || std::string(error.what()).find('\n') == std::string::npos)
          << error.what();
    }
  }
  std::string words_;
};

}  // namespace duet
