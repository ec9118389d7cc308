// See model.h. A Hugging Face config.json becomes a PlanModel: families, their other names for the
// same sizes, their defaults, and what is refused. Records of published runs are read by it too.
#include <optional>

#include "pipeline/insight/plan/fields.h"
#include "pipeline/insight/plan/model.h"

// "synonyms": other names of the same size, those of published runs included. "defaults": those of
// transformers' configuration classes; a type that is another's with other defaults says so in
// "like" (transformers has no kimi_k2: it is published with deepseek_v3's).
DUET_EMBED(families, DUET_FILE("pipeline/insight/plan/models/families.json"))

namespace duet {
namespace {

Json family_table(const char* name) {
  static const Json all = Json::parse(families, "models/families.json");
  return all.at(name);
}

// The name under which a file has a size: that, or a synonym.
std::string own_key(const Fields& f, const std::string& size) {
  static const Json::Object synonyms = family_table("synonyms").members();
  if (f.has(size)) return size;
  for (const auto& [other, canonical] : synonyms)
    if (f.has(other) && canonical.string() == size) return other;
  return size;
}

// A size, the least it may be, and what it is where it is missing; read only where the model has
// the size `of`.
struct Size {
  const char* key;
  int64_t PlanModel::*member;
  int64_t least, otherwise;
  const char* of = nullptr;
};
constexpr int64_t kRequired = -1, kMost = 10000000;
constexpr Size kSizes[] = {{"num_hidden_layers", &PlanModel::layers, 1, kRequired},
    {"hidden_size", &PlanModel::hidden, 1, kRequired},
    {"vocab_size", &PlanModel::vocab, 2, kRequired},
    {"num_attention_heads", &PlanModel::heads, 1, kRequired},
    {"num_key_value_heads", &PlanModel::kv_heads, 1, 0}, {"head_dim", &PlanModel::head_dim, 1, 0},
    {"intermediate_size", &PlanModel::ffn, 0, 0}, {"window", &PlanModel::window, 0, 0},
    {"num_nextn_predict_layers", &PlanModel::mtp, 0, 0},
    {"kv_lora_rank", &PlanModel::kv_lora, 0, 0},
    {"q_lora_rank", &PlanModel::q_lora, 0, 0, "kv_lora_rank"},
    {"qk_nope_head_dim", &PlanModel::nope, 1, kRequired, "kv_lora_rank"},
    {"qk_rope_head_dim", &PlanModel::rope, 1, kRequired, "kv_lora_rank"},
    {"v_head_dim", &PlanModel::v_dim, 1, kRequired, "kv_lora_rank"},
    {"num_experts", &PlanModel::experts, 0, 0},
    {"num_experts_per_tok", &PlanModel::topk, 1, kRequired, "num_experts"},
    {"moe_intermediate_size", &PlanModel::expert_ffn, 1, 0, "num_experts"},
    {"shared_ffn", &PlanModel::shared_ffn, 0, 0, "num_experts"},
    {"n_group", &PlanModel::groups, 1, 1, "num_experts"},
    {"topk_group", &PlanModel::topk_groups, 1, 0, "num_experts"},
    {"first_k_dense_replace", &PlanModel::dense_layers, 0, 0, "num_experts"},
    {"decoder_sparse_step", &PlanModel::sparse_step, 1, 1, "num_experts"}};

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
    return cat("sliding-window attention (sliding_window ", f.at("sliding_window").dump(), ")");
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

// The type's defaults, those it is `like` included; empty of an unknown one.
Json defaults_of(const std::string& type) {
  const auto own = family_table("defaults").find(type);
  if (!own) return Json::object();
  const auto like = own->find("like");
  Json defaults = like ? defaults_of(like->string()) : Json::object();
  for (const auto& [key, value] : own->members())
    if (key != "like") defaults.set(key, value);
  return defaults;
}

// What is missing follows from other sizes.
PlanModel sizes_of(const Fields& f) {
  const auto own = [&](const char* key) { return own_key(f, key); };
  PlanModel m;
  m.name = one_line(f.text_or("name", f.where())), m.type = f.text(own("model_type"));
  for (const Size& size : kSizes)
    if (const std::string key = own(size.key); !size.of || f.integer_or(own(size.of), 0) > 0)
      m.*size.member = size.otherwise == kRequired || f.has(key) ? f.integer(key, size.least, kMost)
                                                                 : size.otherwise;
  require(m.layers <= 10000, f.where(), ": ", own("num_hidden_layers"),
      ": expected at most 10000, found ", m.layers);
  m.gated = f.flag("gated", m.type != "gpt" && m.type != "gpt2" && m.type != "gpt_neox");
  m.tied = f.flag(own("tie_word_embeddings"), m.type == "gpt");
  if (m.type == "gpt2") m.positions = f.integer(own("n_positions"), 1, kMost);
  if (!m.kv_heads) m.kv_heads = m.heads;
  require(m.heads % m.kv_heads == 0, f.where(), ": ", own("num_key_value_heads"),
      ": expected a divisor of ", m.heads, ", found ", m.kv_heads);
  require(m.kv_lora || m.head_dim || m.hidden % m.heads == 0, f.where(), ": head_dim is missing, ",
      own("hidden_size"), ": expected a multiple of ", own("num_attention_heads"), " = ", m.heads,
      ", found ", m.hidden);
  if (!m.head_dim) m.head_dim = m.kv_lora ? m.v_dim : m.hidden / m.heads;
  if (!m.ffn) m.ffn = 4 * m.hidden;
  if (!m.experts) return m;
  require(m.topk <= m.experts, f.where(), ": ", own("num_experts_per_tok"),
      ": expected at most the ", m.experts, " experts, found ", m.topk);
  if (!m.expert_ffn) m.expert_ffn = m.ffn;
  if (!m.shared_ffn) m.shared_ffn = f.integer_or(own("n_shared_experts"), 0) * m.expert_ffn;
  if (!m.topk_groups) m.topk_groups = m.groups;
  if (f.has("mlp_only_layers")) m.dense_list = f.integers("mlp_only_layers");
  if (m.moe_layers() == m.layers) m.ffn = 0;
  return m;
}

}  // namespace

PlanModel read_published_model(const Json& json) {
  PlanModel m = sizes_of(Fields(json));
  const std::string types = " gpt llama mixtral qwen3 moe gpt_oss deepseek_v2 deepseek_v3 ";
  require(types.find(cat(' ', m.type, ' ')) != types.npos, json.where(), ": type: found ", m.type,
      ", allowed:", types);
  if (m.type == "deepseek_v3" && m.experts == 256) m.groups = 8, m.topk_groups = 4;
  return m;
}

PlanModel read_hf_config(const std::string& text, const std::string& where) {
  Json config = Json::parse(text, where);
  if (Fields(config).has("text_config"))  // of a model of more than text, which counts first
    for (const auto& [key, value] : config.at("text_config").members()) config.set(key, value);
  const std::string type = Fields(config).text("model_type");
  const Json::Object defaults = defaults_of(type).members();
  std::vector<std::string> notes;
  for (const auto& [key, value] : defaults) {
    const Fields f(config);
    // null: none; of key heads, as many as heads; of experts by DeepSeek's own code (transformers
    // refuses it)
    const std::string name = key == "num_experts" ? "n_routed_experts" : key;
    const bool may_be_null = name == "q_lora_rank" || name == "num_key_value_heads" ||
        name == "sliding_window" || name == "n_routed_experts";
    if (f.has(own_key(f, key)) || (may_be_null && config.find(name))) continue;
    config.set(key, value);
    notes.push_back(cat(key, " is missing: ", value.dump(), ", the default of ", type));
  }
  const auto missing = not_modelled(Fields(config));
  require(!missing, where, ": ", type, " has ", missing.value_or(""),
      ", which is not modelled; allowed: models without it");
  std::string allowed;
  for (const auto& [name, _] : family_table("defaults").members()) allowed += cat(' ', name);
  require(!defaults.empty(), where, ": model_type: found ", type, ", allowed:", allowed);
  config.set("name", where);
  const Fields f(config);
  PlanModel m = sizes_of(f);
  m.notes = notes;
  if (m.gated && !m.kv_lora && !f.has("num_key_value_heads"))
    m.notes.push_back(cat("num_key_value_heads is missing: ", m.heads, ", as many as heads"));
  if (config.find("n_routed_experts") && !f.has("n_routed_experts"))
    m.notes.push_back("n_routed_experts is null: all layers are dense");
  if (f.has("quantization_config"))
    m.notes.push_back(
        cat("quantization_config (", f.object("quantization_config").text_or("quant_method", "?"),
            ") says how the weights are stored; --dtype says what products compute in"));
  return m;
}

}  // namespace duet
