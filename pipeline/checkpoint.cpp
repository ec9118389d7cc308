// See checkpoint.h.
#include "pipeline/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>

#include "pipeline/durable.h"
#include "pipeline/safetensors.h"

namespace duet {

namespace fs = std::filesystem;

int64_t LogicalTensor::elements() const {
  int64_t n = 1;
  for (int64_t dim : shape) n *= dim;
  return n;
}

LogicalTensor logical_tensor(const Param& p) {
  LogicalTensor t{p.name, {p.rows, p.cols}, p.trained};
  if (p.rows == 1 && !p.transposed) t.shape = {p.cols};
  if (p.transposed) std::swap(t.shape[0], t.shape[1]);
  return t;
}

// to[c, r] = from[r, c] in tiles, so that neither side strides through memory.
static void transpose(const float* from, float* to, int64_t rows, int64_t cols) {
  constexpr int64_t kTile = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += kTile)
    for (int64_t c0 = 0; c0 < cols; c0 += kTile)
      for (int64_t r = r0; r < std::min(rows, r0 + kTile); ++r)
        for (int64_t c = c0; c < std::min(cols, c0 + kTile); ++c) to[c * rows + r] = from[r * cols + c];
}

std::vector<float> download(Stream& stream, const Param& p, const Tensor& values) {
  std::vector<float> host = to_host(stream, values);
  if (!p.transposed) return host;
  std::vector<float> turned(host.size());
  transpose(host.data(), turned.data(), p.rows, p.cols);
  return turned;
}

void upload_state(Stream& stream, const Param& p, const Tensor& values, const std::vector<float>& host) {
  std::vector<float> turned;
  if (p.transposed) {
    turned.resize(host.size());
    transpose(host.data(), turned.data(), p.cols, p.rows);
  }
  stream.copy(values.data, p.transposed ? turned.data() : host.data(), size_t(values.bytes()));
  stream.synchronize();
}

static void write_tensors(FileWriter& file, const CheckpointContents& contents, bool moments) {
  std::map<std::string, std::pair<const LogicalTensor*, State>> by_name;
  std::vector<TensorSpec> specs;
  const auto add = [&](const std::string& prefix, const LogicalTensor& t, State state) {
    by_name[prefix + t.name] = {&t, state};
    specs.push_back({prefix + t.name, "F32", t.shape});
  };
  for (const LogicalTensor& t : contents.tensors) {
    if (!moments) add("", t, State::weight);
    if (moments && t.trained) add("m.", t, State::m), add("v.", t, State::v);
  }
  SafetensorsWriter writer(file, specs, {{"format", "pt"}});
  for (const TensorSpec& spec : writer.tensors()) {
    const auto& [tensor, state] = by_name.at(spec.name);
    const std::vector<float> values = contents.fetch(*tensor, state);
    writer.write(spec.name, values.data(), values.size() * sizeof(float));
  }
  writer.finish();
}

void write_checkpoint(const std::string& dir, const CheckpointContents& contents) {
  DurableDir target(dir);
  target.file("config.json").write(contents.config.dump(2) + "\n");
  write_tensors(target.file("model.safetensors"), contents, false);
  write_tensors(target.file("optimizer.safetensors"), contents, true);
  target.file("trainer.json").write(contents.trainer.dump(2) + "\n");
  target.publish();
}

ModelConfig checkpoint_config(const std::string& dir) {
  const std::string file = dir + "/config.json";
  require(fs::exists(file), dir, ": found no config.json, allowed: a checkpoint of duet or a DeepseekV3ForCausalLM directory");
  return ModelConfig::from_json(Json::load(file), file);
}

using TensorFiles = std::vector<std::unique_ptr<SafetensorsReader>>;

// DIR/model.safetensors, or where a large model lies in several files those that its index names.
static TensorFiles open_weights(const std::string& dir) {
  std::set<std::string> names = {"model.safetensors"};
  const std::string index = dir + "/model.safetensors.index.json";
  if (!fs::exists(dir + "/model.safetensors") && fs::exists(index)) {
    names.clear();
    const Json json = Json::load(index);
    for (const auto& [tensor, file] : json.at("weight_map").members()) names.insert(file.string());
    require(!names.empty(), index, ": weight_map: found no tensor, allowed: at least one");
  }
  TensorFiles files;
  for (const std::string& name : names) files.push_back(std::make_unique<SafetensorsReader>(dir + "/" + name));
  return files;
}

// One state of every parameter.
static void read_tensors(const TensorFiles& files, const std::string& prefix, Stream& stream, Params& params, State state) {
  for (Param& p : params.all()) {
    if (state != State::weight && !p.trained) continue;
    const LogicalTensor t = logical_tensor(p);
    const auto has = [&](const auto& file) { return file->find(prefix + t.name) != nullptr; };
    const auto found = std::find_if(files.begin(), files.end(), has);
    const SafetensorsReader& file = found == files.end() ? *files.front() : **found;
    const auto& entry = file.at(prefix + t.name, t.shape);  // throws where it is missing
    std::vector<float> host(size_t(entry.elements()));
    file.read_floats(entry, 0, entry.elements(), host.data());
    upload_state(stream, p, state == State::weight ? p.master : state == State::m ? p.m : p.v, host);
  }
}

void check_checkpoint(const std::string& dir, const ModelConfig& config) {
  const bool ours = fs::exists(dir + "/trainer.json");
  require(!ours || is_complete(dir), dir, ": found no DONE file, allowed: a complete checkpoint");
  if (ours) verify(dir);
  require(checkpoint_config(dir) == config, "--resume: found a model of other sizes in ", dir,
          ", allowed: the same --preset, --model and vocabulary");
}

void read_checkpoint(const std::string& dir, Stream& stream, Params& params) {
  read_tensors(open_weights(dir), "", stream, params, State::weight);
  params.masters_changed(stream);
  if (!fs::exists(dir + "/trainer.json")) return;
  TensorFiles moments;
  moments.push_back(std::make_unique<SafetensorsReader>(dir + "/optimizer.safetensors"));
  read_tensors(moments, "m.", stream, params, State::m);
  read_tensors(moments, "v.", stream, params, State::v);
}

Json checkpoint_trainer(const std::string& dir) {
  const std::string file = dir + "/trainer.json";
  return fs::exists(file) ? Json::load(file) : Json();
}

std::string newest_checkpoint(const std::string& out) {
  if (fs::exists(out + "/config.json")) return out;
  if (!fs::is_directory(out)) return "";
  const std::vector<std::string> dirs = complete_dirs(out);
  return dirs.empty() ? "" : dirs.back();
}

}  // namespace duet
