// Presets, checks and config.json. See config.h.
#include "model/config.h"

#include "model/base/text.h"

namespace duet {

// --- sizes ---------------------------------------------------------------------------------------

// Counts are doubles, exact up to 2^53: sizes that no machine holds must not overflow before they
// are refused.
static double attention_parameters(const ModelConfig& c) {
  const double d = double(c.d_model), heads = double(c.n_heads), v = double(c.v_head_dim),
               q = heads * double(c.qk_head_dim()), rank = double(c.kv_lora_rank);
  const double queries = c.q_lora_rank ? double(c.q_lora_rank) * (d + 1 + q) : d * q;
  return queries + d * (rank + double(c.qk_rope_head_dim)) +
      rank * (1 + heads * (double(c.qk_nope_head_dim) + v)) + heads * v * d;
}

// `experts`: how many routed ones to count in a layer.
static double layer_parameters(const ModelConfig& c, int64_t layer, int64_t experts) {
  const double d = double(c.d_model);
  const double ffn = c.dense(layer)
      ? 3 * d * double(c.d_ff)
      : d * double(c.n_routed) + 3 * d * double(c.d_expert) * double(c.n_shared + experts);
  return attention_parameters(c) + 2 * d + ffn;
}

static double all_parameters(const ModelConfig& c, int64_t experts, int64_t tables) {
  double sum = double((tables * c.vocab_size + 1) * c.d_model);
  for (int64_t l = 0; l < c.n_layers; ++l) sum += layer_parameters(c, l, experts);
  return sum;
}

int64_t ModelConfig::parameters() const { return int64_t(all_parameters(*this, n_routed, 2)); }
int64_t ModelConfig::active_parameters() const { return int64_t(all_parameters(*this, topk, 1)); }

double ModelConfig::layer_flops_per_token(int64_t layer, int64_t seq_len) const {
  // A token attends to (seq_len + 1) / 2 others: 2 FLOP a multiply-add, forward once and backward
  // twice.
  const double scores = 3.0 * double(n_heads * (qk_head_dim() + v_head_dim)) * double(seq_len + 1);
  return 6.0 * layer_parameters(*this, layer, topk) + scores;
}

double ModelConfig::train_flops_per_token(int64_t seq_len) const {
  double sum = head_flops_per_token();
  for (int64_t l = 0; l < n_layers; ++l) sum += layer_flops_per_token(l, seq_len);
  return sum;
}

// The integer sizes: duet's name, Hugging Face's name, the least and the most.
struct Size {
  const char *name, *hf_name;
  int64_t ModelConfig::*field;
  int64_t least, most = 1 << 20;
};
static const Size kSizes[] = {{"vocab_size", "vocab_size", &ModelConfig::vocab_size, 2},
    {"d_model", "hidden_size", &ModelConfig::d_model, 1},
    {"n_layers", "num_hidden_layers", &ModelConfig::n_layers, 1},
    {"n_heads", "num_attention_heads", &ModelConfig::n_heads, 1},
    {"q_lora_rank", "q_lora_rank", &ModelConfig::q_lora_rank, 0},
    {"kv_lora_rank", "kv_lora_rank", &ModelConfig::kv_lora_rank, 1},
    {"qk_nope_head_dim", "qk_nope_head_dim", &ModelConfig::qk_nope_head_dim, 1},
    {"qk_rope_head_dim", "qk_rope_head_dim", &ModelConfig::qk_rope_head_dim, 2},
    {"v_head_dim", "v_head_dim", &ModelConfig::v_head_dim, 1},
    {"first_k_dense", "first_k_dense_replace", &ModelConfig::first_k_dense, 0},
    {"d_ff", "intermediate_size", &ModelConfig::d_ff, 1},
    {"d_expert", "moe_intermediate_size", &ModelConfig::d_expert, 1},
    {"n_shared", "n_shared_experts", &ModelConfig::n_shared, 0},
    {"n_routed", "n_routed_experts", &ModelConfig::n_routed, 2},
    {"topk", "num_experts_per_tok", &ModelConfig::topk, 1},
    {"n_group", "n_group", &ModelConfig::n_group, 1},
    {"topk_group", "topk_group", &ModelConfig::topk_group, 1}};

Sizes parse_sizes(const std::string& text) {
  constexpr int64_t kMost = Size{}.most;
  std::string names;
  for (const Size& s : kSizes) names += cat(names.empty() ? "" : ", ", s.name);
  Sizes sizes{text, {}};
  read_keys("--model", text, cat("NAME=SIZE, SIZE a whole number to ", kMost, ", NAME of ", names),
      [&](const std::string& key, const std::string& value) {
        const std::optional<int64_t> n = parse_number<int64_t>(value);
        for (const Size& s : kSizes)
          if (key == s.name && n && *n >= 0 && *n <= kMost) {
            sizes.values.emplace_back(s.field, *n);
            return true;
          }
        return false;
      });
  return sizes;
}

void ModelConfig::validate() const {
  for (const Size& s : kSizes)
    require(this->*s.field >= s.least && this->*s.field <= s.most, s.name, ": found ",
        this->*s.field, ", allowed: at least ", s.least, ", at most ", s.most);
  require(qk_rope_head_dim % 2 == 0, "qk_rope_head_dim: found ", qk_rope_head_dim,
      ", allowed: even numbers");
  require(topk <= n_routed, "topk: found ", topk, ", allowed: at most n_routed = ", n_routed);
  require(n_routed % n_group == 0, "n_group: found ", n_group,
      ", allowed: divisors of n_routed = ", n_routed);
  require(n_routed / n_group >= 2, "n_group: found ", n_group, " of n_routed = ", n_routed,
      ", allowed: groups of two experts or more, for a group's score is that of its two best");
  require(topk_group <= n_group, "topk_group: found ", topk_group,
      ", allowed: at most n_group = ", n_group);
  require(topk <= topk_group * (n_routed / n_group), "topk: found ", topk,
      ", allowed: at most the experts of topk_group = ", topk_group, " groups, ",
      topk_group * (n_routed / n_group));
  constexpr double kMost = 1e15;
  const double all = all_parameters(*this, n_routed, 2);
  require(all <= kMost, "n_layers, d_model and other sizes: found a model of ", all,
      " parameters, allowed: at most ", kMost);
}

// --- presets -------------------------------------------------------------------------------------

// clang-format off
static const Preset kPresets[] = {
    // tests: 8 layers, 0.6M parameters
    {"tiny",
        {.q_lora_rank = 24, .n_group = 4, .topk_group = 2, .routed_scaling = 1.5}, 64, 1},
    // the default run: 8 layers, 5M parameters
    {"small",
        {.d_model = 128,
         .kv_lora_rank = 32, .qk_nope_head_dim = 24, .qk_rope_head_dim = 8, .v_head_dim = 24,
         .d_ff = 384, .d_expert = 96, .n_routed = 16, .n_group = 4, .topk_group = 2}, 128, 1},
    // make bench: wide enough for GEMM to matter
    {"bench",
        {.d_model = 256, .n_layers = 4, .n_heads = 8,
         .kv_lora_rank = 64, .qk_nope_head_dim = 32, .qk_rope_head_dim = 16, .v_head_dim = 32,
         .d_ff = 1024, .d_expert = 512, .n_routed = 16}, 256, 8},
    // one GPU: 768 wide, 12 layers, GPT-2 vocabulary
    {"base",
        {.vocab_size = 50257, .d_model = 768, .n_layers = 12, .n_heads = 12, .q_lora_rank = 384,
         .kv_lora_rank = 256, .qk_nope_head_dim = 64, .qk_rope_head_dim = 32, .v_head_dim = 64,
         .d_ff = 3072, .d_expert = 768, .n_routed = 16, .n_group = 4, .topk_group = 2,
         .routed_scaling = 1.5}, 1024, 4},
    // the full shape, 671B parameters: for planning only
    {"deepseek-v3",
        {.vocab_size = 129280, .d_model = 7168, .n_layers = 61, .n_heads = 128, .q_lora_rank = 1536,
         .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64, .v_head_dim = 128,
         .first_k_dense = 3, .d_ff = 18432, .d_expert = 2048, .n_routed = 256, .topk = 8,
         .n_group = 8, .topk_group = 4, .routed_scaling = 2.5}, 4096, 1}};
// clang-format on

std::span<const Preset> presets() { return kPresets; }

std::string preset_names() {
  std::string names;
  for (const Preset& p : kPresets) names += cat(names.empty() ? "" : ", ", p.name);
  return names;
}

const Preset& find_preset(const std::string& name) {
  for (const Preset& p : kPresets)
    if (p.name == name) return p;
  throw UsageError(cat("--preset: found '", name, "', allowed: ", preset_names()));
}

// --- config.json ---------------------------------------------------------------------------------

// What duet's model has no choice about.
static Json::Object fixed() {
  return {{"rope_interleave", true}, {"norm_topk_prob", true}, {"scoring_func", "sigmoid"},
      {"topk_method", "noaux_tc"}, {"hidden_act", "silu"}, {"rms_norm_eps", ModelConfig::kNormEps},
      {"attention_bias", false}, {"tie_word_embeddings", false}};
}

Json ModelConfig::to_json(int64_t seq_len, const std::string& dtype) const {
  Json j = Json::object();
  j.set("architectures", Json(Json::Array{"DeepseekV3ForCausalLM"}));
  j.set("model_type", "deepseek_v3");
  for (const Size& s : kSizes) j.set(s.hf_name, this->*s.field);
  j.set("q_lora_rank", q_lora_rank ? Json(q_lora_rank) : Json());
  j.set("num_key_value_heads", n_heads);
  j.set("routed_scaling_factor", routed_scaling);
  j.set("rope_theta", rope_theta);
  for (auto& [key, value] : fixed()) j.set(key, value);
  j.set("num_nextn_predict_layers", int64_t(0));
  j.set("max_position_embeddings", seq_len);
  j.set("bos_token_id", Json());
  j.set("eos_token_id", Json());
  j.set("pad_token_id", pad_token >= 0 ? Json(pad_token) : Json());
  j.set("torch_dtype", dtype);
  return j;
}

ModelConfig ModelConfig::from_json(const Json& j, const std::string& where) {
  const auto expect = [&](const Json& in, const char* key, const Json& value) {
    const auto found = in.find(key);
    require(!found || found->dump() == value.dump(), in.where(), ": ", key, ": found ",
        found ? shortened(found->dump()) : "", ", allowed: ", value.dump());
  };
  require(j.find("model_type").has_value(), where,
      ": model_type: found none, allowed: \"deepseek_v3\"");
  expect(j, "model_type", "deepseek_v3");
  for (const auto& [key, value] : fixed()) expect(j, key.c_str(), value);
  expect(j, "rope_scaling", Json());
  ModelConfig c;
  for (const Size& s : kSizes) {
    const bool q_lora = s.field == &ModelConfig::q_lora_rank;
    const Json value = j.at(s.hf_name);
    c.*s.field = q_lora && value.is_null() ? 0 : value.integer(q_lora ? 1 : s.least, s.most);
  }
  if (const auto heads = j.find("num_key_value_heads"); heads && !heads->is_null())
    expect(j, "num_key_value_heads", c.n_heads);
  expect(j, "head_dim", c.qk_rope_head_dim);
  if (const auto pad = j.find("pad_token_id"); pad && !pad->is_null()) {
    c.pad_token = pad->integer(-c.vocab_size, c.vocab_size - 1);
    if (c.pad_token < 0) c.pad_token += c.vocab_size;  // counted from the end
  }
  c.routed_scaling = j.at("routed_scaling_factor").number(0, 1e6);
  // transformers 5 writes rope_parameters, earlier versions and duet rope_theta.
  const auto rope = j.find("rope_parameters");
  const bool nested = rope && !rope->is_null();
  if (nested)
    for (const char* key : {"rope_type", "type"}) expect(*rope, key, "default");
  c.rope_theta = (nested ? *rope : j).at("rope_theta").number(1, 1e15);
  c.validate();
  return c;
}

}  // namespace duet
