// See dump.h.
#include "pipeline/checkpoint/dump.h"

#include "comm/gather_named.h"
#include "pipeline/checkpoint/checkpoint.h"
#include "pipeline/checkpoint/safetensors.h"

namespace duet {

template <class T>
void StepDump::add(
    const std::string& name, std::vector<int64_t> shape, const std::vector<T>& values) {
  shapes_[name] = std::move(shape);
  bytes_[name].assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

void StepDump::add(int64_t index, const Microbatch& batch, const Tensor& logits) {
  const std::string place = format("@%012lld", (long long)index);
  const int64_t sequences = context_.sequences, seq_len = context_.seq_len;
  add("input_ids" + place, {sequences, seq_len}, batch.inputs);
  add("targets" + place, {sequences, seq_len}, batch.targets);
  add("logits" + place, {sequences, seq_len, logits.cols}, to_host(context_.stream(), logits));
}

void StepDump::add(const Params& params) {
  for (const Param& p : params.all())
    if (p.trained)
      add("grad." + p.name, logical_tensor(p).shape, download(context_.stream(), p, p.grad));
}

void StepDump::write(Comm& world, const std::string& path, double loss) {
  add("loss", {1}, std::vector<float>{float(loss)});
  const auto shapes = gather_named(world, shapes_);
  const auto bytes = gather_named(world, bytes_);
  if (world.rank() != 0) return;
  std::vector<TensorSpec> specs;
  std::map<std::string, std::string> values;
  for (const auto& [part, copies] : shapes) {  // those of one tensor in order of their place
    const std::string name = part.substr(0, part.find('@'));
    const std::vector<int64_t>& shape = copies[0].second;
    if (specs.empty() || specs.back().name != name)
      specs.push_back({name, name == "input_ids" || name == "targets" ? "I32" : "F32", shape});
    else
      specs.back().shape[0] += shape[0];
    values[name] += bytes.at(part)[0].second;
  }
  FileWriter file(path);
  SafetensorsWriter writer(file, specs);
  for (const TensorSpec& spec : writer.tensors())
    writer.write(spec.name, values[spec.name].data(), values[spec.name].size());
  writer.finish();
  file.close();
}

}  // namespace duet
