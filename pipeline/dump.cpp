// See dump.h.
#include "pipeline/dump.h"

#include "pipeline/checkpoint.h"
#include "pipeline/safetensors.h"

namespace duet {

void StepDump::add(const Microbatch& batch, const Tensor& logits) {
  inputs_.insert(inputs_.end(), batch.inputs.begin(), batch.inputs.end());
  targets_.insert(targets_.end(), batch.targets.begin(), batch.targets.end());
  const std::vector<float> values = to_host(context_.stream(), logits);
  logits_.insert(logits_.end(), values.begin(), values.end());
}

void StepDump::write(const std::string& path, double loss, const Params& params) const {
  const int64_t seq_len = context_.seq_len, sequences = int64_t(inputs_.size()) / seq_len;
  std::map<std::string, const Param*> by_name;
  std::vector<TensorSpec> specs = {{"input_ids", "I32", {sequences, seq_len}},
                                   {"targets", "I32", {sequences, seq_len}},
                                   {"logits", "F32", {sequences, seq_len, context_.config.vocab_size}},
                                   {"loss", "F32", {1}}};
  for (const Param& p : params.all()) {
    if (!p.trained) continue;
    by_name["grad." + p.name] = &p;
    specs.push_back({"grad." + p.name, "F32", logical_tensor(p).shape});
  }
  FileWriter file(path);
  SafetensorsWriter writer(file, specs, {{"format", "pt"}});
  const float loss32 = float(loss);
  for (const TensorSpec& spec : writer.tensors()) {
    if (spec.name == "input_ids") writer.write(spec.name, inputs_.data(), inputs_.size() * 4);
    else if (spec.name == "targets") writer.write(spec.name, targets_.data(), targets_.size() * 4);
    else if (spec.name == "logits") writer.write(spec.name, logits_.data(), logits_.size() * 4);
    else if (spec.name == "loss") writer.write(spec.name, &loss32, 4);
    else {
      const Param& p = *by_name.at(spec.name);
      const std::vector<float> grad = download(context_.stream(), p, p.grad[0]);
      writer.write(spec.name, grad.data(), grad.size() * 4);
    }
  }
  writer.finish();
  file.close();
}

}  // namespace duet
