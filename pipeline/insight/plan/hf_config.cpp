// See model.h. A Hugging Face config.json becomes a PlanModel: families, their other names for the
// same sizes, their defaults, and what is refused.
#include <map>
#include <optional>

#include "pipeline/insight/plan/fields.h"
#include "pipeline/insight/plan/model.h"

namespace duet {
namespace {

// Defaults of transformers' configuration classes, under the canonical names; a type that is
// another's with other defaults says so in "like".
const char* const kDefaults = R"({
  "llama": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": false},
  "mistral": {"like": "llama", "intermediate_size": 14336, "num_key_value_heads": 8},
  "qwen2": {"like": "llama", "vocab_size": 151936, "intermediate_size": 22016,
    "num_key_value_heads": 32},
  "qwen3": {"like": "qwen2", "head_dim": 128},
  "qwen3_moe": {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
    "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 4, "experts": 128,
    "topk": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1,
    "tie_word_embeddings": false},
  "mixtral": {"like": "llama", "intermediate_size": 14336, "num_key_value_heads": 8, "experts": 8,
    "topk": 2},
  "gpt2": {"vocab_size": 50257, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "positions": 1024, "tie_word_embeddings": true},
  "gpt_neox": {"vocab_size": 50432, "hidden_size": 6144, "intermediate_size": 24576,
    "num_hidden_layers": 44, "num_attention_heads": 64, "tie_word_embeddings": false},
  "deepseek_v2": {"vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 30, "num_attention_heads": 32, "moe_intermediate_size": 1407,
    "experts": 64, "topk": 6, "n_shared_experts": 2, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 0, "tie_word_embeddings": false},
  "deepseek_v3": {"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "num_hidden_layers": 61, "num_attention_heads": 128, "moe_intermediate_size": 2048,
    "experts": 256, "topk": 8, "n_shared_experts": 1, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_group": 8,
    "topk_group": 4, "first_k_dense_replace": 3, "tie_word_embeddings": false},
  "kimi_k2": {"like": "deepseek_v3"},
  "glm4_moe": {"vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 10944,
    "num_hidden_layers": 46, "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128,
    "experts": 128, "topk": 8, "moe_intermediate_size": 1408, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "tie_word_embeddings": false}
})";

// Other names of the same size.
const std::map<std::string, std::string> kSynonyms = {{"n_embd", "hidden_size"},
    {"n_layer", "num_hidden_layers"}, {"n_head", "num_attention_heads"},
    {"n_inner", "intermediate_size"}, {"n_positions", "positions"}, {"n_ctx", "positions"},
    {"num_experts", "experts"}, {"num_local_experts", "experts"}, {"n_routed_experts", "experts"},
    {"num_experts_per_tok", "topk"}, {"experts_per_token", "topk"}, {"moe_topk", "topk"},
    {"num_shared_experts", "n_shared_experts"}, {"moe_k", "topk"}};

// What changes the work and is not modelled.
std::optional<std::string> not_modelled(const Fields& f) {
  const auto set = [&](const char* key) {
    const std::string text = f.has(key) ? f.at(key).dump() : "null";
    return text != "null" && text != "false" && text != "0" && text != "[]" && text != "{}";
  };
  if (set("index_topk")) return "sparse attention (index_topk, index_n_heads)";
  if (f.has("layer_types"))
    for (const Json& type : f.at("layer_types").items())
      if (type.string() != "full_attention")
        return cat(type.string(), " (layer_types)",
            f.text("model_type") == "gpt_oss" ? ", with attention sinks" : "");
  if (f.text("model_type") == "gpt_oss") return "attention sinks";
  if (set("sliding_window") && f.flag("use_sliding_window", true))
    return "sliding-window attention (sliding_window)";
  for (const char* key : {"linear_num_value_heads", "linear_attn_config", "attn_type_list",
           "full_attention_interval", "mamba_d_state", "ssm_cfg"})
    if (set(key)) return cat("linear attention or state-space layers (", key, ")");
  for (const char* key : {"num_hash_layers", "hash_layers"})
    if (set(key)) return cat("hash layers (", key, ")");
  const std::string scoring = f.text_or("scoring_func", "softmax");
  if (scoring != "softmax" && scoring != "sigmoid")
    return cat("the scoring ", scoring, " (scoring_func)");
  return {};
}

