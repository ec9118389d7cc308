// Trainer: what one rank trains with, and what is done with it.
//
//   train_step                         one step of the run                    train_step.cpp
//   validation_loss                    of sequences that are not trained on   trainer.cpp
//   next_token_logits                  what may follow a text                 trainer.cpp
//   save_checkpoint, load_checkpoint                                          trainer_state.cpp
//   tensor_hashes, fingerprint         whether bits are the same             trainer_state.cpp
//   place_experts, rebalance           experts move to other ranks            trainer.cpp
//
// All are collective: every rank of the world calls them in the same order, with its own Trainer.
// What makes their numbers reproducible is stated where it happens: batches (data/batch.h), exact
// sums (model/machine/grid.h), sums over ranks (comm/comm.h), sums over names
// (comm/gather_named.h). Used by one thread, the rank's.
// Read next: run_log.h.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "pipeline/checkpoint/checkpoint.h"
#include "pipeline/train/job.h"
#include "pipeline/train/pairs.h"

namespace duet {

struct Trainer {
  // Collective. The references outlive the trainer.
  Trainer(const Job& job, Comm& world, Device& device);
  Trainer(const Trainer&) = delete;

  const Job& job;
  Comm& world;
  Device& device;
  const int dp_rank, pp_rank;
  Channels channels;               // before the groups
  Comm pipeline, expert_parallel;  // groups (pipeline/schedule/layout.h)
  // Of the ranks that have copies of a part of the model, and of those that have the same of its
  // experts; by the pipeline's ranks that have the part. Alone for a part that is not this rank's.
  struct Copies {
    Comm all, of_experts;
  };
  std::map<std::vector<int>, Copies> copies;
  Context context;
  std::optional<CommStream> comm;  // of the all-to-alls, with --overlap on; outlives the stages
  LoadMonitor monitor;             // where experts are, of all layers
  StageMap stages;                 // of this rank
  Executor executor;
  bool long_steps = true;  // the last step took over a second on the mean of ranks; at first: true

  std::vector<Params*> param_sets() const;  // of all stages
  // The ranks with copies of a part of the model, of its set 0 or 1 (Stage::param_sets).
  Comm& copies_of(int model_stage, int set) {
    Copies& ranks = copies.at(job.schedule.ranks_of(model_stage));
    return set == 0 ? ranks.all : ranks.of_experts;
  }
  // The layers with a mixture of experts: of the model, in order; and fn(layer, moe, virtual stage)
  // for each one in this rank's stages.
  std::vector<int64_t> moe_layers() const;
  template <class Fn> void for_each_moe(const Fn& fn) const {
    for (const auto& [s, stage] : stages)
      for (Moe* moe : stage->moe()) fn(moe->layer(), *moe, s);
  }
  // Microbatch m of this rank: sequence(i, tokens) writes the sequence at place i of the global
  // batch. [seq_len + 1]
  using Sequence = std::function<void(int64_t i, std::span<int32_t> tokens)>;
  Microbatch microbatch(int m, const Sequence& sequence) const;
  // Cross-entropies of microbatches 0 .. n-1 of all ranks, by place in the global batch; zero where
  // another rank has them. [n * dp * micro_batch_size], nats
  std::vector<double> losses(int64_t n) const;
};

// --- a step --------------------------------------------------------------------------------------

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
  double loss = 0;              // mean cross-entropy of the global batch, nats per token
  double balance_loss = 0;      // mean over sequences, summed over layers, without the factor alpha
  double grad_norm = 0;         // before clipping
  double largest_gradient = 0;  // element of a sum, before and after it was reduced
  double lr = 0;
  double seconds = 0;
  // fraction of the schedule's time for which compute streams waited for pipeline messages, mean
  // over ranks; all-to-alls are not in it
  double idle = 0;
  int64_t tokens = 0;  // of all ranks
  int64_t flops = 0;   // of this rank's GEMMs, what is computed again among them
  Traffic traffic;     // payload bytes that all ranks sent
  int stop = 0;        // the signal that asked a rank to stop
  // a rank was asked to give the step up: nothing else here counts, and no weight changed
  bool given_up = false;
  // of a recorded step: the part of communication covered by computation, over all ranks
  std::optional<double> overlap;
  std::vector<LayerLoad> loads;
  double balancedness = 1;  // of all layers together
};

// Whether a sum of gradients came so near to its limit, within a factor of 16, that soon its order
// could matter (model/machine/grid.h); what to say of it, else empty.
std::string near_the_limit(int64_t step, double largest_gradient);

struct StepHooks {
  // file that takes the step's batch, logits, loss and gradients; empty: none
  std::string dump;
  std::function<int()> stop = [] { return 0; };  // the signal that asks for it
  std::function<bool()> give_up;                 // whether the step is to end without a result
  // called on every rank when gradients are finished, before any weight changes
  std::function<void()> on_gradients = [] {};
  Recorder* recorder = nullptr;  // of what happens in the step; null: nothing is recorded
};

// Step `step` (from 1) of the run:
//
//   the schedule's list on this rank's stages      gradients as exact sums (executor.h)
//   their sums over the replicas of an expert, and over all ranks that have copies of a stage
//   one exchange of losses, squares and expert loads; the gradient norm; clipping; AdamW; router
//     bias
//   every --eplb-interval steps, experts move to where their tokens are
//
// A step that is given up ends early, though not at once: a rank's microbatch and the messages come
// to their ends; where experts are spread over ranks and steps take less than a second, the whole
// step.
// A loss or a gradient norm that is not finite throws Error before any weight changes.
StepResult train_step(Trainer& t, int64_t step, const StepHooks& hooks = {});

// --- forward only --------------------------------------------------------------------------------

// Mean loss over the first --val-sequences validation sequences.
double validation_loss(Trainer& t);
// Logits of the last of `context`'s tokens (of its last seq_len, if it is longer). [vocab]
std::vector<float> next_token_logits(Trainer& t, std::span<const int32_t> context);

// --- what lasts ----------------------------------------------------------------------------------

// After step `step`, as a checkpoint (pipeline/checkpoint/checkpoint.h).
void save_checkpoint(Trainer& t, const std::string& dir, int64_t step);
// Weights and, where `dir` is a checkpoint of duet's and not only weights are wanted, the
// optimizer's and the balancer's state. Returns the step after which it was saved, or 0.
int64_t load_checkpoint(Trainer& t, const std::string& dir, Restore what = Restore::everything);

// A hash of every tensor, by name: of the finished gradient as AdamW reads it, in fp32, or of
// weight and moments. The same for the same bits however they are spread over ranks. Throws Error
// where copies differ: the replicas of an expert, the two of a mirrored stage, those of
// data-parallel ranks.
enum class Hashed { gradient, state };
using TensorHashes = std::map<std::string, uint64_t>;
TensorHashes tensor_hashes(Trainer& t, Hashed what);
// One hash of them all, and of the trainer's state.
uint64_t fingerprint(const TensorHashes& hashes);
uint64_t fingerprint(Trainer& t);

// --- experts on the move -------------------------------------------------------------------------

// Moves experts, with their moments, to other slots; layers that are not named keep their
// placement.
void place_experts(Trainer& t, const std::map<int64_t, ExpertPlacement>& placements);
// What a step is followed by: its loads go into the monitor, and where new placements are due, they
// are made and noted in `result`.
void rebalance(Trainer& t, StepResult& result);

}  // namespace duet
