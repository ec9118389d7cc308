// The command `duet plan`: will it fit, how long is a step, where does the time go, which layout is
// best, and what would DualPipe, EPLB or overlap change.
//
// Without options it explains DeepSeek-V3's published run. What is not given of a layout is
// searched for. Besides: --layouts "a; b" sets layouts side by side, --validate FILE predicts
// published runs, --measure FILE writes a cluster file of this machine, --write-profile FILE the
// costs of the layout's stages, which the simulator reads.
// Read next: pictures/svg.h.
#pragma once
#include <cstdint>
#include <iosfwd>
#include <map>
#include <string>

#include "model/base/text.h"

namespace duet {

struct PlanOptions {
  std::string model = "deepseek-v3", cluster = "h800";
  int64_t gpus = 2048, batch = 15360, seq_len = 4096;
  std::map<std::string, std::string> layout;  // by layout_keys()
  std::string layouts;                        // "tp=8,pp=4; tp=4,pp=8"
  std::string profile, write_profile, validate, measure, loads;
  int64_t replicas = 0, top = 4;
  double usd_per_gpu_hour = 2;
  Format format = Format::text;
  // Whether the user chose the job; without any option the published layout is explained.
  bool demonstration = false;
};

// Throws UsageError in one line, with the nearest that works where there is one.
void plan_command(const PlanOptions& options, std::ostream& out);

void add_plan_command(CLI::App& duet, int& exit_status);

}  // namespace duet
