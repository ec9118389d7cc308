// A record of a file of published training runs becomes a job and a layout; what it lacks is filled
// in by rules:
//   dp                  GPUs / (tp x pp x cp); tp, pp, cp, ep, etp: 1
//   schedule            interleaved where there are virtual stages, else 1f1b; a schedule and
//   virtual
//                       stages that are both listed as `filled` count as lacking
//   recompute, virtual_stages, of dense models micro_batch_size; with `fixed: false` every degree:
//                       the fastest that fits; micro_batch_size of models with experts: 1
//   precision           fp16 is computed as bf16; its frameworks predate fused attention, ZeRO,
//                       sequence parallelism and hidden gradients: all four off unless stated, and
//                       gradients travel in 2 bytes instead of 4
//                       fp8 operands are scaled as a whole
//   otherwise           fused attention, ZeRO-1, sequence parallelism, hidden gradients: on;
//                       overlapped tensor parallelism: for dense models with sequence parallelism
//                       in 8 bits or fewer, which is when recipes switch it on; overlapped
//                       all-to-alls: off
//   routing             balanced and token-drop: 1; natural, null: the busiest GPU has 1.1 times
//   the
//                       mean
//   row operations      fused; a note "mode: eager" says that they are not, one that names an RMS
//                       kernel that rotations and activations are not, another "kernel: " neither
//   H100 with 96 GB     the 500 W version with HBM2e
//   hardware.hbm_gb     where it is not the cluster file's: that much memory
//
// Read next: validate.h.
#pragma once
#include <optional>
#include <string>

#include "pipeline/insight/plan/fields.h"
#include "pipeline/insight/plan/predict.h"

namespace duet {

struct Record {
  std::string id, suite, scan;  // scan: what it shares with other layouts of the same job
  PlanJob job;
  PlanLayout layout;
  std::string kind;  // of what was measured: step_s, tokens_per_s, ..., out_of_memory
  double measured = 0;
  std::string formula, attention;  // of FLOP; "" where not stated
  double peak_flops = 0;           // that an MFU is divided by
  double memory_gib = 0;           // 0: not measured
  std::optional<CostProfile> profile;

  bool ran() const { return kind != "out_of_memory"; }
  bool is_bubble() const { return kind == "bubble_rate"; }
  // in proportion: 1 / speed where a speed was measured
  double measured_step() const { return kind == "step_s" ? measured : 1 / measured; }
};

// Throws UsageError for what the schema does not allow.
Record read_record(const Json& json, const std::string& where);

}  // namespace duet
