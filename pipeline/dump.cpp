// See dump.h.
#include "pipeline/dump.h"

#include <cstdio>
#include <sstream>

#include "pipeline/checkpoint.h"
#include "pipeline/safetensors.h"

namespace duet {

template <class T>
void StepDump::add(const std::string& name, std::vector<int64_t> shape, const std::vector<T>& values) {
  pieces_[name] = {std::move(shape), std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))};
}

void StepDump::add(int64_t index, const Microbatch& batch, const Tensor& logits) {
  char place[32];
  std::snprintf(place, sizeof place, "@%012lld", (long long)index);
  const int64_t sequences = context_.sequences, seq_len = context_.seq_len;
  add(std::string("input_ids") + place, {sequences, seq_len}, batch.inputs);
  add(std::string("targets") + place, {sequences, seq_len}, batch.targets);
  add(std::string("logits") + place, {sequences, seq_len, logits.cols}, to_host(context_.stream(), logits));
}

void StepDump::add(const Params& params) {
  for (const Param& p : params.all())
    if (p.trained) add("grad." + p.name, logical_tensor(p).shape, download(context_.stream(), p, p.grad[0]));
}

std::string StepDump::serialize(const Pieces& pieces) {
  std::ostringstream text;
  for (const auto& [name, piece] : pieces) {
    text << name << ' ' << piece.shape.size();
    for (int64_t n : piece.shape) text << ' ' << n;
    text << ' ' << piece.bytes.size() << '\n' << piece.bytes;
  }
  return text.str();
}

void StepDump::parse(const std::string& text, Pieces& pieces) {
  std::istringstream in(text);
  std::string name;
  for (size_t dims, bytes; in >> name >> dims;) {
    Piece piece;
    piece.shape.resize(dims);
    for (int64_t& n : piece.shape) in >> n;
    in >> bytes;
    in.get();
    piece.bytes.resize(bytes);
    in.read(piece.bytes.data(), std::streamsize(bytes));
    pieces[name] = std::move(piece);
  }
}

void StepDump::write(Comm& world, const std::string& path, double loss) const {
  Pieces all;
  for (const std::string& of_rank : world.gather(serialize(pieces_))) parse(of_rank, all);
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
  SafetensorsWriter writer(file, specs, {{"format", "pt"}});
  for (const TensorSpec& spec : writer.tensors()) writer.write(spec.name, tensors[spec.name].bytes.data(), tensors[spec.name].bytes.size());
  writer.finish();
  file.close();
}

}  // namespace duet
