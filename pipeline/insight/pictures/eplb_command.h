// `duet eplb`: a plan for loads from a file. Without a file, a demonstration: the example of the
// published README. What the policies reach on random loads, and what becomes of plans while loads
// drift, `make study` prints.
//
// Loads are JSON, {"weight": [[tokens per expert], a list per layer]}, CSV, a layer a row, or a
// training run's metrics.jsonl, summed over its steps; the last can also be drawn, step by step
// (load_map.h).
// Read next: train/options.h.
#pragma once
#include <iosfwd>
#include <string>

#include "model/base/text.h"
#include "moe/eplb.h"

namespace CLI {
class App;
}

namespace duet {

void add_eplb_command(CLI::App& duet, int& exit_status);

struct EplbCommandOptions {
  std::string loads;  // file; empty: the demonstration
  int replicas = 16;  // physical experts of a layer
  int groups = 4;     // of experts
  int nodes = 2;
  int gpus = 8;  // in all
  EplbPolicy policy = EplbPolicy::deepseek;
  bool replicas_may_leave_node = false;
  // text; json: {"phy2log","log2phy","logcnt","gpu_load","balancedness"}, lists over layers; svg: a
  // run's heat map, no plan
  Format format = Format::text;
};

// Throws UsageError for wrong options or a file that is not as above, before anything is written.
void eplb_command(const EplbCommandOptions& options, std::ostream& out);

}  // namespace duet
