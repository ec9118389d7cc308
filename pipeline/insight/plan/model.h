// PlanModel: the sizes of a transformer as far as they decide its work and its memory, and where
// they are read from: one of duet's presets, a table of public models, or a Hugging Face
// config.json.
//
// What the work depends on and the model of it does not know (sparse or linear attention, sliding
// windows with sinks, other routers) is refused by name, never planned as something else. Keys that
// a config.json lacks take the defaults that its model type has in transformers; each is a note.
//
// Read next: fields.h.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "model/base/json.h"

namespace duet {

struct PlanModel {
  std::string name, type;
  int64_t layers = 0, hidden = 0, vocab = 0;
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t ffn = 0;  // width of a dense layer's MLP; 0 where none is dense
  bool gated = true;
  bool tied = false;      // one matrix is the embedding and the head
  int64_t positions = 0;  // rows of a learned table of positions
  int64_t window = 0;     // tokens that every other layer attends to; 0: all

  // Multi-head Latent Attention where kv_lora > 0
  int64_t q_lora = 0, kv_lora = 0, nope = 0, rope = 0, v_dim = 0;

  // Mixture of experts where experts > 0
  int64_t experts = 0, topk = 0, expert_ffn = 0;
  int64_t shared_ffn = 0;               // of all shared experts together
  int64_t groups = 1, topk_groups = 1;  // a token's experts lie in topk_groups of the groups
  int64_t dense_layers = 0,
          sparse_step = 1;          // leading dense layers; then every sparse_step-th is MoE
  std::vector<int64_t> dense_list;  // layers that are dense besides
  int64_t mtp = 0;  // layers of multi-token prediction, each a layer and another pass of the head

  std::vector<std::string> notes;  // what was filled in, or read and not used

  bool moe(int64_t layer) const;
  int64_t moe_layers() const;
  int64_t windowed_layers() const { return window ? layers / 2 : 0; }
  int64_t q_width() const { return heads * (kv_lora ? nope + rope : head_dim); }
  int64_t v_width() const { return heads * (kv_lora ? v_dim : head_dim); }
  int64_t attention_parameters() const;
  int64_t mlp_parameters(int64_t width) const { return (gated ? 3 : 2) * hidden * width; }
  int64_t layer_parameters(bool moe, int64_t experts_counted) const;
  int64_t parameters() const;         // all, without multi-token prediction
  int64_t active_parameters() const;  // those that one token uses, without the embedding's table
  // FLOP of one forward pass for one token: products, attention (all pairs, or causal: half of
  // them), and the head.
  double forward_flops(int64_t seq_len, bool causal, bool with_head = true) const;
};

// A preset's name, a public model's name, or the path of a config.json or of its folder. Throws
// UsageError.
PlanModel find_model(const std::string& name_or_path);
// The text of a config.json; `where` names it.
PlanModel read_hf_config(const std::string& text, const std::string& where);
// The model of a published run (validate.h), whose sizes have names of their own.
PlanModel read_published_model(const Json& json);

}  // namespace duet
