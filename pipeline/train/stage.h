// Stage: a chunk of consecutive layers, perhaps with the embedding before and the head behind, as
// one unit of a pipeline.
//
// A schedule's actions are its methods, each for one microbatch:
//   F  forward           x in, y out (the first chunk takes tokens, the last one gives losses)
//   I  backward_input    dy in, dx out
//   W  backward_weight   adds to the gradient, exactly: any order of W gives the same bits
// Tensors are [tokens of a microbatch, d_model]. What is computed is enqueued on the device's
// compute stream, what travels between experts on Moe's comm stream; the host waits in dispatch
// alone (moe/moe.h). Not here: in which order actions come (executor.h). Used by one thread.
// Read next: executor.h.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "data/batch.h"
#include "model/ends.h"
#include "model/layer.h"
#include "moe/moe.h"

namespace duet {

struct StageOptions {
  int index = 0;  // the virtual stage, for the recorder
  // layers layer_begin .. layer_end-1; the model's first one comes with the embedding, its last one
  // with the head
  int64_t layer_begin = 0, layer_end = 0;
  int microbatches = 1;  // of a step
  uint64_t seed = 0;     // of the initial values
  // of every layer, but for what the stage knows: microbatches, layer and placement
  Moe::Options moe;
  std::function<ExpertPlacement(int64_t layer)> placement;  // of its experts
};

class Stage {
 public:
  Stage(const Context& context, const StageOptions& options);

  Buf forward(int microbatch, Buf x, const Microbatch& tokens);
  Buf backward_input(int microbatch, Buf dy);
  void backward_weight(int microbatch);
  // After a forward that no backward follows: frees what it kept.
  void drop(int microbatch) { saved_[size_t(microbatch)].reset(); }

  // The same forward and backward in steps, for whoever interleaves two of them (pairs.h): begin,
  // each layer's phases (feed_forward.h), end. Those of W may be among them, before
  // backward_weight, which does what remains.
  void begin_forward(int microbatch, Buf x, const Microbatch& tokens);
  Buf end_forward(int microbatch, const Microbatch& tokens);
  void begin_backward(int microbatch, Buf dy);
  Buf end_backward(int microbatch);
  // A phase of one of the chunk's layers, counted from 0; nothing where there is no such layer.
  void run(Phase phase, int microbatch, int layer);
  int layers() const { return int(layers_.size()); }

  // Of the last chunk, valid once the stream is synchronized: a microbatch's cross-entropies,
  // summed over each sequence's tokens in ascending order. [sequences], nats
  std::vector<double> losses(int microbatch) const;
  // Who looks on in forward; either may be empty.
  struct Watch {
    // Of the last chunk: the microbatch's logits [tokens, vocab], before the loss turns them into
    // their gradient.
    std::function<void(int microbatch, const Tensor& logits)> logits;
    // Each layer's output [tokens, d_model], and the experts that tokens chose [tokens, topk], or
    // null of a dense layer. layer: of the model.
    std::function<void(int microbatch, int64_t layer, const Tensor& y, const Tensor* chosen)> layer;
  };
  void watch(Watch watch) { watch_ = std::move(watch); }

  // A new step: gradients and loads to zero.
  void begin_step();

  // Two sets: what every data-parallel rank has, and the routed experts, which are spread over
  // expert-parallel ranks.
  Params& expert_params() { return expert_params_; }
  std::array<Params*, 2> param_sets() { return {&params_, &expert_params_}; }
  // Of the mixture-of-experts layers, in order.
  const std::vector<Moe*>& moe() const { return moe_; }
  const StageOptions& options() const { return options_; }

 private:
  struct Saved {
    Embedding::Saved embedding;
    std::vector<Layer::Saved> layers;  // whose W is not done
    Head::Saved head;
    Buf flow;  // [tokens, d_model] between layers: x, later dy
  };
  Saved& saved(int microbatch);
  Scope scope(const char* name, int microbatch, int64_t layer = -1) const;  // layer: of the model

  const Context& context_;
  StageOptions options_;
  Params params_, expert_params_;
  std::optional<Embedding> embedding_;
  std::vector<Moe*> moe_;
  std::vector<Layer> layers_;
  std::optional<Head> head_;
  std::vector<std::unique_ptr<Saved>> saved_;  // [microbatches]
  Buf loss_host_;                              // [microbatches, tokens]
  Watch watch_;
};

}  // namespace duet
