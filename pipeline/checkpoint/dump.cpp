// See dump.h.
#include "pipeline/checkpoint/dump.h"

#include "comm/gather_named.h"
#include "pipeline/checkpoint/checkpoint.h"

namespace duet {

template <class T>
void StepDump::add(
    const std::string& name, std::vector<int64_t> shape, const std::vector<T>& values) {
  shapes_[name] = std::move(shape);
  bytes_[name].assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

static std::string at(int64_t index) { return format("@%012lld", (long long)index); }

void StepDump::add(
    int64_t index, int64_t layer, const Tensor& output, const Tensor* chosen_experts) {
  const std::string name = cat("layer.", layer, ".");
  Stream& stream = context_.stream();
  const auto shape = [&](const Tensor& x) {
    return std::vector{context_.sequences, context_.seq_len, x.cols};
  };
  add(name + "output" + at(index), shape(output), to_host(stream, output));
  if (!chosen_experts) return;
  std::vector<int32_t> experts(size_t(chosen_experts->size()));
  stream.copy(experts.data(), chosen_experts->data, size_t(chosen_experts->bytes()));
  stream.synchronize();
  add(name + "topk_idx" + at(index), shape(*chosen_experts), experts);
}

void StepDump::add(int64_t index, const Microbatch& batch, const Tensor& logits) {
  const std::string place = at(index);
  const int64_t sequences = context_.sequences, seq_len = context_.seq_len;
  add("input_ids" + place, {sequences, seq_len}, batch.inputs);
  add("targets" + place, {sequences, seq_len}, batch.targets);
  add("logits" + place, {sequences, seq_len, logits.cols}, to_host(context_.stream(), logits));
}

void StepDump::add(const Params& params) {
  for (const Param& p : params.all())
    if (p.trained) add("grad." + p.name, logical_shape(p), download(context_.stream(), p, p.grad));
}

void StepDump::write(Comm& world, const std::string& path, double loss) {
  add("loss", {1}, std::vector<float>{float(loss)});
  const auto shapes = gather_named(world, shapes_);
  const auto bytes = gather_named(world, bytes_);
  if (world.rank() != 0) return;
  const auto dtype = [](const std::string& name) {
    const bool whole = name == "input_ids" || name == "targets" || name.ends_with("topk_idx");
    return whole ? "I32" : "F32";
  };
  std::vector<TensorSpec> specs;
  std::map<std::string, std::string> values;
  for (const auto& [part, copies] : shapes) {  // those of one tensor in order of their place
    const std::string name = part.substr(0, part.find('@'));
    const std::vector<int64_t>& shape = copies[0].second;
    if (specs.empty() || specs.back().name != name)
      specs.push_back({name, dtype(name), shape});
    else
      specs.back().shape[0] += shape[0];
    values[name] += bytes.at(part)[0].second;
  }
  replace_file(path, [&](FileWriter& file) {
    SafetensorsWriter writer(file, specs);
    for (const TensorSpec& spec : writer.tensors())
      writer.write(spec.name, values[spec.name].data(), values[spec.name].size());
    writer.finish();
  });
}

}  // namespace duet
