// See checkpoint.h.
#include "pipeline/checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "model/base/text.h"
#include "pipeline/checkpoint/durable.h"

namespace duet {

namespace fs = std::filesystem;

const Tensor& state_of(const Param& p, State state) {
  return state == State::weight ? p.master : state == State::m ? p.m : p.v;
}

std::vector<int64_t> logical_shape(const Param& p) {
  if (p.transposed) return {p.cols, p.rows};
  if (p.rows == 1) return {p.cols};
  return {p.rows, p.cols};
}

// [cols, rows] of [rows, cols], in tiles, so that neither side strides through memory.
static std::vector<float> transposed(const std::vector<float>& from, int64_t rows, int64_t cols) {
  constexpr int64_t kTile = 32;
  std::vector<float> to(from.size());
  for (int64_t r0 = 0; r0 < rows; r0 += kTile)
    for (int64_t c0 = 0; c0 < cols; c0 += kTile)
      for (int64_t r = r0; r < std::min(rows, r0 + kTile); ++r)
        for (int64_t c = c0; c < std::min(cols, c0 + kTile); ++c)
          to[size_t(c * rows + r)] = from[size_t(r * cols + c)];
  return to;
}

std::vector<float> download(Stream& stream, const Param& p, const Tensor& values) {
  std::vector<float> host = to_host(stream, values);
  return p.transposed ? transposed(host, p.rows, p.cols) : host;
}

static constexpr const char* kPrefix[] = {"", "m.", "v."};  // by State

StoredTensor::StoredTensor(const std::string& p, State s, std::vector<int64_t> shape)
    : TensorSpec{kPrefix[int(s)] + p, "F32", shape}, param(p), state(s) {}

void write_checkpoint(const std::string& dir, const CheckpointContents& contents) {
  DurableDir target(dir);
  const auto write = [&](FileWriter& file, const std::vector<StoredTensor>& tensors) {
    SafetensorsWriter writer(file, {tensors.begin(), tensors.end()});
    for (const StoredTensor& t : tensors) {
      const std::vector<float> values = contents.fetch(t);
      writer.write(t.name, values.data(), values.size() * sizeof(float));
    }
    writer.finish();
  };
  target.file("config.json").write(contents.config.dump(2) + "\n");
  write(target.file("model.safetensors"), contents.weights);
  write(target.file("optimizer.safetensors"), contents.moments);
  target.file("trainer.json").write(contents.trainer.dump(2) + "\n");
  target.publish();
}

ModelConfig checkpoint_config(const std::string& dir) {
  const std::string file = dir + "/config.json";
  require(fs::exists(file), dir,
      ": found no config.json, allowed: a checkpoint of duet or a DeepseekV3ForCausalLM directory");
  return ModelConfig::from_json(Json::load(file), file);
}

TensorFiles::TensorFiles(const std::string& path) : path_(path) {
  if (fs::is_directory(path)) {
    const std::string file = path + "/model.safetensors", index = file + ".index.json";
    path_ = !fs::exists(file) && fs::exists(index) ? index : file;
  }
  if (!path_.ends_with(".json")) {
    add(path_);
    return;
  }
  std::map<std::string, std::set<std::string>> tensors;  // of each file
  for (const auto& [tensor, file] : Json::load(path_).at("weight_map").members())
    tensors[file.string()].insert(tensor);
  require(!tensors.empty(), path_, ": weight_map: found no tensor, allowed: at least one");
  for (const auto& [name, names] : tensors) {
    add((fs::path(path_).parent_path() / name).string());
    for (const std::string& tensor : names)
      require(files_.back().find(tensor), path_, ": weight_map: found ", shortened(tensor), " in ",
          name, ", which has no such tensor");
  }
}

void TensorFiles::add(const std::string& file) {
  const SafetensorsReader& opened = files_.emplace_back(file);
  for (const auto& [name, entry] : opened.tensors())
    require(tensors.try_emplace(name, Located{&opened, &entry}).second, path_, ": found ",
        shortened(name), " in two files, allowed: each tensor once");
}

const TensorFiles::Located& TensorFiles::at(
    const std::string& name, const std::vector<int64_t>& shape) const {
  const auto found = tensors.find(name);
  require(found != tensors.end(), path_, ": tensor ", name, " is missing (found ", tensors.size(),
      " tensors)");
  found->second.file->at(name, shape);
  return found->second;
}

// One state of every parameter.
static void read_tensors(const TensorFiles& files, Stream& stream, Params& params, State state) {
  for (Param& p : params.all()) {
    if (state != State::weight && !p.trained) continue;
    const StoredTensor t(p.name, state, logical_shape(p));
    const auto& [file, entry] = files.at(t.name, t.shape);
    std::vector<float> host = file->finite(*entry);
    if (p.transposed) host = transposed(host, p.cols, p.rows);
    stream.copy(state_of(p, state).data, host.data(), host.size() * sizeof(float));
    stream.synchronize();
  }
}

void check_checkpoint(const std::string& dir, const ModelConfig& config) {
  const bool ours = fs::exists(dir + "/trainer.json");
  require(!ours || is_complete(dir), dir, ": found no DONE file, allowed: a complete checkpoint");
  if (ours) verify(dir);
  require(checkpoint_config(dir) == config, "--resume: found another model in ", dir,
      ", allowed: the same --preset, --model, --init and vocabulary");
}

void read_checkpoint(const std::string& dir, Stream& stream, Params& params, Restore what) {
  read_tensors(TensorFiles(dir), stream, params, State::weight);
  params.masters_changed(stream);
  if (what == Restore::weights || !fs::exists(dir + "/trainer.json")) return;
  const TensorFiles moments(dir + "/optimizer.safetensors");
  for (State state : {State::m, State::v}) read_tensors(moments, stream, params, state);
}

Json checkpoint_trainer(const std::string& dir) {
  const std::string file = dir + "/trainer.json";
  return fs::exists(file) ? Json::load(file) : Json();
}

std::string checkpoint_dir(const std::string& out, int64_t step) {
  return out + format("/step-%06lld", (long long)step);
}

std::map<int64_t, std::string> run_checkpoints(const std::string& out) {
  std::map<int64_t, std::string> found;
  for (const std::string& dir : complete_dirs(out)) {
    const std::string name = fs::path(dir).filename().string();
    const auto step = parse_number<int64_t>(std::string_view(name).substr(name.find('-') + 1));
    if (step && *step <= kMostSteps && "/" + name == checkpoint_dir("", *step)) found[*step] = dir;
  }
  return found;
}

std::string newest_checkpoint(const std::string& out) {
  const std::map<int64_t, std::string> found = run_checkpoints(out);
  if (!found.empty()) return found.rbegin()->second;
  return fs::exists(out + "/config.json") ? out : "";
}

}  // namespace duet
