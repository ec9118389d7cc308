// TrainOptions: everything that `duet train` can be told, with its defaults; main.cu fills it from
// the command line.
// Read next: trainer.h.
#pragma once
#include <cstdint>
#include <string>
#include <utility>

#include "model/config.h"
#include "model/param.h"

namespace duet {

struct TrainOptions {
  // Model and data
  std::string preset = "small";
  std::string model;    // overrides of the preset's sizes, "n_layers=4,d_model=256"
  std::string data;     // file or folder; empty: the project's own sources
  std::string init;     // a checkpoint, or any DeepseekV3ForCausalLM directory, to start from
  int64_t seq_len = 0;  // 0: the preset's
  int64_t micro_batch_size = 0;  // sequences; 0: the preset's
  int64_t microbatches = 16;     // per data-parallel rank and step

  // Length and learning rate
  int64_t steps = 100;      // in all
  int64_t decay_steps = 0;  // over which the learning rate decays; 0: steps
  int64_t warmup_steps = 20;
  std::string lr_schedule = "cosine";  // or wsd: constant, then linear over the last fifth
  double min_lr = 0.1;                 // of the peak, at the end of the decay
  AdamWOptions adamw{.lr = 2e-3};
  double clip = 1.0;                // largest gradient norm; 0: no clipping
  double balance_loss = 1e-4;       // alpha of the sequence-wise balance loss
  double bias_update_speed = 1e-3;  // gamma of the auxiliary-loss-free balancing
  uint64_t seed = 0;

  // Ranks: world size = dp x pp
  // data-parallel ranks; 0: as many as the MPI processes make, else 1
  int64_t dp = 0;
  int64_t pp = 1;  // pipeline ranks
  // ranks, of the data-parallel ones, over which the experts are spread; divides dp
  int64_t ep = 1;
  // physical beyond the logical ones, of a layer in all; experts + these: divisible by ep
  int64_t redundant_experts = 0;
  // experts in turn instead of the router's choice: for measuring time, not for learning
  bool force_balanced_routing = false;
  int64_t eplb_interval = 0;  // steps between new placements of the experts; 0: they stay
  std::string eplb_policy = "deepseek";  // or balanced
  double eplb_threshold = 0.99;          // no new placement while balancedness is above
  bool replicas_may_leave_node = false;  // with balanced
  std::string schedule = "1f1b";         // a name of schedule_kinds(), or a CSV file
  int64_t virtual_stages = 2;            // stages a rank holds under interleaved
  std::string overlap = "on";            // or off: pairs one after the other, all-to-alls block
  std::string split;                     // layers of each stage, "3,4,4,3"; empty: even by cost
  std::string transport;       // local, mpi, nccl; empty: mpi under mpirun or srun, else local
  double comm_timeout = 300;   // seconds a rank waits for a message
  int64_t ranks_per_node = 0;  // 0: all ranks share one node
  // an emulated interconnect, "intra=160GB/s,inter=40GB/s,latency=5us"; empty: none
  std::string link;

  // Where it runs
  std::string device;          // cpu, cuda; empty: cuda if there is one
  std::string dtype = "fp32";  // or bf16
  int64_t threads = 0;         // 0: the cores of the node / its ranks

  // What it leaves and says
  std::string out;  // the run's folder; empty: nothing is kept
  bool resume = false, overwrite = false;
  int64_t checkpoint_every = 0;  // steps; 0: only at the end
  int64_t val_every = 50;        // steps; 0: only at the end
  int64_t val_sequences = 32;
  int64_t log_every = 10;
  int64_t sample = 200;  // tokens generated at the end; 0: none
  std::string trace;     // file that takes a trace of --trace-steps; empty: none
  // "A-B" or "A"; empty: the second and third step of the run, or its only one
  std::string trace_steps;
  int64_t dump_step = 0;        // writes this step's batch, logits, loss and gradients; 0: none
  std::string format = "text";  // or json: one document at the end instead of lines

  // Defaults that depend on others filled in, then everything checked; throws UsageError that names
  // the option.
  ModelConfig resolve();
  // The first and the last step to trace of a run that goes on after step `done`.
  std::pair<int64_t, int64_t> traced_steps(int64_t done) const;
  double lr_at(int64_t step) const;  // step counts from 1
};

}  // namespace duet
