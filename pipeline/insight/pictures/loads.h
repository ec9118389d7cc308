// Loads of experts, from what people have: a run's metrics.jsonl, CSV, JSON, or another program's
// dump. What they mean is the caller's (moe/eplb.h, plan/search.h).
//
//   JSON  [layers][experts], a layer alone or steps of layers; bare, as "weight" or as SGLang's
//         "logical_count"
//   CSV   a layer a row; or vLLM's, with layer_id, expert_id and count
//
// What has steps is summed over them; a run's can also be had step by step.
// Read next: load_map.h.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace duet {

using Loads = std::vector<std::vector<float>>;  // [layers][experts]

constexpr const char* kLoadsFile =  // as options say it
    "a run's metrics.jsonl, CSV with a layer a row, JSON [layers][experts], SGLang's or vLLM's "
    "dump; - for stdin";

// Of a file, or of standard input ("-"): at least one layer, all of as many experts, at least one.
// numbers [layers], where asked for: the layers', as the file counts them or from 0. Throws
// UsageError that names the file and the place.
Loads read_loads(const std::string& path, std::vector<int64_t>* numbers = nullptr);

struct LayerHistory {
  using Tokens = std::vector<std::vector<double>>;
  int64_t layer = 0;
  Tokens experts;  // [steps, experts] that chose each logical expert
  // [steps, ranks] that each expert-parallel rank computed; empty if ep is 1
  Tokens ranks;
  std::vector<int64_t> moved;  // steps after which experts moved
};
struct RunLoads {
  int64_t first_step = 1;
  int64_t steps = 0;
  std::vector<LayerHistory> layers;  // with experts
};

bool is_metrics(const std::string& text);  // of a file, by its first line
// Throws UsageError that names the file, the line and the member where it is not what duet train
// writes.
RunLoads read_metrics(const std::string& text, const std::string& path);

}  // namespace duet
