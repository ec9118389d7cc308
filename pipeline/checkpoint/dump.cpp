// See dump.h.
#include "pipeline/checkpoint/dump.h"

#include "pipeline/checkpoint/checkpoint.h"
#include "pipeline/checkpoint/safetensors.h"

namespace duet {

template <class T>
void StepDump::add(
    const std::string& name, std::vector<int64_t> shape, const std::vector<T>& values) {
  pieces_[name] = {std::move(shape),
      std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))};
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
      add("grad." + p.name, logical_tensor(p).shape, download(context_.stream(), p, p.grad[0]));
}

// All ranks' pieces; of a piece that several have, the last one's.
StepDump::Pieces StepDump::gather(Comm& world) const {
  Json mine = Json::array();
  std::string bytes;
  for (const auto& [name, piece] : pieces_) {
    mine.push(Json::object(
        {{"name", name}, {"shape", Json(piece.shape)}, {"bytes", piece.bytes.size()}}));
    bytes += piece.bytes;
  }
  const std::vector<std::string> lists = world.gather(mine.dump()), all_bytes = world.gather(bytes);
  Pieces pieces;
  for (size_t r = 0; r < lists.size(); ++r) {
    size_t at = 0;
    for (const Json& j : Json::parse(lists[r], cat("rank ", r)).items()) {
      Piece piece{{}, all_bytes[r].substr(at, size_t(j.at("bytes").integer()))};
      for (const Json& n : j.at("shape").items()) piece.shape.push_back(n.integer());
      at += piece.bytes.size();
      pieces[j.at("name").string()] = std::move(piece);
    }
  }
  return pieces;
}

void StepDump::write(Comm& world, const std::string& path, double loss) const {
  Pieces all = gather(world);
  if (world.rank() != 0) return;
  const float loss32 = float(loss);
  all["loss"] = {{1}, std::string(reinterpret_cast<const char*>(&loss32), sizeof loss32)};
  Pieces tensors;  // parts joined, in order of their place
  for (auto& [name, piece] : all) {
    Piece& whole = tensors[name.substr(0, name.find('@'))];
    if (whole.shape.empty()) {
      whole = std::move(piece);
    } else {
      whole.shape[0] += piece.shape[0];
      whole.bytes += piece.bytes;
    }
  }
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors)
    specs.push_back({name, name == "input_ids" || name == "targets" ? "I32" : "F32", tensor.shape});
  FileWriter file(path);
  SafetensorsWriter writer(file, specs);
  for (const TensorSpec& spec : writer.tensors()) {
    const std::string& bytes = tensors[spec.name].bytes;
    writer.write(spec.name, bytes.data(), bytes.size());
  }
  writer.finish();
  file.close();
}

}  // namespace duet
