// Trainer: one training step after another on a device, in one rank.
//
//   gradients of the global batch, microbatch by microbatch -> gradient norm and clipping -> AdamW -> router bias
//
// What makes its numbers reproducible is stated where it happens: batches (data/batch.h), halves (param.h), sums in a fixed order
// (here). Used by one thread. Read next: train_command.h, which is the run around it.
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "data/batch.h"
#include "pipeline/checkpoint.h"
#include "pipeline/options.h"
#include "pipeline/stage.h"

namespace duet {

struct LayerLoad {
  int64_t layer;
  std::vector<int64_t> tokens_per_expert;  // [n_routed], of the step
};

struct StepResult {
  int64_t step = 0;
  double loss = 0;          // mean cross-entropy of the global batch, nats per token
  double balance_loss = 0;  // mean over sequences, summed over layers, without the factor alpha
  double grad_norm = 0;     // before clipping
  double lr = 0;
  double seconds = 0;
  int64_t tokens = 0;
  int64_t flops = 0;        // of all GEMMs
  std::vector<LayerLoad> loads;
};

class Trainer {
 public:
  // options resolved; the references outlive the trainer.
  Trainer(const TrainOptions& options, const ModelConfig& config, Device& device, const BatchSource& batches);

  // Step `step` (from 1) of the run. A loss or a gradient norm that is not finite throws Error before any weight changes.
  // dump: a file that takes the step's batch, logits, loss and gradients; empty: none.
  StepResult step(int64_t step, const std::string& dump = "");
  double validate();  // mean loss over the first --val-sequences validation sequences

  // Logits of the last of `context`'s tokens (at most seq_len of them). [vocab]
  std::vector<float> next_token_logits(std::span<const int32_t> context);

  void save(const std::string& dir, int64_t step);
  // Weights, and the optimizer's state where the directory has one; returns the step it was saved at (0: no training state).
  int64_t load(const std::string& dir);

  Device& device() { return device_; }
  Params& params() { return stage_->params(); }
  const ModelConfig& config() const { return config_; }

 private:
  Microbatch microbatch(int64_t step, int64_t m) const;
  void finish_step(StepResult& result);
  void collect_loads(StepResult& result);

  const TrainOptions& options_;
  const ModelConfig& config_;
  Device& device_;
  const BatchSource& batches_;
  Context context_;
  std::unique_ptr<Stage> stage_;
};

// A Device as the options say.
std::unique_ptr<Device> make_device(const TrainOptions& options);

}  // namespace duet
