// Checkpoints: a directory that Hugging Face transformers opens as DeepseekV3ForCausalLM, plus the
// training state.
//
//   config.json            the model's sizes (model/config.h)
//   model.safetensors      master weights, fp32, under Hugging Face's names and shapes ([out, in])
//   optimizer.safetensors  AdamW's moments: "m." and "v." + the weight's name
//   trainer.json           step, seed, what the run was told, and the balancer's state
//                          (moe/load_monitor.h)
//   DONE                   sizes and checksums (durable.h), written last
//
// Tensors are in logical order: no trace of schedule, layout, device or expert placement. A
// directory without optimizer and trainer state (someone else's model, also one in several files
// with a model.safetensors.index.json) can be started from, not resumed. Not here: which rank has
// what (train/trainer_state.cpp).
// Read next: dump.h.
#pragma once
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/context.h"
#include "pipeline/checkpoint/safetensors.h"

namespace duet {

enum class State { weight, m, v };
inline constexpr State kStates[] = {State::weight, State::m, State::v};
const Tensor& state_of(const Param& p, State state);

// A logical tensor in the shape that checkpoints have.
struct LogicalTensor : TensorSpec {
  bool trained = true;  // has moments
};
LogicalTensor logical_tensor(const Param& p);

// Master, gradient, m or v of a parameter on the host, in the checkpoint's element order.
// Synchronizes.
std::vector<float> download(Stream& stream, const Param& p, const Tensor& values);

// What a checkpoint is made of. fetch is called once for each tensor and state, in the order of
// for_each: first all weights, then all m, then all v, each in order of name.
struct CheckpointContents {
  using Visit = std::function<void(const LogicalTensor& tensor, State state)>;
  Json config, trainer;
  std::vector<LogicalTensor> tensors;  // by name
  std::function<std::vector<float>(const LogicalTensor& tensor, State state)> fetch;
  void for_each(std::span<const State> states, const Visit& visit) const;
};
void write_checkpoint(const std::string& dir, const CheckpointContents& contents);  // whole

// Fills the parameters from a directory: weights always, moments if they are wanted and it has a
// training state. Throws UsageError naming the file where it does not fit. Whether the files are
// whole is for check_checkpoint, once for all ranks.
enum class Restore { weights, everything };
void check_checkpoint(const std::string& dir, const ModelConfig& config);
void read_checkpoint(const std::string& dir, Stream& stream, Params& params, Restore what);

// The newest complete checkpoint of a run's folder, or empty; and of a folder that is a checkpoint
// itself, the folder.
std::string newest_checkpoint(const std::string& out);
ModelConfig checkpoint_config(const std::string& dir);
Json checkpoint_trainer(const std::string& dir);  // its trainer.json, or null

}  // namespace duet
