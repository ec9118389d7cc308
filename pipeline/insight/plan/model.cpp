// See model.h. Sizes and what they add up to; presets and public models.
#include "pipeline/insight/plan/model.h"

#include <algorithm>
#include <filesystem>

#include "model/base/read_file.h"
#include "model/config.h"
#include "pipeline/insight/plan/fields.h"

// Sizes of public models, from their papers and published configurations.
DUET_EMBED(public_models, DUET_FILE("pipeline/insight/plan/models/public.json"))

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
  const double full = 2.0 * (q_width() + v_width()) * seq_len * (causal ? 0.5 : 1);
  const double near = 2.0 * (q_width() + v_width()) * std::min(window, seq_len);
  const double attention = full * (layers - windowed_layers()) + near * windowed_layers();
  return 2.0 * (active_parameters() - vocab * hidden) + attention +
      (with_head ? 2.0 * (vocab * hidden) * (1 + mtp) : 0) +
      mtp * (2.0 * layer_parameters(experts > 0, topk) + full);
}

PlanModel find_model(const std::string& name) {
  std::string names;
  for (const Preset& preset : presets()) {
    if (name == preset.name)
      return read_hf_config(preset.model.to_json(preset.seq_len, "float32").dump(), name);
    names += cat(preset.name, ", ");
  }
  const Json table = Json::parse(public_models, "models/public.json");
  if (const auto model = find_named(table, name, names)) return read_published_model(*model);
  const std::string inside = name + "/config.json";
  if (std::filesystem::is_directory(name)) return read_hf_config(read_file(inside), inside);
  require(name.find('.') != name.npos, "--model: found ", name, ", allowed: ", names,
      "or the path of a config.json or of its folder");
  return read_hf_config(read_file(name), name);
}

}  // namespace duet
