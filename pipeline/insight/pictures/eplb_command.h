// `duet eplb`: a plan for loads from a file. Without a file, a demonstration: the example of the
// published README. What the policies reach on random loads, and what becomes of plans while loads
// drift, `make study` prints.
//
// Loads are read as loads.h says; a run's can also be drawn, step by step (load_map.h).
// Read next: train/options.h.
#pragma once
#include <iosfwd>
#include <string>

#include "model/base/text.h"
#include "moe/eplb.h"

namespace duet {

void add_eplb_command(CLI::App& duet, int& exit_status);

struct EplbCommandOptions {
  std::string loads;  // file; "-": standard input; empty: the demonstration
  // shape.experts is as the loads say
  EplbShape shape = {.replicas = 16, .groups = 4, .nodes = 2, .gpus = 8};
  EplbOptions planning;
  // text; json: {"phy2log","log2phy","logcnt","gpu_load","balancedness"}, lists over layers, and a
  // "remark" where nodes do not count; svg: a run's heat map, no plan
  Format format = Format::text;
};

// Throws UsageError for wrong options or a file that is not as above, before anything is written.
void eplb_command(const EplbCommandOptions& options, std::ostream& out);

}  // namespace duet
