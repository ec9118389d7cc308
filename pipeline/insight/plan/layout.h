// PlanLayout: how a job is spread over its GPUs. A field may be free (0, -1 or empty); the search
// fills it in. And PlanJob: what is to be trained, on what.
//
// Ranks are numbered with tensor parallelism innermost, then context, data and pipeline parallelism
// (Megatron's order): world = tp x cp x dp x pp. Experts have a folding of their own over the ranks
// of a stage, expert tensor parallelism innermost: tp x cp x dp = etp x ep x copies of each expert.
//
// Read next: costs.h.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pipeline/insight/plan/cluster.h"
#include "pipeline/insight/plan/model.h"
#include "pipeline/schedule/simulator.h"

namespace duet {

enum class Recompute { unset, none, selective, full };
inline constexpr const char* kRecomputes[] = {"", "none", "selective", "full"};

struct PlanLayout {
  int dp = 0, tp = 0, pp = 0, ep = 0, etp = 0, cp = 0;
  int virtual_stages = 0, micro_batch = 0;
  int zero = -1;
  Recompute recompute = Recompute::unset;
  std::string schedule;  // one of planned_schedules, or a file's name
  // the file's: pp and the number of microbatches are fixed by it
  std::shared_ptr<const Schedule> list;
  std::vector<int> split;  // layers of each stage; empty: even
  int sequence_parallel = -1, overlap_ep = -1, overlap_dp = -1, overlap_tp = -1;  // 0, 1; -1 free
  bool fused_attention = true;
  // Row operations pass through memory so many times more often than fused ones: 2 where rotations
  // and activations are chains of elementwise kernels, 3.5 where norms are too (an RMS norm alone
  // then passes 36 bytes an element instead of 4)
  double row_passes = 1;
  Precision precision = Precision::bf16;
  // fp8 operands are scaled in tiles of 128 (DeepSeek-V3, section 3.3.2), not as a whole: products
  // for weights then add to the gradients after their arithmetic (the trace's attn(W))
  bool tiles = true;
  double gradient_bytes = 4;  // of a gradient on its way to the other ranks
  double imbalance = 1;       // the busiest GPU's tokens, of the mean
  int64_t replicas = 0;       // physical experts of a layer under EPLB; 0: one of each

  std::string text() const;  // "tp=8,pp=4,..." which read_layout_text reads
};

struct PlanJob {
  PlanModel model;
  Cluster cluster;
  int64_t gpus = 0, batch = 0, seq_len = 0;  // batch: sequences of a step
  // [layers][experts] tokens, from which the search makes the imbalance of whatever ep it tries
  std::vector<std::vector<float>> loads;
};

// "tp=8,pp=4,schedule=dualpipe" as keys and values; `where` names it in errors. The keys are the
// names of layout_keys(), each once.
using KeyValues = std::vector<std::pair<std::string, std::string>>;
KeyValues read_layout_text(const std::string& text, const std::string& where);
void set_layout(PlanLayout& layout, const std::string& key, const std::string& value);
PlanLayout with_options(PlanLayout layout, const KeyValues& options);
KeyValues layout_keys();          // name, help
std::string planned_schedules();  // make_schedule's and zb2p, with commas between

// What becomes of a flag that is free. Hiding what can hide is never slower, so gradients and
// tensor parallelism hide; that all-to-alls hide outside of a schedule's own pairs needs a
// framework that splits its layers for it, and so must be said.
int usual_flag(const PlanLayout& layout, int PlanLayout::*flag);
// Options of `wanted` that have another value in `layout`; what is free in either is none.
int changed_options(const PlanLayout& wanted, const PlanLayout& layout);

inline int microbatches(const PlanJob& job, const PlanLayout& l) {
  return int(job.batch / (int64_t(l.dp) * l.micro_batch));
}
// Of a microbatch, on one rank.
inline double tokens_of(const PlanJob& job, const PlanLayout& l) {
  return double(l.micro_batch) * double(job.seq_len) / l.cp;
}
// Of them in row operations, between the regions of tensor parallelism.
inline double row_tokens_of(const PlanJob& job, const PlanLayout& l) {
  return tokens_of(job, l) / (l.sequence_parallel == 1 ? l.tp : 1);
}
inline double physical_experts(const PlanModel& m, const PlanLayout& l) {
  return double(l.replicas ? l.replicas : m.experts);
}
// Ranks that hold the same expert, on the mean.
inline double expert_holders(const PlanModel& m, const PlanLayout& l) {
  const double of_each = l.replicas ? double(l.replicas) / double(m.experts) : 1;
  return double(l.dp) * l.cp * l.tp / (l.ep * l.etp) * of_each;
}
// Whether forwards overlap with backwards: a file's list says it, not its name.
bool has_pairs(const PlanLayout& layout);
// Whether products for weights are actions of their own; not of a schedule that is free.
bool splits_backward(const PlanLayout& layout);
// Of the model's weights.
int weight_copies(const PlanLayout& layout);
// Stages that the model is cut into.
int model_stages(const PlanLayout& layout);
// Layers of each of them; uneven remainders go to the stages in the middle, since the ends also
// have embedding and head, and with multi-token prediction the last has three layers fewer.
std::vector<int> stage_layers(const PlanModel& model, const PlanLayout& layout);
// What `add(stage's, layer)` makes of the layers of each.
template <class T, class Add>
std::vector<T> per_stage(const PlanModel& model, const PlanLayout& layout, Add add) {
  std::vector<T> stages;
  int64_t layer = 0;
  for (int count : stage_layers(model, layout)) {
    stages.emplace_back();
    for (int i = 0; i < count; ++i) add(stages.back(), layer++);
  }
  return stages;
}

// The rule that a complete layout breaks, as "--tp: found 3, allowed: ..."; "" where it is legal.
std::string broken_rule(const PlanJob& job, const PlanLayout& layout);
// Of them those that know nothing of dp, pp, schedule and microbatches.
std::string broken_size(const PlanJob& job, const PlanLayout& layout);

// The layout's schedule for a number of microbatches. ZB-2p is ZB-H2's rule for `costs`, of a
// typical stage, and `waiting` (predict.h); "Zero Bubble Pipeline Parallelism" searches for its
// lists, whose bubbles come out to all digits that it prints.
Schedule layout_schedule(const PlanLayout& layout, int microbatches,
    const StageCosts& costs = {1, 1, 1, 3}, double waiting = 1);

}  // namespace duet
