// `duet plan --validate RUNS.json`: predicts every record of a file of published training runs and
// says how far off it is.
//
// The error of a record is |predicted / measured - 1| of the quantity that its source states
// (below); of a bubble rate it is the difference, apart; of memory it is apart too. Fits are
// counted as balanced accuracy, the mean over the classes "ran" and "out of memory" of the share
// called right. The regret of a scan (layouts of the same job) is how much longer the step of the
// layout is that the prediction would pick than the fastest one's; a pick that was measured out of
// memory counts 100%.
//
// Read next: plan_command.h.
#pragma once
#include <cmath>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/insight/plan/fields.h"
#include "pipeline/insight/plan/predict.h"

namespace duet {

enum class Measured { step_s, tokens_per_s, tflops_per_gpu, mfu, bubble_rate, out_of_memory };
inline constexpr const char* kMeasured[] = {  // as files have it
    "step_s", "tokens_per_s", "tflops_per_gpu", "mfu", "bubble_rate", "out_of_memory"};

// A record of a file of published training runs becomes a job and a layout; what it lacks is filled
// in by rules:
//   dp                  GPUs / (tp x pp x cp); tp, pp, cp, ep, etp: 1
//   schedule            interleaved where there are virtual stages, else 1f1b; a schedule and
//                       virtual stages that are both listed as `filled` count as lacking
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
//                       the mean
//   row operations      fused; a note "mode: eager" says that they are not, one that names an RMS
//                       kernel that rotations and activations are not, another "kernel: " neither
//   H100 with 96 GB     the 500 W version with HBM2e
//   hardware.hbm_gb     where it is not the cluster file's: that much memory
//   hardware.gpu        a cluster's name or the path of its file
struct Record {
  std::string id, suite, scan;  // scan: what it shares with other layouts of the same job
  PlanJob job;
  PlanLayout layout;
  std::optional<Measured> kind;
  double measured = 0;
  Flops formula = Flops::megatron;
  std::optional<bool> causal;  // what the formula counts of attention; empty: not stated
  double peak_flops = 0;       // that an MFU is divided by
  double memory_gib = 0;       // 0: not measured
  std::optional<CostProfile> profile;
  // what is predicted: in the unit of what was measured; seconds
  double predicted = 0, predicted_step = 0, predicted_gib = 0;
  bool fits = true;

  bool ran() const { return kind != Measured::out_of_memory; }
  bool is_bubble() const { return kind == Measured::bubble_rate; }
  // in proportion: 1 / speed where a speed was measured
  double measured_step() const { return kind == Measured::step_s ? measured : 1 / measured; }
};

// Throws UsageError for what the schema does not allow.
Record read_record(const Json& json);

struct Validation {
  std::vector<Record> records;
  std::vector<std::pair<std::string, std::string>> unpredicted;  // id, reason
  // {"suites": {name: {"n", "mape", ...}}, "all": {...}, "records": [{"id", "kind", "predicted",
  // "measured", "fits", "layout" (as filled in where it was), "predicted_gib"}], "unpredicted"};
  // null where there is nothing to say it from
  Json document;
};

// Throws UsageError where the file is none of its kind.
Validation validate(const std::string& path);
void print_validation(const Validation& validation, bool json, std::ostream& out);

}  // namespace duet
