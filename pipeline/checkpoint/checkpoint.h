// Checkpoints: a directory that Hugging Face transformers opens as DeepseekV3ForCausalLM, plus the
// training state.
//
//   config.json            the model's sizes (model/config.h)
//   model.safetensors      master weights, fp32, under Hugging Face's names and shapes ([out, in])
//   optimizer.safetensors  AdamW's moments: "m." and "v." + the weight's name
//   trainer.json           step, what defines the run and what it was told (train/same_run.h), and
//                          the balancer's state (moe/load_monitor.h)
//   DONE                   sizes and checksums (durable.h), written last
//
// Tensors are in logical order: no trace of schedule, layout, device or expert placement. A
// directory without optimizer and trainer state (someone else's model, also one in several files
// with a model.safetensors.index.json) can be started from, not resumed. Not here: which rank has
// what (train/trainer_state.cpp).
// Read next: dump.h.
#pragma once
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/context.h"
#include "pipeline/checkpoint/safetensors.h"

namespace duet {

enum class State { weight, m, v };
inline constexpr State kStates[] = {State::weight, State::m, State::v};
const Tensor& state_of(const Param& p, State state);

std::vector<int64_t> logical_shape(const Param& p);  // the one that checkpoints have

// Master, gradient, m or v of a parameter on the host, in the checkpoint's element order.
// Synchronizes.
std::vector<float> download(Stream& stream, const Param& p, const Tensor& values);

// A tensor of one of a checkpoint's files, and what it is of.
struct StoredTensor : TensorSpec {
  StoredTensor(const std::string& param, State state, std::vector<int64_t> shape);
  std::string param;
  State state;
};
// What a checkpoint is made of. fetch is called once for each tensor, in order.
struct CheckpointContents {
  Json config, trainer;
  std::vector<StoredTensor> weights, moments;  // by name
  std::function<std::vector<float>(const StoredTensor& tensor)> fetch;
};
void write_checkpoint(const std::string& dir, const CheckpointContents& contents);  // whole

// Fills the parameters from a directory: weights always, moments if they are wanted and it has a
// training state. Throws UsageError naming the file where it does not fit. Whether the files are
// whole is for check_checkpoint, once for all ranks.
enum class Restore { weights, everything };
void check_checkpoint(const std::string& dir, const ModelConfig& config);
void read_checkpoint(const std::string& dir, Stream& stream, Params& params, Restore what);

// The tensors of a safetensors file; of those that an index names (.json), where a large model lies
// in several; of a directory model.safetensors, or its index. A name that two files have is
// refused: of two tensors other programs would take the other one.
struct TensorFiles {
  explicit TensorFiles(const std::string& path);
  TensorFiles(TensorFiles&&) = default;
  void add(const std::string& file);
  struct Located {
    const SafetensorsReader* file;
    const SafetensorsReader::Entry* entry;
  };
  std::map<std::string, Located> tensors;
  // which must exist with this shape
  const Located& at(const std::string& name, const std::vector<int64_t>& shape) const;

 private:
  std::string path_;
  std::deque<SafetensorsReader> files_;
};

// In a run's folder checkpoints are named step-NNNNNN, six digits or more; whatever has another
// name is left alone. The complete ones, by step.
constexpr int64_t kMostSteps = 1'000'000'000;
std::string checkpoint_dir(const std::string& out, int64_t step);
std::map<int64_t, std::string> run_checkpoints(const std::string& out);

// The newest of them, or empty; of a folder that is a checkpoint itself, the folder.
std::string newest_checkpoint(const std::string& out);
ModelConfig checkpoint_config(const std::string& dir);
Json checkpoint_trainer(const std::string& dir);  // its trainer.json, or null

}  // namespace duet
