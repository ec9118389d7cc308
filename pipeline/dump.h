// StepDump: one step's batch, logits, loss and every gradient in a safetensors file, so that anyone's own trainer can be compared
// with duet.
//
//   input_ids, targets  I32 [sequences, seq_len]      in global sequence order
//   logits              F32 [sequences, seq_len, vocab]
//   loss                F32 [1]                       mean cross-entropy, nats; without the balance loss
//   grad.NAME           F32 Hugging Face's shape      of the loss and the balance loss, before clipping
#pragma once
#include <string>

#include "pipeline/stage.h"

namespace duet {

class StepDump {
 public:
  StepDump(const Context& context, int64_t tokens) : context_(context) { logits_.reserve(size_t(tokens * context.config.vocab_size)); }
  void add(const Microbatch& batch, const Tensor& logits);  // in ascending order of microbatch
  void write(const std::string& path, double loss, const Params& params) const;

 private:
  const Context& context_;
  std::vector<int32_t> inputs_, targets_;
  std::vector<float> logits_;
};

}  // namespace duet
