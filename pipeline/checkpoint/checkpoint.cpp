// See checkpoint.h.
#include "pipeline/checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "pipeline/checkpoint/durable.h"

namespace duet {

namespace fs = std::filesystem;

const Tensor& state_of(const Param& p, State state) {
  return state == State::weight ? p.master : state == State::m ? p.m : p.v;
}

LogicalTensor logical_tensor(const Param& p) {
  LogicalTensor t{{p.name, "F32", {p.rows, p.cols}}, p.trained};
  if (p.rows == 1 && !p.transposed) t.shape = {p.cols};
  if (p.transposed) std::swap(t.shape[0], t.shape[1]);
  return t;
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

static std::string file_name(const LogicalTensor& t, State state) {
  return (state == State::weight ? "" : state == State::m ? "m." : "v.") + t.name;
}

void CheckpointContents::for_each(std::span<const State> states, const Visit& visit) const {
  for (State state : states)
    for (const LogicalTensor& t : tensors)
      if (state == State::weight || t.trained) visit(t, state);
}

static void write_tensors(
    FileWriter& file, const CheckpointContents& contents, std::span<const State> states) {
  std::vector<TensorSpec> specs;
  contents.for_each(states, [&](const LogicalTensor& t, State state) {
    specs.push_back({file_name(t, state), t.dtype, t.shape});
  });
  SafetensorsWriter writer(file, specs);
  contents.for_each(states, [&](const LogicalTensor& t, State state) {  // as the writer wants them
    const std::vector<float> values = contents.fetch(t, state);
    writer.write(file_name(t, state), values.data(), values.size() * sizeof(float));
  });
  writer.finish();
}

void write_checkpoint(const std::string& dir, const CheckpointContents& contents) {
  DurableDir target(dir);
  target.file("config.json").write(contents.config.dump(2) + "\n");
  write_tensors(target.file("model.safetensors"), contents, std::span(kStates).first(1));
  write_tensors(target.file("optimizer.safetensors"), contents, std::span(kStates).subspan(1));
  target.file("trainer.json").write(contents.trainer.dump(2) + "\n");
  target.publish();
}

ModelConfig checkpoint_config(const std::string& dir) {
  const std::string file = dir + "/config.json";
  require(fs::exists(file), dir,
      ": found no config.json, allowed: a checkpoint of duet or a DeepseekV3ForCausalLM directory");
  return ModelConfig::from_json(Json::load(file), file);
}

using TensorFiles = std::vector<SafetensorsReader>;

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
  for (const std::string& name : names) files.emplace_back(dir + "/" + name);
  return files;
}

// One state of every parameter.
static void read_tensors(const TensorFiles& files, Stream& stream, Params& params, State state) {
  for (Param& p : params.all()) {
    if (state != State::weight && !p.trained) continue;
    const LogicalTensor t = logical_tensor(p);
    const std::string name = file_name(t, state);
    const auto has = [&](const SafetensorsReader& file) { return file.find(name) != nullptr; };
    const auto found = std::find_if(files.begin(), files.end(), has);
    const SafetensorsReader& file = found == files.end() ? files.front() : *found;
    std::vector<float> host = file.floats(file.at(name, t.shape));  // throws where it is missing
    if (p.transposed) host = transposed(host, p.cols, p.rows);
    stream.copy(state_of(p, state).data, host.data(), host.size() * sizeof(float));
    stream.synchronize();
  }
}

void check_checkpoint(const std::string& dir, const ModelConfig& config) {
  const bool ours = fs::exists(dir + "/trainer.json");
  require(!ours || is_complete(dir), dir, ": found no DONE file, allowed: a complete checkpoint");
  if (ours) verify(dir);
  require(checkpoint_config(dir) == config, "--resume: found a model of other sizes in ", dir,
      ", allowed: the same --preset, --model and vocabulary");
}

void read_checkpoint(const std::string& dir, Stream& stream, Params& params, Restore what) {
  read_tensors(open_weights(dir), stream, params, State::weight);
  params.masters_changed(stream);
  if (what == Restore::weights || !fs::exists(dir + "/trainer.json")) return;
  const TensorFiles moments = {SafetensorsReader(dir + "/optimizer.safetensors")};
  for (State state : {State::m, State::v}) read_tensors(moments, stream, params, state);
}

Json checkpoint_trainer(const std::string& dir) {
  const std::string file = dir + "/trainer.json";
  return fs::exists(file) ? Json::load(file) : Json();
}

std::string newest_checkpoint(const std::string& out) {
  if (fs::exists(out + "/config.json")) return out;
  if (!fs::is_directory(out)) return "";
  const std::vector<std::string> dirs = complete_dirs(out);
  const auto newest =
      std::max_element(dirs.begin(), dirs.end(), [](const std::string& a, const std::string& b) {
        // step-1000000 comes after step-999999
        return a.size() != b.size() ? a.size() < b.size() : a < b;
      });
  return newest == dirs.end() ? "" : *newest;
}

}  // namespace duet
