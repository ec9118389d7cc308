// What --init makes of the folders of others: config.json means what it means to transformers, or
// is refused by the name of the field; and what others find in duet's own.
#include <gtest/gtest.h>

#include "pipeline/checkpoint/safetensors.h"
#include "test/run_testing.h"

namespace duet {
namespace {

class Import : public RunTest {
 protected:
  // Of a short run, without its training state, and with another config.json.
  std::string folder(const std::string& text) const {
    const std::string dir = path("model");
    if (!fs::exists(dir)) {
      run(options("run", 1));
      fs::create_directory(dir);
      fs::copy_file(checkpoint() + "/model.safetensors", dir + "/model.safetensors");
    }
    std::ofstream(dir + "/config.json") << text;
    return dir;
  }
  std::string checkpoint() const { return newest_checkpoint(path("run")); }
  // duet's, with what transformers adds
  Json config() const {
    folder("");
    Json j = Json::load(checkpoint() + "/config.json");
    return j.set("head_dim", 8).set("dtype", "float32").set("use_cache", true);
  }
  TrainOptions from(const std::string& dir) const {
    TrainOptions o = options("", 1);
    o.model = {};
    o.init = dir;
    return o;
  }
};

TEST_F(Import, ConfigMeansWhatItMeansToOthers) {
  const Json good = config();
  const auto accepted = [&](Json j) { return checkpoint_config(folder(j.dump())); };
  const ModelConfig plain = accepted(good);
  EXPECT_EQ(plain,
      accepted(Json(good).set(
          "rope_parameters", Json::object({{"rope_theta", 10000.0}, {"rope_type", "default"}}))));
  EXPECT_EQ(accepted(Json(good).set("pad_token_id", 3)).pad_token, 3);
  EXPECT_EQ(accepted(Json(good).set("pad_token_id", -1)).pad_token, plain.vocab_size - 1);
  const auto refused = [&](const std::string& key, const Json& value) {
    SCOPED_TRACE(key);
    expect_refused([&] { accepted(Json(good).set(key, value)); }, {"config.json: ", key});
  };
  for (const char* name : {"rope_type", "type"}) {
    const Json yarn = Json::object({{name, "yarn"}, {"rope_theta", 10000.0}, {"factor", 4.0}});
    refused("rope_parameters", yarn);
    refused("rope_scaling", yarn);
  }
  refused("num_key_value_heads", 1);
  refused("head_dim", 2);
  refused("pad_token_id", plain.vocab_size);
  refused("q_lora_rank", 0);
  expect_refused([&] { accepted(Json(good).set("n_group", plain.n_routed)); }, {"n_group"});
  std::string text = good.dump();
  text.replace(text.find("\"q_lora_rank\""), 13, "\"other\"");
  expect_refused([&] { checkpoint_config(folder(text)); }, {"config.json", "q_lora_rank"});
}

// As of torch.nn.Embedding's padding_idx.
TEST_F(Import, ThePadTokenIsNotTrained) {
  const auto gradient_of_space = [&](const Json& j) {
    TrainOptions o = from(folder(j.dump()));
    o.out = path("dumped");
    o.overwrite = true;
    o.dump_step = 1;
    run(o);
    EXPECT_EQ(checkpoint_config(newest_checkpoint(o.out)), checkpoint_config(o.init));
    const SafetensorsReader dump(path("dumped/dump-step-1.safetensors"));
    const std::vector<float> all = dump.floats(*dump.find("grad.model.embed_tokens.weight"));
    const size_t d = all.size() / 256;
    const auto largest = [&](size_t row) {
      float most = 0;
      for (size_t i = row * d; i < (row + 1) * d; ++i) most = std::max(most, std::abs(all[i]));
      return most;
    };
    EXPECT_GT(largest('a'), 0);
    return largest(' ');
  };
  EXPECT_GT(gradient_of_space(config()), 0);
  EXPECT_EQ(gradient_of_space(config().set("pad_token_id", ' ')), 0);
}

TEST_F(Import, OthersFindSharedExpertsOfNoWidth) {
  TrainOptions o = options("none", 2);
  o.model = parse_sizes("n_layers=3,n_shared=0");
  o.checkpoint_every = 1;
  run(o);
  const SafetensorsReader weights(newest_checkpoint(o.out) + "/model.safetensors");
  for (int layer : {1, 2}) {
    const std::string shared = cat("model.layers.", layer, ".mlp.shared_experts.");
    for (const char* name : {"gate_proj", "up_proj"})
      EXPECT_NO_THROW(weights.at(cat(shared, name, ".weight"), {0, 64}));
    EXPECT_NO_THROW(weights.at(shared + "down_proj.weight", {64, 0}));
  }
  EXPECT_FALSE(weights.find("model.layers.0.mlp.shared_experts.gate_proj.weight"));  // is dense
  const std::vector<std::string> before = bits("none");
  fs::remove_all(checkpoint_dir(o.out, 2));
  o.resume = true, o.pp = 2;
  run(o);
  EXPECT_EQ(bits("none"), before);
}

}  // namespace
}  // namespace duet
