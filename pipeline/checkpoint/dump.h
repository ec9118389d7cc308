// StepDump: one step's batch, logits, loss and every gradient in a safetensors file, so that
// anyone's own trainer can be compared with duet.
//
//   input_ids, targets  I32 [sequences, seq_len]         in global sequence order
//   logits              F32 [sequences, seq_len, vocab]
//   loss                F32 [1]                          mean cross-entropy, nats
//   grad.NAME           F32 Hugging Face's shape         of the loss and the balance loss (which
//                                                        `loss` is without), before clipping
//
// Each rank adds what it has; rank 0 writes. Everything is held in host memory, on every rank:
// meant for small models.
// Read next: insight/README.md.
#pragma once
#include <map>
#include <string>

#include "comm/comm.h"
#include "data/batch.h"
#include "model/context.h"

namespace duet {

class StepDump {
 public:
  explicit StepDump(const Context& context) : context_(context) {}
  // Of a last stage. index: the microbatch's place in global sequence order, microbatch * dp +
  // dp_rank.
  void add(int64_t index, const Microbatch& batch, const Tensor& logits);
  void add(const Params& params);                                 // with finished gradients
  void write(Comm& world, const std::string& path, double loss);  // collective

 private:
  template <class T>
  void add(const std::string& name, std::vector<int64_t> shape, const std::vector<T>& values);

  const Context& context_;
  // by name; a part of a tensor is named "tensor@index", to be joined along dim 0
  std::map<std::string, std::vector<int64_t>> shapes_;
  std::map<std::string, std::string> bytes_;
};

}  // namespace duet
