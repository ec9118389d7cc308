// Trainer: one rank's part in the training steps of a job.
//
//   the schedule's list on this rank's stages      gradients in two halves
//                                                  (executor.h)
//   the mirrored stage's half (DualPipe), half 0 + half 1, the data-parallel ranks', each sum in a
//     fixed order
//   one exchange of losses, squares and expert loads; the gradient norm; clipping; AdamW; router
//     bias
//   every --eplb-interval steps, experts move to where their tokens are (trainer_experts.cpp)
//
// What makes its numbers reproducible is stated where it happens: batches (data/batch.h), halves
// (model/param.h), sums over ranks (comm/comm.h), sums over names and sequences (step_report.h).
// All methods are collective: every rank of the world calls them in the same order. Used by one
// thread, the rank's. Read next: train_command.h, the run around it.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "pipeline/checkpoint/checkpoint.h"
#include "pipeline/checkpoint/dump.h"
#include "pipeline/train/executor.h"
#include "pipeline/train/job.h"
#include "pipeline/train/step_report.h"

namespace duet {

struct LayerLoad {
  int64_t layer;
  std::vector<int64_t> tokens_per_expert;  // [n_routed], of the step, all ranks
  // [ep], computed by each expert-parallel rank, all groups; empty if ep is 1
  std::vector<int64_t> tokens_per_rank;
  // mean / max tokens computed by expert-parallel ranks, who wait in each microbatch
  double balancedness = 1;
  std::optional<Replan> replan;  // where a new placement was considered after this step
};

struct StepResult {  // the same on every rank, but for seconds
  int64_t step = 0;
  double loss = 0;          // mean cross-entropy of the global batch, nats per token
  double balance_loss = 0;  // mean over sequences, summed over layers, without the factor alpha
  double grad_norm = 0;     // before clipping
  double lr = 0;
  double seconds = 0;
  // fraction of the ranks' time in the schedule spent waiting for messages, mean over ranks
  double idle = 0;
  int64_t tokens = 0;  // of all ranks
  int64_t flops = 0;   // of this rank's GEMMs
  Traffic traffic;     // payload bytes that all ranks sent
  bool stop = false;   // a rank was asked to stop
  // of a recorded step: the part of communication covered by computation, over all ranks
  std::optional<double> overlap;
  std::vector<LayerLoad> loads;
  double balancedness = 1;  // of all layers together
};

class Trainer {
 public:
  // The references outlive the trainer.
  Trainer(const Job& job, Comm& world, Device& device);

  struct StepHooks {
    // file that takes the step's batch, logits, loss and gradients; empty: none
    std::string dump;
    std::function<bool()> asked_to_stop = [] { return false; };
    Recorder* recorder = nullptr;  // of what happens in the step; null: nothing is recorded
  };
  // Step `step` (from 1) of the run. A loss or a gradient norm that is not finite throws Error
  // before any weight changes.
  StepResult step(int64_t step, const StepHooks& hooks);
  StepResult step(int64_t step) { return this->step(step, StepHooks()); }
  double validate();  // mean loss over the first --val-sequences validation sequences

  // Logits of the last of `context`'s tokens (of its last seq_len, if it is longer). [vocab]
  std::vector<float> next_token_logits(std::span<const int32_t> context);

  void save(const std::string& dir, int64_t step);
  // Weights, and the optimizer's state where the directory has one; returns the step it was saved
  // at (0: no training state).
  int64_t load(const std::string& dir);
  // A hash of every weight and moment, the same for the same bits however they are spread over
  // ranks.
  uint64_t fingerprint();
  // Moves experts, with their moments, to other slots; layers that are not named keep their
  // placement.
  void place_experts(const std::map<int64_t, ExpertPlacement>& placements);
  const LoadMonitor& monitor() const { return *monitor_; }
  // Whether the replicas of each expert, the two copies of each mirrored stage, and the
  // data-parallel replicas, hold the same bits.
  bool copies_agree();

 private:
  struct Owned;
  Microbatch microbatch(int64_t step, int64_t m) const;
  Microbatch pack(std::span<const int32_t> tokens) const;
  void make_stages();
  void make_report();
  void reduce_gradients();
  void swap_mirrored_halves();
  void finish_step(
      StepResult& result, const std::function<bool()>& asked_to_stop, double schedule_seconds);
  void update(StepResult& result);
  void rebalance(StepResult& result);
  std::vector<std::pair<std::string, uint64_t>> tensor_hashes();
  Stage* head_stage(int microbatch);

  const Job& job_;
  const TrainOptions& o_;
  Comm& world_;
  Device& device_;
  Channels channels_;  // before the groups
  Comm pipeline_, replicas_, experts_, expert_replicas_;
  int dp_rank_, pp_rank_;
  Context context_;
  std::unique_ptr<CommStream> comm_;  // of the all-to-alls, with --overlap on; outlives the stages
  std::unique_ptr<LoadMonitor> monitor_;
  Executor::Stages stages_;  // by virtual stage
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<StepReport> report_;
};

}  // namespace duet
