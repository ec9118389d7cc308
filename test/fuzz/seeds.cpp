// Right inputs of each target, made by duet's own writers, so that they stay right.
// Read next: loop.cpp.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "data/tokenizer.h"
#include "model/base/hash.h"
#include "model/base/json.h"
#include "model/config.h"
#include "moe/load_monitor.h"
#include "pipeline/checkpoint/safetensors.h"
#include "pipeline/schedule/schedule.h"
#include "test/fuzz/fuzz.h"

namespace duet {

using Inputs = std::vector<std::string>;

static std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

Inputs schedule_seeds() {
  Inputs seeds;
  for (const ScheduleKind& kind : schedule_kinds())
    for (const int microbatches : {4, 8}) {
      std::ostringstream csv;
      write_csv(csv, kind.make({2, microbatches, 2}));
      seeds.push_back(csv.str());
    }
  seeds.push_back("# two ranks\r\n0F0, ,0B0\r\n1F0,1I0,1W0\r\n");
  return seeds;
}

Inputs json_seeds() {
  return {R"({"a": [1, -2.5e3, true, null, "x\u00e9\n"], "b": {"c": {}}})",
      "[9223372036854775807, 18446744073709551615, 1e400, 0.1]", "[[[[]]]]", "\"\\ud83d\\ude00\"",
      "\xEF\xBB\xBF{\"step\": 1}"};
}

Inputs analyze_seeds() {
  const std::string kernel =
      R"({"ph":"X","cat":"kernel","name":"gemm","pid":0,"tid":7,"ts":10.5,"dur":3,)"
      R"("args":{"stream":7,"device":0,"correlation":1}})";
  const std::string comm =
      R"({"ph":"X","cat":"kernel","name":"ncclDevKernel_AllReduce","pid":0,"tid":9,"ts":"11",)"
      R"("dur":"4.25","args":{"stream":9,"device":0,"correlation":2,"Seq":3}})";
  const std::string launch =
      R"({"ph":"X","cat":"cuda_runtime","name":"cudaLaunchKernel","pid":5,"tid":5,"ts":9,"dur":1,)"
      R"("args":{"correlation":1}})";
  const std::string pair = R"({"ph":"B","cat":"kernel","name":"k","pid":0,"tid":7,"ts":20},)"
                           R"({"ph":"E","pid":0,"tid":7,"ts":21})";
  const std::string around =
      R"({"ph":"X","cat":"user_annotation","name":"dispatch F","pid":5,"tid":5,"ts":8,"dur":4})";
  const std::string lane =
      R"({"ph":"X","cat":"comm","name":"dispatch F","pid":"GPU 1","tid":3,"ts":1e1,"dur":2.5,)"
      R"("args":{"step":1,"layer":2,"bytes":4096,"blocks":true}})";
  const std::string events =
      kernel + "," + comm + "," + launch + "," + pair + "," + around + "," + lane;
  return {R"({"schemaVersion":1,"traceEvents":[)" + events + "]}", "[" + events + "]", "[" + events,
      R"({"traceEvents":[]})"};
}

Inputs loads_seeds() {
  const std::string layer = "90,132,40,61,104,165,39,4,73,56,183,86\n",
                    json = R"({"weight": [[90,132,40,61,104,165,39,4,73,56,183,86]]})";
  Inputs seeds = {"0" + layer + layer, "1" + json, "q" + json, "t" + layer};
  for (const char first : {'0', '1', '2'}) {
    std::string lines(1, first);
    for (int step = 1; step <= 3; ++step)
      lines += cat(R"({"step":)", step, R"(,"loss":5.5,"loss_hex":"0x1.6p+2","moe":[{"layer":1,)",
          R"("tokens_per_expert":[1,2,3,4,5,6,7,8],"tokens_per_rank":[10,26],"balancedness":0.7,)",
          R"("replan":{"before":0.7,"predicted":0.9,"moves":1,"bytes_moved":8,"skipped":false}}]})",
          "\n");
    seeds.push_back(lines);
  }
  return seeds;
}

Inputs safetensors_seeds() {
  Inputs seeds;
  for (const char* dtype : {"F32", "BF16", "F64", "I32"}) {
    const std::string path = as_file("", "seed.safetensors");
    FileWriter file(path);
    SafetensorsWriter writer(
        file, {{"a", dtype, {2, 3}}, {"scalar", "F32", {}}, {"none", "F32", {0}}});
    const double zeros[6] = {};
    for (const TensorSpec& t : writer.tensors()) writer.write(t.name, zeros, size_t(t.bytes()));
    writer.finish();
    file.close();
    seeds.push_back(contents(path));
  }
  return seeds;
}

Inputs config_seeds() {
  const std::string tiny = find_preset("tiny").model.to_json(64, "float32").dump();
  std::string nested = tiny;  // as transformers 5 writes it
  const size_t at = nested.find("\"rope_theta\"");
  nested.insert(at, R"("rope_parameters":{"rope_type":"default","rope_theta":10000.0},)");
  return {tiny, find_preset("deepseek-v3").model.to_json(4096, "bfloat16").dump(), nested};
}

Inputs trainer_seeds() {
  BalancerOptions options;
  options.shape = {8, 10, 1, 1, 2};
  LoadMonitor monitor(options, {1, 2});
  monitor.add(1, {1, 2, 3, 4, 5, 6, 7, 8});
  return {
      Json::object({{"step", 3}, {"seed", 0}, {"data", ""}, {"tokenizer", ""}, {"seq_len", 16},
                       {"global_sequences", 4}, {"dtype", "fp32"}, {"balancer", monitor.state()}})
          .dump()};
}

Inputs done_seeds() {
  const std::string sum = format("%016llx", static_cast<unsigned long long>(checksum("hello")));
  const Json file = Json::object({{"name", "a.bin"}, {"bytes", 5}, {"checksum", sum}});
  return {Json::object({{"files", Json(Json::Array{file})}}).dump(2)};
}

static std::string words(std::initializer_list<int32_t> first) {
  int32_t header[256] = {};
  std::copy(first.begin(), first.end(), header);
  return {reinterpret_cast<const char*>(header), sizeof header};
}

Inputs shard_seeds() {
  std::string two = words({20240520, 1, 60}), four = words({20240801, 7, 60});
  for (int id = 0; id < 60; ++id) {
    two += {char(id), char(id % 3)};
    four += {char(id), char(id % 3), 0, 0};
  }
  return {two, four};
}

Inputs text_seeds() {
  return {"the quick brown fox jumps over the lazy dog, and over the next one",
      std::string(40, '\xff')};
}

Inputs tokenizer_seeds() {
  std::string file = words({kTokenizerMagic, 2, 260});
  for (int id = 0; id < 256; ++id) file += {1, char(id)};
  for (const char* token : {"th", "the", "  ", "ing"})
    file += char(strlen(token)) + std::string(token);
  return {file};
}

Inputs command_line_seeds() {
  return {
      "train\n--pp\n2\n--microbatches\n8\n--lr\n1e-3\n--dtype\nfp32\n--model\nn_layers=4,d_model="
      "64",
      "train\n--split\n3,4,4,3\n--trace\nt.json\n--trace-steps\n2-3\n--steps=4\n--overlap=off",
      "train\n--link\nintra=160GB/s,inter=40GB/s,latency=5us\n--ranks-per-node\n2",
      "schedule\n--cost\nF=1,I=1,W=1,FB=2\n--format\nsvg\n--compare",
      "eplb\n--replicas\n16\n--gpus\n8\n--policy\nbalanced\n--replicas-may-leave-node",
      "train\n--out\nx\n--resume\n\nsteps = 7\nlr = 1e-3\nschedule = \"1f1b\"\nresume = true\n",
      "schedule\n\n# a comment\n[train]\nsteps = 7\n[schedule]\npp = 2\ncost = \"FB=2\"\n",
      "generate\n--help", "--version", "train\n\na = [1, 2]\n[a.b]\nc = 'x'\n"};
}

}  // namespace duet
