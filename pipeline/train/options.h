// TrainOptions: everything that `duet train` can be told, with its defaults. What an option means
// is said once, in options.cpp, where --help has it from; here stand types and what empty means.
// Read next: job.h.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "comm/comm.h"
#include "model/base/text.h"
#include "model/config.h"
#include "model/param.h"
#include "moe/eplb_quota.h"
#include "moe/load_monitor.h"

namespace duet {

class Command;

enum class DeviceKind { cpu, cuda };
constexpr const char* device_kind_name(DeviceKind d) {
  return d == DeviceKind::cuda ? "cuda" : "cpu";
}
enum class LrSchedule { cosine, wsd };

struct TrainOptions {
  // Model and data
  std::string preset = "small";
  Sizes model;                   // instead of the preset's
  std::string data;              // empty: the project's own sources
  std::string init;              // empty: initial values
  int64_t seq_len = 0;           // 0: the preset's
  int64_t segment_tokens = 128;  // of a sequence, whose gradients are summed as one
  int64_t micro_batch_size = 0;  // 0: the preset's
  int64_t microbatches = 16;

  // Length and learning rate
  int64_t steps = 100;
  int64_t decay_steps = 0;  // 0: steps
  int64_t warmup_steps = 20;
  LrSchedule lr_schedule = LrSchedule::cosine;
  double min_lr = 0.1;
  AdamWOptions adamw{.lr = 2e-3};
  double clip = 1.0;  // 0: no clipping
  double balance_loss = 1e-4;
  double bias_update_speed = 1e-3;
  uint64_t seed = 0;

  // Ranks: world size = dp x pp
  int64_t dp = 0;  // 0: as many as the MPI processes make, else 1
  int64_t pp = 1;
  int64_t ep = 1;
  int64_t redundant_experts = 0;
  bool force_balanced_routing = false;
  BalancerOptions balancer;  // its shape: find_balancer's, in job.cpp
  ReplicaSplit replica_split = ReplicaSplit::segment;
  std::string schedule = "1f1b";
  int64_t virtual_stages = 2;
  bool overlap = true;
  std::vector<int64_t> split;     // layers of each stage; empty: even by cost
  std::optional<Wire> transport;  // empty: mpi under mpirun or srun, else local
  double comm_timeout = 300;
  int64_t ranks_per_node = 0;  // 0: all ranks share one node
  LinkModel link;              // its ranks_per_node is not used

  // Where it runs
  std::optional<DeviceKind> device;  // empty: cuda if there is one
  std::optional<Dtype> dtype;        // empty: bf16 on GPUs that compute in it, else fp32
  int64_t threads = 0;               // 0: the cores of the node / its ranks

  std::string rehearse;  // a cost profile instead of a model (rehearse.h); empty: none

  // What it leaves and says
  std::string out;  // empty: nothing is kept
  bool resume = false, overwrite = false;
  int64_t from_step = 0;         // 0: the newest checkpoint
  int64_t keep_last = 0;         // 0: all checkpoints stay
  int64_t checkpoint_every = 0;  // 0: only at the end
  int64_t val_every = 50;        // 0: only at the end
  int64_t val_sequences = 32;
  int64_t log_every = 10;
  int64_t sample = 200;
  std::string trace;                                       // empty: none
  std::optional<std::pair<int64_t, int64_t>> trace_steps;  // empty: see traced_steps
  int64_t dump_step = 0;                                   // 0: none
  Format format = Format::text;

  // Defaults that depend on others filled in, then what must be true of several options together
  // checked; throws UsageError that names the option.
  ModelConfig resolve();
  // The first and the last step to trace of a run that goes on after step `done`: by default its
  // second and third, or its only one.
  std::pair<int64_t, int64_t> traced_steps(int64_t done) const;
  double lr_at(int64_t step) const;  // step counts from 1
};

void add_train_options(Command& cli, TrainOptions& options);
// But for what a run leaves and says.
void add_compare_options(Command& cli, TrainOptions& options);
// Those among them that say how a step is spread over ranks and cores, and that change no bit.
void add_layout_options(Command& cli, TrainOptions& options);

}  // namespace duet
