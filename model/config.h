// ModelConfig: the sizes of a DeepSeek-V3 model (DeepSeek-V3 technical report, sections 2.1 and
// 4.2), the presets, and config.json as Hugging Face transformers writes it for
// DeepseekV3ForCausalLM.
//
// Left out on purpose: multi-token prediction, YaRN, biases in projections, tied embeddings;
// norm_topk_prob is always true.
// Read next: param.h.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "model/base/json.h"

namespace duet {

struct ModelConfig {
  int64_t vocab_size = 256;
  int64_t d_model = 64;
  int64_t n_layers = 8;
  int64_t n_heads = 4;

  // Multi-head Latent Attention
  int64_t q_lora_rank = 0;  // 0: queries straight from d_model
  int64_t kv_lora_rank = 32;
  int64_t qk_nope_head_dim = 16;
  int64_t qk_rope_head_dim = 8;  // even
  int64_t v_head_dim = 16;
  double rope_theta = 10000;

  // whose row of the embedding gets no gradient, as in torch.nn.Embedding; -1: none
  int64_t pad_token = -1;

  // Feed-forward: the first k layers dense, then mixture of experts
  int64_t first_k_dense = 1;
  int64_t d_ff = 128;     // width of the dense layers
  int64_t d_expert = 32;  // width of one expert
  int64_t n_shared = 1;   // shared experts, as one of n_shared * d_expert
  int64_t n_routed = 8;
  int64_t topk = 2;
  int64_t n_group = 1;     // node-limited routing: a token's experts lie in
  int64_t topk_group = 1;  // topk_group of n_group groups
  double routed_scaling = 1;

  // Every norm's epsilon. transformers fixes that of the two latent norms to this value, so another
  // one is refused on import.
  static constexpr double kNormEps = 1e-6;

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  bool dense(int64_t layer) const { return layer < first_k_dense; }
  int64_t parameters() const;         // all of them
  int64_t active_parameters() const;  // those that one token uses; without the embedding's table
  // FLOP of forward and backward for one token: 6 for each active parameter, and attention's scores
  // and values.
  double train_flops_per_token(int64_t seq_len) const;
  double layer_flops_per_token(int64_t layer, int64_t seq_len) const;  // one layer's part of it
  double head_flops_per_token() const { return 6.0 * double(vocab_size * d_model); }

  // Throws UsageError that names the field where sizes do not fit together.
  void validate() const;
  bool operator==(const ModelConfig&) const = default;

  Json to_json(int64_t seq_len, const std::string& dtype) const;
  static ModelConfig from_json(const Json& json, const std::string& where);
};

// Sizes to replace a preset's, by the names of ModelConfig's integers: "n_layers=4,d_model=256".
struct Sizes {
  std::string text;  // as the user gave them
  std::vector<std::pair<int64_t ModelConfig::*, int64_t>> values;
};
Sizes parse_sizes(const std::string& text);  // throws UsageError

// A preset: the model and the training sizes that go with it.
struct Preset {
  const char* name;
  ModelConfig model;
  int64_t seq_len;
  int64_t micro_batch_size;
};
const Preset& find_preset(const std::string& name);  // throws UsageError that lists the presets
std::span<const Preset> presets();
std::string preset_names();  // "tiny, small, ..."

}  // namespace duet