// The type's defaults, those it is `like` included.
Json defaults_of(const std::string& type, const std::string& where) {
  static const Json all = Json::parse(kDefaults, "defaults");
  std::string allowed;
  for (const auto& [name, _] : all.members()) allowed += cat(' ', name);
  const auto own = all.find(type);
  require(bool(own), where, ": model_type: found ", type, ", allowed:", allowed);
  const auto like = own->find("like");
  Json defaults = like ? defaults_of(like->string(), where) : Json::object();
  for (const auto& [key, value] : own->members())
    if (key != "like") defaults.set(key, value);
  return defaults;
}

void read_experts(PlanModel& m, const Fields& f) {
  m.experts = f.integer_or("experts", 0);
  if (!m.experts) return;
  m.topk = f.integer("topk", 1, m.experts);
  m.expert_ffn = m.type == "mixtral" ? m.ffn : f.integer("moe_intermediate_size", 1);
  m.shared_ffn = f.integer_or("n_shared_experts", 0) * m.expert_ffn;
  m.groups = f.integer_or("n_group", 1, 1);
  m.topk_groups = f.integer_or("topk_group", m.groups, 1);
  m.dense_layers = f.integer_or("first_k_dense_replace", 0);
  m.sparse_step =
      std::max(f.integer_or("decoder_sparse_step", 1, 1), f.integer_or("moe_layer_freq", 1, 1));
  if (f.has("mlp_only_layers")) m.dense_list = f.integers("mlp_only_layers");
  if (m.moe_layers() == m.layers) m.ffn = 0;
}

}  // namespace

PlanModel read_hf_config(const std::string& text, const std::string& where) {
  Json raw = Json::parse(text, where), config = Json::object();
  if (const auto nested = raw.find("text_config")) raw = Json(*nested);
  for (const auto& [key, value] : raw.members())
    config.set(kSynonyms.contains(key) ? kSynonyms.at(key) : key, value);
  PlanModel m;
  m.name = where;
  m.type = Fields(config, where).text("model_type");
  const auto missing = not_modelled(Fields(config, where));
  require(!missing, where, ": ", m.type, " has ", missing.value_or(""),
      ", which is not modelled; allowed: models without it");
  const Json defaults = defaults_of(m.type, where);
  for (const auto& [key, value] : defaults.members()) {
    const auto given = config.find(key);
    if (given && (!given->is_null() || key == "q_lora_rank")) continue;
    config.set(key, value);
    m.notes.push_back(cat(key, " is missing: ", value.dump(), ", the default of ", m.type));
  }
  const Fields f(config, where);
  m.layers = f.integer("num_hidden_layers", 1, 10000);
  m.hidden = f.integer("hidden_size", 1);
  m.vocab = f.integer("vocab_size", 2);
  m.heads = f.integer("num_attention_heads", 1);
  m.kv_heads = f.integer_or("num_key_value_heads", m.heads, 1);
  m.gated = m.type != "gpt2" && m.type != "gpt_neox";
  m.ffn = f.integer_or("intermediate_size", 4 * m.hidden, 1);
  m.tied = f.flag("tie_word_embeddings", false);
  m.positions = m.type == "gpt2" ? f.integer("positions", 1) : 0;
  if (f.has("kv_lora_rank")) {
    m.q_lora = f.integer_or("q_lora_rank", 0), m.kv_lora = f.integer("kv_lora_rank", 1);
    m.nope = f.integer("qk_nope_head_dim", 1), m.rope = f.integer("qk_rope_head_dim", 1);
    m.v_dim = f.integer("v_head_dim", 1);
  }
  require(m.kv_lora || f.has("head_dim") || m.hidden % m.heads == 0, where,
      ": hidden_size: expected a multiple of num_attention_heads = ", m.heads, ", found ",
      m.hidden);
  require(m.heads % m.kv_heads == 0, where, ": num_key_value_heads: expected a divisor of ",
      m.heads, ", found ", m.kv_heads);
  m.head_dim = m.kv_lora ? m.v_dim : f.integer_or("head_dim", m.hidden / m.heads, 1);
  read_experts(m, f);
  m.mtp = f.integer_or("num_nextn_predict_layers", 0);
  if (f.has("quantization_config"))
    m.notes.push_back(
        cat("quantization_config (", f.object("quantization_config").text_or("quant_method", "?"),
            ") says how the weights are stored; --dtype says what products compute in"));
  return m;
}

}  // namespace duet
