// What the tests of whole runs share: a folder that disappears with the test, the options of a short run, a run's bits, and the
// check of refusals.
#pragma once
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "model/json.h"
#include "pipeline/checkpoint.h"
#include "pipeline/durable.h"
#include "pipeline/train_command.h"

namespace duet {

namespace fs = std::filesystem;

class RunTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "duet-run-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  // A short run of a very small model.
  TrainOptions options(const std::string& out, int64_t steps = 4) const {
    TrainOptions o;
    o.preset = "tiny";
    o.model = "n_layers=3";
    o.seq_len = 16;
    o.microbatches = 4;
    o.steps = steps;
    o.decay_steps = 8;
    o.warmup_steps = 2;
    o.device = "cpu";
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
  // What a run computed: loss and norm of every step in all their bits, and a hash of its newest checkpoint's tensors.
  std::vector<std::string> bits(const std::string& out) const {
    std::vector<std::string> all;
    std::ifstream metrics(folder_ + "/" + out + "/metrics.jsonl");
    for (std::string line; std::getline(metrics, line);) {
      const Json j = Json::parse(line, "metrics");
      all.push_back(cat(j.at("step").integer(), " ", j.at("loss_hex").string(), " ", j.at("grad_norm_hex").string()));
    }
    const std::string dir = newest_checkpoint(folder_ + "/" + out);
    for (const char* name : {"model.safetensors", "optimizer.safetensors"})
      all.push_back(cat(name, " ", std::hash<std::string>()(contents(dir + "/" + name))));
    return all;
  }
  static std::string contents(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // The refusal says all of `words`. One line; of a schedule, more: the ranks' lists with a cell marked.
  static void expect_refused(const std::function<void()>& call, const std::vector<std::string>& words, bool one_line = true) {
    try {
      call();
      FAIL() << "accepted, expected a refusal that says " << words[0];
    } catch (const UsageError& error) {
      for (const std::string& word : words) EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
      EXPECT_TRUE(!one_line || std::string(error.what()).find('\n') == std::string::npos) << error.what();
    }
  }
  std::string folder_;
};

}  // namespace duet
