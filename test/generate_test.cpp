// duet generate, and what it reads: the checkpoint's tokenizer, its context, its weights; and what
// it prints.
#include "pipeline/train/generate.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "pipeline/checkpoint/safetensors.h"
#include "test/run_testing.h"

namespace duet {
namespace {

class Generate : public RunTest {
 protected:
  // A folder with a model and nothing of its training.
  std::string model() const {
    run(options("run", 1));
    fs::create_directory(path("model"));
    for (const char* name : {"config.json", "model.safetensors"})
      fs::copy(newest_checkpoint(path("run")) + "/" + name, path("model"));
    return path("model");
  }
};

TEST_F(Generate, TakesTheCheckpointsTokenizer) {
  std::string table(1024, '\0');  // llm.c's: every byte, written as its upper-case letter
  const int32_t header[] = {kTokenizerMagic, 2, 256};
  std::memcpy(table.data(), header, sizeof header);
  for (int byte = 0; byte < 256; ++byte) table += {char(1), char(std::toupper(byte))};
  write("data/gpt2_tokenizer.bin", table);
  const std::string dir = model();
  const auto generated = [&](const std::string& tokenizer) {
    DurableDir target(path("copy"));
    for (const char* name : {"config.json", "model.safetensors"})
      target.file(name).write(contents(dir + "/" + name));
    target.file("trainer.json").write(Json::object({{"step", 1}, {"tokenizer", tokenizer}}).dump());
    target.publish();
    std::ostringstream out;
    generate_command({.from = path("copy"),
                         .device = DeviceKind::cpu,
                         .threads = 1,
                         .sample = {.prompt = "A", .tokens = 40}},
        out);
    fs::remove_all(path("copy"));
    return out.str();
  };
  const std::string bytes = generated(""), upper = generated(path("data/gpt2_tokenizer.bin"));
  EXPECT_EQ(
      std::count_if(upper.begin(), upper.end(), [](char c) { return c >= 'g' && c <= 'w'; }), 0)
      << upper;
  EXPECT_NE(bytes, upper);
  expect_refused([&] { generated(path("data/none.bin")); },
      {"trainer.json: tokenizer", "none.bin", "--tokenizer"});
}

// A model of 163,840 positions takes no more memory than its context; one of 65 tokens needs no
// text.
TEST_F(Generate, WorksWithAnyContextAndVocabulary) {
  const std::string dir = model();
  GenerateOptions g{.from = dir,
      .device = DeviceKind::cpu,
      .threads = 1,
      .sample = {.prompt = "To", .tokens = 5, .raw = true}};
  const auto generated = [&] {
    std::ostringstream out;
    generate_command(g, out);
    return out.str();
  };
  const auto config = [&](const std::string& key, int64_t value) {
    Json j = Json::load(dir + "/config.json");
    write("model/config.json", j.set(key, value).dump());
  };
  const std::string before = generated();
  config("max_position_embeddings", 163840);
  EXPECT_EQ(generated(), before);
  EXPECT_EQ(before.size(), 8u);  // prompt, tokens, line end
  config("max_position_embeddings", 0);
  expect_refused(generated, {"config.json: max_position_embeddings", "0"});
  config("max_position_embeddings", 16);
  config("vocab_size", 300);  // no bytes, and whose texts nobody knows
  expect_refused(generated, {"--tokenizer", "300"});

  const SafetensorsReader all(dir + "/model.safetensors");
  FileWriter file(dir + "/small.safetensors");
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : all.tensors()) {
    specs.push_back(tensor);
    if (tensor.shape[0] == 256) specs.back().shape[0] = 65;  // embedding and head
  }
  SafetensorsWriter writer(file, specs);
  for (const TensorSpec& t : writer.tensors())
    writer.write(t.name, all.bytes(*all.find(t.name), 0, t.bytes()).data(), size_t(t.bytes()));
  writer.finish();
  file.close();
  fs::rename(dir + "/small.safetensors", dir + "/model.safetensors");
  config("vocab_size", 65);
  expect_refused(generated, {"--prompt: found token 84, 'T'", "65"});
  g.sample.prompt = "!";
  for (char c : generated()) EXPECT_LT(c, 65);
}

// What a file must not bring into a model, by name.
TEST_F(Generate, WeightsThatAreNotFiniteAreRefused) {
  const std::string dir = model();
  const std::string bias = "model.layers.1.mlp.gate.e_score_correction_bias",
                    norm = "model.norm.weight", good = contents(dir + "/model.safetensors");
  for (const std::string& name : {bias, norm})
    for (const float bad : {NAN, -INFINITY}) {
      std::string bytes = good;
      const SafetensorsReader reader(dir + "/model.safetensors");
      std::memcpy(bytes.data() + reader.find(name)->begin + 4, &bad, 4);
      write("bad/model.safetensors", bytes);
      fs::copy(dir + "/config.json", path("bad"), fs::copy_options::overwrite_existing);
      TrainOptions o = options("again", 1);
      o.init = path("bad");
      o.model = {};
      expect_refused([&] { run(o); }, {"model.safetensors: " + name + ": found ", " at element 1"});
      fs::remove_all(path("again"));
    }
}

// Finite weights may still be too large.
TEST_F(Generate, LogitsThatAreNotFiniteAreAFailure) {
  const std::string dir = model();
  std::string bytes = contents(dir + "/model.safetensors");
  const SafetensorsReader reader(dir + "/model.safetensors");
  const auto& norm = *reader.find("model.norm.weight");
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (int64_t i = 0; i < norm.elements(); ++i)
    std::memcpy(bytes.data() + norm.begin + 4 * i, &kLargest, 4);
  write("model/model.safetensors", bytes);
  const GenerateOptions g{
      .from = dir, .device = DeviceKind::cpu, .threads = 1, .sample = {.tokens = 1}};
  std::ostringstream out;
  try {
    generate_command(g, out);
    FAIL() << out.str();
  } catch (const UsageError& error) {
    FAIL() << "refused: " << error.what();
  } catch (const Error& error) {
    EXPECT_EQ(error.what(), std::string("rank 0: token 1: expected finite logits, found others"));
  }
}

TEST_F(Generate, SampledBytesArePrintedSafely) {
  run(options("run", 1));
  GenerateOptions g{.from = path("run"),
      .device = DeviceKind::cpu,
      .threads = 1,
      .sample = {.prompt = "\x1b[31m", .tokens = 200, .temperature = 100}};  // any byte
  std::ostringstream safe, raw;
  generate_command(g, safe);
  g.sample.raw = true;
  generate_command(g, raw);
  EXPECT_EQ(safe.str(), Printable().add(raw.str(), true));
  EXPECT_NE(safe.str(), raw.str());
  EXPECT_EQ(safe.str().substr(0, 8), "\\x1b[31m");
}

}  // namespace
}  // namespace duet
