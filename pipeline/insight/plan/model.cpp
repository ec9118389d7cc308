// See model.h. Sizes and what they add up to; presets and public models.
#include "pipeline/insight/plan/model.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "model/base/check.h"
#include "model/config.h"

namespace duet {

bool PlanModel::moe(int64_t layer) const {
  return experts > 0 && layer >= dense_layers && (layer + 1) % sparse_step == 0 &&
      std::find(dense_list.begin(), dense_list.end(), layer) == dense_list.end();
}

int64_t PlanModel::moe_layers() const {
  int64_t n = 0;
  for (int64_t l = 0; l < layers; ++l) n += moe(l);
  return n;
}

int64_t PlanModel::attention_parameters() const {
  if (!kv_lora) return hidden * head_dim * (2 * heads + 2 * kv_heads);
  const int64_t queries = q_lora ? q_lora * (hidden + q_width()) : hidden * q_width();
  return queries + hidden * (kv_lora + rope) + kv_lora * heads * (nope + v_dim) +
      v_width() * hidden;
}

int64_t PlanModel::layer_parameters(bool moe, int64_t experts_counted) const {
  const int64_t mlp = moe
      ? hidden * experts + experts_counted * mlp_parameters(expert_ffn) + mlp_parameters(shared_ffn)
      : mlp_parameters(ffn);
  return attention_parameters() + 2 * hidden + mlp;
}

int64_t PlanModel::parameters() const {
  const int64_t sparse = moe_layers();
  return (tied ? 1 : 2) * vocab * hidden + positions * hidden + hidden +
      sparse * layer_parameters(true, experts) + (layers - sparse) * layer_parameters(false, 0);
}

int64_t PlanModel::active_parameters() const {
  const int64_t sparse = moe_layers();
  return vocab * hidden + sparse * layer_parameters(true, topk) +
      (layers - sparse) * layer_parameters(false, 0);
}

double PlanModel::forward_flops(int64_t seq_len, bool causal, bool with_head) const {
  const double full = 2.0 * double(q_width() + v_width()) * double(seq_len) * (causal ? 0.5 : 1);
  const double near = 2.0 * double(q_width() + v_width()) * double(std::min(window, seq_len));
  const double attention =
      full * double(layers - windowed_layers()) + near * double(windowed_layers());
  return 2.0 * double(active_parameters() - vocab * hidden) + attention +
      (with_head ? 2.0 * double(vocab * hidden) * double(1 + mtp) : 0) +
      (mtp ? double(mtp) * (2.0 * double(layer_parameters(experts > 0, topk)) + full) : 0);
}

namespace {

// Sizes of public models by name, from their papers and published configurations: type, layers,
// hidden, heads, key-value heads, width of the MLP, vocabulary.
struct Public {
  const char *name, *type;
  int64_t layers, hidden, heads, kv_heads, ffn, vocab;
};
constexpr Public kPublic[] = {{"gpt-1.5b-zb", "gpt", 22, 2304, 24, 24, 9216, 32000},
    {"gpt-14.6b-zb", "gpt", 46, 5120, 40, 40, 20480, 32000},
    {"gpt-175b-megascale", "gpt", 96, 12288, 128, 128, 49152, 64000},
    {"gpt3-175b", "gpt", 96, 12288, 96, 96, 49152, 51200},
    {"llama-13b-128k", "llama", 40, 5120, 40, 40, 13824, 128000},
    {"llama-65b-128k", "llama", 80, 8192, 64, 64, 22016, 128000},
    {"llama-2-7b", "llama", 32, 4096, 32, 32, 11008, 32000},
    {"llama-2-13b", "llama", 40, 5120, 40, 40, 13824, 32000},
    {"llama-2-70b", "llama", 80, 8192, 64, 8, 28672, 32000},
    {"llama-3-8b", "llama", 32, 4096, 32, 8, 14336, 128256},
    {"llama-3-70b", "llama", 80, 8192, 64, 8, 28672, 128256},
    {"llama-3.1-405b", "llama", 126, 16384, 128, 8, 53248, 128256},
    {"mpt-760m", "gpt", 24, 1536, 12, 12, 6144, 50368},
    {"mpt-1b", "gpt", 24, 2048, 16, 16, 8192, 50368},
    {"mpt-3b", "gpt", 32, 2560, 20, 20, 10240, 50368},
    {"mpt-7b", "gpt", 32, 4096, 32, 32, 16384, 50368},
    {"mpt-13b", "gpt", 40, 5120, 40, 40, 20480, 50368},
    {"mpt-30b", "gpt", 48, 7168, 56, 56, 28672, 50368},
    {"mpt-70b", "gpt", 80, 8192, 64, 64, 32768, 50368},
    {"mixtral-8x7b", "mixtral", 32, 4096, 32, 8, 14336, 32000},
    {"mixtral-8x22b", "mixtral", 56, 6144, 48, 8, 16384, 32768}};

PlanModel from_table(const Public& p) {
  PlanModel m{
      p.name, p.type, p.layers, p.hidden, p.vocab, p.heads, p.kv_heads, p.hidden / p.heads, p.ffn};
  m.gated = m.type != "gpt";
  m.tied = !m.gated;
  if (m.type == "mixtral") m.experts = 8, m.topk = 2, m.expert_ffn = p.ffn, m.ffn = 0;
  return m;
}

PlanModel from_preset(const Preset& preset) {
  const ModelConfig& c = preset.model;
  PlanModel m{preset.name, "deepseek_v3", c.n_layers, c.d_model, c.vocab_size, c.n_heads, c.n_heads,
      c.v_head_dim, c.d_ff};
  m.q_lora = c.q_lora_rank, m.kv_lora = c.kv_lora_rank;
  m.nope = c.qk_nope_head_dim, m.rope = c.qk_rope_head_dim, m.v_dim = c.v_head_dim;
  m.experts = c.n_routed, m.topk = c.topk, m.expert_ffn = c.d_expert;
  m.shared_ffn = c.n_shared * c.d_expert;
  m.groups = c.n_group, m.topk_groups = c.topk_group, m.dense_layers = c.first_k_dense;
  return m;
}

std::string lower(std::string text) {
  std::transform(
      text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

}  // namespace

std::vector<std::string> public_model_names() {
  std::vector<std::string> names;
  for (const Public& p : kPublic) names.push_back(p.name);
  return names;
}

PlanModel find_model(const std::string& name) {
  for (const Preset& preset : presets())
    if (name == preset.name) return from_preset(preset);
  for (const Public& p : kPublic)
    if (lower(name) == p.name) return from_table(p);
  std::ifstream file(name);
  std::string names;
  for (const Preset& preset : presets()) names += cat(preset.name, ", ");
  for (const Public& p : kPublic) names += cat(p.name, ", ");
  require(file.good() && name.find('.') != name.npos, "--model: found ", name, ", allowed: ", names,
      "or the path of a config.json");
  return read_hf_config({std::istreambuf_iterator<char>(file), {}}, name);
}

}  // namespace duet
