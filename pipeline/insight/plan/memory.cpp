// See predict.h. What a rank holds.
#include "pipeline/insight/plan/predict.h"

#include <algorithm>

namespace duet {

// All that a layer makes and its backward reads; `kept`: only what selective recomputation keeps.
static double made_bytes(const PlanJob& job, const PlanLayout& l, bool moe, bool kept) {
  const PlanModel& m = job.model;
  const double tokens = tokens_of(job, l), split = row_tokens_of(job, l);
  const double h = double(m.hidden), tp = l.tp;
  const double in = l.precision > Precision::bf16 ? 1.5 : 2;  // products' inputs, cast and not
  const bool fused = l.fused_attention, lean = kept && fused;
  double bytes = split * h * (2 * 2 + (lean ? 0 : 2 * in));
  const double qkv = m.kv_lora
      ? double(2 * m.q_width() + m.v_width()) / tp + double(m.q_lora + m.kv_lora)
      : double(m.heads + 2 * m.kv_heads) * double(m.head_dim) / tp;
  bytes += tokens * (lean && m.kv_lora ? double(m.q_lora + m.kv_lora) : qkv) * 2;
  bytes += tokens * m.v_width() / tp * in;
  if (!fused && !kept) bytes += tokens * m.heads / tp * job.seq_len * 5;
  // norms that are not fused keep their input, its scaled form (32 bits each) and its cast
  if (l.row_passes > 3 && !lean) bytes += split * h * 2 * 10;
  const double up = m.gated ? 2 : 1;
  if (!m.gated && !fused) bytes += split * h * 2;  // dropout's masks
  // Recomputed from what goes into the activation, which then is kept in 8 bits where products are
  // in 8 bits (DeepSeek-V3, section 3.3.3).
  const bool eight = l.precision > Precision::bf16;
  const auto inner = [&](double rows, double width) {
    bytes += rows * width * (up * (lean && eight ? 1 : 2) + (lean ? 0 : in));
  };
  if (moe) {
    const double copies = tokens / tp * m.topk * l.etp * l.imbalance;
    // the weight of an expert enters before its last product
    bytes += copies * h * (eight ? 1 : 2);
    inner(copies, double(m.expert_ffn) / l.etp);
    inner(tokens, double(m.shared_ffn) / tp);
  } else {
    inner(tokens, double(m.ffn) / tp);
  }
  return bytes;
}

double layer_activation_bytes(const PlanJob& job, const PlanLayout& l, bool moe) {
  if (l.recompute == Recompute::full) return row_tokens_of(job, l) * job.model.hidden * 2;
  return made_bytes(job, l, moe, l.recompute == Recompute::selective);
}

double waiting_share(const PlanJob& job, const PlanLayout& l) {
  if (l.fused_attention || l.recompute != Recompute::none) return 1;
  const bool moe = job.model.moe_layers() > 0;
  return made_bytes(job, l, moe, true) / made_bytes(job, l, moe, false);
}

ScheduleShape shape_of(
    const Schedule& s, int M, const std::vector<double>& stage_bytes, double waiting) {
  ScheduleShape shape;
  shape.stages.resize(size_t(s.pp));
  for (int stage = 0; stage < s.stages(); ++stage)
    shape.stages[size_t(s.rank_of[size_t(stage)])].push_back(s.model_stage(stage));
  for (const auto& list : s.ranks) {
    std::vector<double> live(stage_bytes.size(), 0), at_peak;
    double bytes = 0, peak = -1;
    for (const Action& action : list)
      for_parts(action, [&](const Action& a) {
        const size_t stage = size_t(s.model_stage(a.stage));
        const double change = a.kind == Kind::F ? 1
            : a.kind == Kind::I                 ? waiting - 1
            : a.kind == Kind::W                 ? -waiting
                                                : -1;
        live[stage] += change, bytes += change * stage_bytes[stage];
        if (bytes > peak) peak = bytes, at_peak = live;
      });
    shape.peaks.emplace_back();
    for (size_t stage = 0; stage < at_peak.size(); ++stage)
      if (at_peak[stage] > 0)  // gpipe keeps all
        shape.peaks.back().push_back({int(stage), s.name == "gpipe" ? M : at_peak[stage]});
  }
  return shape;
}

std::vector<double> stage_activation_bytes(const PlanJob& job, const PlanLayout& l) {
  const PlanModel& m = job.model;
  const double kinds[2] = {
      layer_activation_bytes(job, l, false), m.experts ? layer_activation_bytes(job, l, true) : 0};
  return per_stage<double>(
      m, l, [&](double& stage, int64_t layer) { stage += kinds[m.moe(layer)]; });
}

// Parameters and what goes with them.
static void add_states(const PlanJob& job, const PlanLayout& l, const Held& held, Memory& memory) {
  const double copies[2] = {double(l.dp) * l.cp, expert_holders(job.model, l)};
  const double counts[2] = {held.shared, held.experts};
  const bool fp32 = l.precision == Precision::fp32;  // the weights are the master copy
  for (int kind = 0; kind < 2; ++kind) {
    const double n = counts[kind], d = std::max(1.0, copies[kind]);
    memory.parameters += n * (fp32 ? 4 : 2) / (l.zero >= 3 ? d : 1);
    memory.gradients += n * l.gradient_bytes / (l.zero >= 2 ? d : 1);
    memory.optimizer += n * (fp32 ? 8 : 12) / (l.zero >= 1 ? d : 1);
  }
}

Memory memory_of(const PlanJob& job, const PlanLayout& l, const ScheduleShape& shape) {
  const PlanModel& m = job.model;
  const std::vector<double> stage_bytes = stage_activation_bytes(job, l);
  const std::vector<Held> held = stage_parameters(m, l);
  const bool moe = m.moe_layers() > 0;
  const Held layer = layer_held(m, l, moe);
  // gathered under ZeRO-3: the largest layer, and the next
  const double whole_layers = l.zero == 3 ? 2 * 2 * (layer.shared + layer.experts) : 0;
  const double tokens = tokens_of(job, l);
  const double working = tokens * m.hidden * 2 * 4 +  // gradients within a layer
      (l.recompute == Recompute::full ? made_bytes(job, l, moe, false) : 0);
  Memory heaviest;
  for (size_t rank = 0; rank < shape.stages.size(); ++rank) {
    Memory memory;
    for (int stage : shape.stages[rank]) {
      add_states(job, l, held[size_t(stage)], memory);
      if (stage == int(held.size()) - 1)  // logits in 16 bits and in 32
        memory.logits = tokens * m.vocab / l.tp * 6;
    }
    for (const auto& [stage, count] : shape.peaks[rank])
      memory.activations += count * stage_bytes[size_t(stage)];
    memory.buffers = working + whole_layers;
    memory.fragmentation = memory.total() * job.cluster.fragmentation;
    memory.reserved = job.cluster.reserved_bytes;
    if (memory.total() > heaviest.total()) heaviest = memory;
  }
  return heaviest;
}

}  // namespace duet
