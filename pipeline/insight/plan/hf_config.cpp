// See model.h. A Hugging Face config.json becomes a PlanModel: families, their other names for the
// same sizes, their defaults, and what is refused. Records of published runs are read by it too.
#include <optional>

#include "pipeline/insight/plan/fields.h"
#include "pipeline/insight/plan/model.h"

// "synonyms": other names of the same size, those of published runs included. "defaults": those of
// transformers' configuration classes, under the canonical names; a type that is another's with
// other defaults says so in "like".
DUET_EMBED(families, DUET_FILE("pipeline/insight/plan/models/families.json"))

namespace duet {
namespace {

Json family_table(const char* name) {
  static const Json all = Json::parse(families, "models/families.json");
  return all.at(name);
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
    {"experts", &PlanModel::experts, 0, 0}, {"topk", &PlanModel::topk, 1, kRequired, "experts"},
    {"moe_intermediate_size", &PlanModel::expert_ffn, 1, 0, "experts"},
    {"shared_ffn", &PlanModel::shared_ffn, 0, 0, "experts"},
    {"n_group", &PlanModel::groups, 1, 1, "experts"},
    {"topk_group", &PlanModel::topk_groups, 1, 0, "experts"},
    {"first_k_dense_replace", &PlanModel::dense_layers, 0, 0, "experts"},
    {"decoder_sparse_step", &PlanModel::sparse_step, 1, 1, "experts"}};

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
  const Json all = family_table("defaults");
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

// With canonical keys; errors name `where`.
Json renamed(const Json& json, const std::string& where) {
  static const Json synonyms = family_table("synonyms");
  Json config = Json::parse("{}", where);
  for (const auto& [key, value] : json.members()) {
    const auto canonical = synonyms.find(key);
    config.set(canonical ? canonical->string() : key, value);
  }
  return config;
}

// From canonical keys; what is missing follows from other sizes.
PlanModel sizes_of(const Fields& f) {
  PlanModel m;
  m.name = f.text_or("name", f.where()), m.type = f.text("model_type");
  for (const Size& size : kSizes)
    if (!size.of || f.integer_or(size.of, 0) > 0)
      m.*size.member = size.otherwise == kRequired || f.has(size.key)
          ? f.integer(size.key, size.least, kMost)
          : size.otherwise;
  require(m.layers <= 10000, f.where(), ": num_hidden_layers: expected at most 10000, found ",
      m.layers);
  m.gated = f.flag("gated", m.type != "gpt" && m.type != "gpt2" && m.type != "gpt_neox");
  m.tied = f.flag("tie_word_embeddings", m.type == "gpt");
  if (m.type == "gpt2") m.positions = f.integer("positions", 1, kMost);
  if (!m.kv_heads) m.kv_heads = m.heads;
  require(m.heads % m.kv_heads == 0, f.where(), ": num_key_value_heads: expected a divisor of ",
      m.heads, ", found ", m.kv_heads);
  require(m.kv_lora || m.head_dim || m.hidden % m.heads == 0, f.where(),
      ": hidden_size: expected a multiple of num_attention_heads = ", m.heads, ", found ",
      m.hidden);
  if (!m.head_dim) m.head_dim = m.kv_lora ? m.v_dim : m.hidden / m.heads;
  if (!m.ffn) m.ffn = 4 * m.hidden;
  if (!m.experts) return m;
  require(m.topk <= m.experts, f.where(), ": topk: expected at most the ", m.experts,
      " experts, found ", m.topk);
  if (!m.expert_ffn) m.expert_ffn = m.ffn;
  if (!m.shared_ffn) m.shared_ffn = f.integer_or("n_shared_experts", 0) * m.expert_ffn;
  if (!m.topk_groups) m.topk_groups = m.groups;
  if (f.has("mlp_only_layers")) m.dense_list = f.integers("mlp_only_layers");
  if (m.moe_layers() == m.layers) m.ffn = 0;
  return m;
}

}  // namespace

PlanModel read_published_model(const Json& json, const std::string& where) {
  PlanModel m = sizes_of({renamed(json, where), where});
  const std::string types = " gpt llama mixtral qwen3 moe gpt_oss deepseek_v2 deepseek_v3 ";
  require(types.find(cat(' ', m.type, ' ')) != types.npos, where, ": type: found ", m.type,
      ", allowed:", types);
  if (m.type == "deepseek_v3" && m.experts == 256) m.groups = 8, m.topk_groups = 4;
  return m;
}

PlanModel read_hf_config(const std::string& text, const std::string& where) {
  const Json raw = Json::parse(text, where);
  Json config = renamed(raw.find("text_config").value_or(raw), where);
  const std::string type = Fields(config, where).text("model_type");
  const auto missing = not_modelled(Fields(config, where));
  require(!missing, where, ": ", type, " has ", missing.value_or(""),
      ", which is not modelled; allowed: models without it");
  std::vector<std::string> notes;
  for (const auto& [key, value] : defaults_of(type, where).members()) {
    const auto given = config.find(key);
    if (given && (!given->is_null() || key == "q_lora_rank")) continue;
    config.set(key, value);
    notes.push_back(cat(key, " is missing: ", value.dump(), ", the default of ", type));
  }
  config.set("name", where);
  const Fields f(config, where);
  PlanModel m = sizes_of(f);
  m.notes = notes;
  if (f.has("quantization_config"))
    m.notes.push_back(
        cat("quantization_config (", f.object("quantization_config").text_or("quant_method", "?"),
            ") says how the weights are stored; --dtype says what products compute in"));
  return m;
}

}  // namespace duet
