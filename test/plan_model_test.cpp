// Models to plan for: parameters and FLOP of known ones, what a config.json leaves out, and what is
// refused.
#include <filesystem>
#include <fstream>

#include "model/config.h"
#include "test/plan_testing.h"

namespace duet {
namespace {

TEST(PlanModel, ParametersOfKnownModels) {
  // billions, as their publishers state them
  EXPECT_NEAR(double(find_model("deepseek-v3").parameters()) / 1e9, 671, 1);
  EXPECT_NEAR(double(find_model("deepseek-v3").active_parameters()) / 1e9, 37, 1);
  EXPECT_NEAR(double(find_model("llama-3-8b").parameters()) / 1e9, 8.03, 0.01);
  EXPECT_NEAR(double(find_model("Llama-3.1-405B").parameters()) / 1e9, 405.8, 0.5);
  EXPECT_NEAR(double(find_model("mixtral-8x22b").parameters()) / 1e9, 140.6, 0.2);
  const auto read = [](const std::string& text) {
    return double(read_hf_config(text, "config.json").parameters()) / 1e9;
  };
  EXPECT_NEAR(read(R"({"model_type": "mixtral", "num_local_experts": 8})"), 46.7, 0.1);
  EXPECT_NEAR(read(R"({"model_type": "gpt2"})"), 0.124, 0.001);
  EXPECT_NEAR(
      read(R"({"model_type": "qwen3_moe", "num_hidden_layers": 48, "head_dim": 128})"), 30.5, 0.1);
  EXPECT_NEAR(read(R"({"model_type": "kimi_k2", "n_routed_experts": 384, "num_attention_heads": 64,
    "vocab_size": 163840, "first_k_dense_replace": 1})"),
      1027, 3);
  EXPECT_NEAR(read(R"({"model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048,
    "intermediate_size": 10944, "num_hidden_layers": 27, "num_attention_heads": 16,
    "q_lora_rank": null, "num_experts_per_tok": 6, "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1})"),
      15.7, 0.1);
}

TEST(PlanModel, PresetsAgreeWithModelConfig) {
  for (const Preset& preset : presets()) {
    EXPECT_NO_THROW(preset.model.validate()) << preset.name;
    const PlanModel m = find_model(preset.name);
    const double ours = double(m.parameters()), theirs = double(preset.model.parameters());
    EXPECT_NEAR(ours / theirs, 1, 0.005) << preset.name;
    EXPECT_NEAR(3 * m.forward_flops(preset.seq_len, true) /
            preset.model.train_flops_per_token(preset.seq_len),
        1, 0.02)
        << preset.name;
  }
}

TEST(PlanModel, DenseTransformerIsSixN) {
  const PlanModel m = gpt_model(24, 2048, 16);
  const double n = double(m.parameters());  // tied: the embedding counts once, as the head
  const double attention = 12.0 * 24 * 2048 * 1024;
  EXPECT_NEAR(3 * m.forward_flops(1024, false) / (6 * n + attention), 1, 0.001);
  // 96 B s l h^2 (1 + s / 6h + V / 16lh), with the forward of the layers once more
  // ("Efficient Large-Scale Language Model Training on GPU Clusters", section 5.1)
  const PlanJob job = plan_job(m, 8, 16, 1024);
  const double s = 1024, l = 24, h = 2048, V = 51200;
  EXPECT_NEAR(step_flops(job, Flops::with_recompute, false) /
          (96 * 16 * s * l * h * h * (1 + s / (6 * h) + V / (16 * l * h))),
      1, 0.002);
}

TEST(PlanModel, RefusesWhatItDoesNotKnow) {
  const auto read = [](const char* text) { return [=] { read_hf_config(text, "c.json"); }; };
  expect_plan_refused(read(R"({"model_type": "deepseek_v32", "index_topk": 2048})"),
      {"c.json", "index_topk", "not modelled"});
  expect_plan_refused(read(R"({"model_type": "gpt_oss", "layer_types": ["sliding_attention"]})"),
      {"c.json", "sliding_attention", "layer_types"});
  expect_plan_refused(read(R"({"model_type": "mamba"})"), {"c.json", "mamba", "deepseek_v3"});
  expect_plan_refused(read(R"({"hidden_size": 64})"), {"c.json", "model_type is missing"});
  expect_plan_refused(
      read(R"({"model_type": "llama", "hidden_size": "big"})"), {"hidden_size", "big"});
  expect_plan_refused(
      read(R"({"model_type": "llama", "hidden_size": 100})"), {"hidden_size", "multiple", "100"});
  expect_plan_refused(read("{"), {"c.json"});
  expect_plan_refused(
      read(R"({"model_type": "mistral"})"), {"sliding_window 4096", "not modelled"});
  // by the file's own names
  expect_plan_refused(read(R"({"model_type": "mixtral", "num_experts_per_tok": 9})"),
      {"num_experts_per_tok", "8 experts", "9"});
  expect_plan_refused(
      read(R"({"model_type": "mixtral", "moe_layer_freq": 1.5})"), {"moe_layer_freq", "1.5"});
  expect_plan_refused(read(R"({"model_type": "gpt2", "n_embd": 0})"), {"n_embd", "0"});
  expect_plan_refused(read(R"({"model_type": "deepseek_v2"})"), {"num_experts_per_tok is missing"});
  expect_plan_refused(read(R"({"model_type": "glm4_moe"})"), {"head_dim is missing", "96"});
  expect_plan_refused(
      [] { find_model("gpt-9"); }, {"--model", "gpt-9", "llama-3-8b", "config.json"});
  const PlanModel m =
      read_hf_config(R"({"model_type": "llama", "quantization_config": {}})", "c.json");
  EXPECT_EQ(m.layers, 32);
  EXPECT_EQ(m.notes.size(), 8u);  // six defaults, as many heads of keys, and the quantization
}

// As transformers 5.24's configuration classes have them.
TEST(PlanModel, DefaultsAreTransformers) {
  const auto read = [](const std::string& type, const std::string& more = "") {
    return read_hf_config(cat(R"({"model_type": ")", type, "\"", more, "}"), "c.json");
  };
  const PlanModel v2 = read("deepseek_v2", R"(, "num_experts_per_tok": 6)");
  EXPECT_EQ(v2.layers, 32);
  EXPECT_EQ(v2.q_lora, 1536);
  EXPECT_EQ(v2.topk_groups, 1);
  EXPECT_EQ(read("deepseek_v3").mtp, 1);
  const PlanModel dense = read("deepseek_v3", R"(, "n_routed_experts": null)");
  EXPECT_EQ(dense.moe_layers(), 0);
  EXPECT_EQ(dense.ffn, 18432);
  EXPECT_NE(dense.notes.back().find("n_routed_experts is null"), std::string::npos);
  EXPECT_EQ(read("mistral", R"(, "sliding_window": null)").kv_heads, 8);
  const PlanModel qwen = read("qwen2", R"(, "sliding_window": 4096, "num_key_value_heads": null)");
  EXPECT_EQ(qwen.kv_heads, 32);  // its sliding window is off, and null is as many as heads
  EXPECT_NE(qwen.notes.back().find("num_key_value_heads"), std::string::npos);
}

TEST(PlanModel, ReadsNestedConfigsAndDenseLayers) {
  const PlanModel m = read_hf_config(R"({"text_config": {"model_type": "qwen3_moe",
    "num_hidden_layers": 8, "decoder_sparse_step": 2, "mlp_only_layers": [3]}})",
      "c.json");
  EXPECT_EQ(m.moe_layers(), 3);  // 1, 5 and 7
  EXPECT_FALSE(m.moe(3));
  const PlanModel outer = read_hf_config(R"({"model_type": "llama", "tie_word_embeddings": true,
    "quantization_config": {"quant_method": "fp8"}, "text_config": {"num_hidden_layers": 2}})",
      "c.json");
  EXPECT_EQ(outer.layers, 2);
  EXPECT_TRUE(outer.tied);
  EXPECT_NE(outer.notes.back().find("fp8"), std::string::npos);
}

TEST(PlanModel, OpensAFolder) {
  const std::string folder = ::testing::TempDir() + "/hf_model";
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json") << R"({"model_type": "gpt2", "n_layer": 3})";
  EXPECT_EQ(find_model(folder).layers, 3);
}

}  // namespace
}  // namespace duet
