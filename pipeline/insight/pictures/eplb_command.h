// `duet eplb`: a plan for loads from a file. Without a file, a demonstration: the example of the
// published README. What the policies reach on random loads, and what becomes of plans while loads
// drift, `make study` prints.
//
// Loads are JSON, {"weight": [[tokens per expert], a list per layer]}, CSV, a layer a row, or a
// training run's metrics.jsonl, summed over its steps; the last can also be drawn, step by step
// (load_map.h). Read next: eplb.h.
#pragma once
#include <cstdint>
#include <iosfwd>
#include <string>

namespace duet {

struct EplbCommandOptions {
  std::string loads;      // file; empty: the demonstration
  int64_t replicas = 16;  // physical experts of a layer
  int64_t groups = 4;     // of experts
  int64_t nodes = 2;
  int64_t gpus = 8;                 // in all
  std::string policy = "deepseek";  // or balanced
  bool replicas_may_leave_node = false;
  // text; json: {"phy2log","log2phy","logcnt","gpu_load","balancedness"}, lists over layers; svg: a
  // run's heat map, no plan
  std::string format = "text";
};

// Throws UsageError for wrong options or a file that is not as above, before anything is written.
void eplb_command(const EplbCommandOptions& options, std::ostream& out);

}  // namespace duet
