// See options.h. What --help says of each option of `duet train`, and what must be true of them
// together.
#include "pipeline/train/options.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/base/command_line.h"
#include "model/machine/device.h"
#include "pipeline/schedule/layout.h"
#include "pipeline/schedule/schedule.h"

namespace duet {

// --- the command line ----------------------------------------------------------------------------

namespace {

// Bounds that keep what is made of the numbers (ranks, tags, bytes) within its types.
constexpr int64_t kSteps = 1'000'000'000, kMany = 1 << 20, kRanks = 4096;

std::pair<int64_t, int64_t> parse_trace_steps(const std::string& text) {
  if (const auto steps = parse_range(text)) return *steps;
  throw UsageError(
      cat("--trace-steps: found '", shortened(text), "', allowed: a step or a range like 2-3"));
}

void add_model_and_rate(Command& cli, TrainOptions& o) {
  cli.text("--preset", o.preset, "sizes of the model: " + preset_names());
  cli.parsed(
      "--model", o.model, parse_sizes, "sizes instead of the preset's: n_layers=4,d_model=256");
  cli.text("--data", o.data, "text file, folder, llm.c token shards; default: duet's own sources");
  cli.text("--init", o.init, "checkpoint or DeepseekV3ForCausalLM directory to start from");
  cli.number("--seq-len", o.seq_len, 0, INT32_MAX, "tokens of a sequence; 0: the preset's");
  cli.number("--segment-tokens", o.segment_tokens, 1, INT32_MAX,
      "tokens of a sequence whose gradients are summed as one, in pieces of at most 256: part of "
      "the "
      "numerics, like the seed");
  cli.number("--steps", o.steps, 0, kSteps, "steps in all");
  cli.number(
      "--decay-steps", o.decay_steps, 0, kSteps, "steps over which the rate decays; 0: --steps");
  cli.number("--warmup-steps", o.warmup_steps, 0, kSteps, "steps over which the rate rises");
  cli.choice(
      "--lr-schedule", o.lr_schedule, {LrSchedule::cosine, LrSchedule::wsd},
      [](LrSchedule s) { return s == LrSchedule::wsd ? "wsd" : "cosine"; },
      "how it decays; wsd: constant, then linear over the last fifth");
  cli.number("--lr", o.adamw.lr, 0, 1e3, "peak learning rate");
  cli.number("--min-lr", o.min_lr, 0, 1, "learning rate at the end, as a fraction of the peak");
  cli.number("--beta1", o.adamw.beta1, 0, 0.999999, "AdamW: decay of the first moment");
  cli.number("--beta2", o.adamw.beta2, 0, 0.999999, "AdamW: decay of the second moment");
  cli.number("--weight-decay", o.adamw.weight_decay, 0, 1e3, "not on norms and embedding");
  cli.number("--clip", o.clip, 0, 1e30, "largest gradient norm; 0: no clipping");
  cli.number("--balance-loss", o.balance_loss, 0, 1e3, "alpha of the sequence-wise balance loss");
  cli.number("--bias-update-speed", o.bias_update_speed, 0, 1e3,
      "gamma: how far a router bias moves in a step");
  cli.number("--seed", o.seed, 0, INT64_MAX, "of initial values, batches and sampling");
}

void add_machine(Command& cli, TrainOptions& o) {
  cli.flag("--force-balanced-routing", o.force_balanced_routing,
      "experts in turn instead of the router's choice: for measuring time, not for learning");
  cli.flag("--replicas-may-leave-node", o.balancer.plan.replicas_may_leave_node,
      "with balanced: one replica stays on its group's node");
  cli.choice("--transport", o.transport, {Wire::local, Wire::mpi, Wire::nccl}, wire_name,
      "local: threads; nccl: GPU to GPU, one rank on each, MPI processes under mpirun or srun, "
      "else threads; default: mpi under mpirun or srun, else local");
  cli.number("--comm-timeout", o.comm_timeout, 0.001, 1e6, "seconds a rank waits for a message");
  cli.number("--ranks-per-node", o.ranks_per_node, 0, kMany,
      "ranks that share a node: bytes within and between nodes are counted apart; 0: all");
  cli.parsed("--link", o.link, parse_link,
      "emulate an interconnect (local; CPU or one GPU): intra=160GB/s,inter=40GB/s,latency=5us");
  cli.choice("--device", o.device, {DeviceKind::cpu, DeviceKind::cuda}, device_kind_name,
      "where it runs; default: cuda if there is one");
  cli.choice("--dtype", o.dtype, {Dtype::f32, Dtype::bf16}, dtype_name,
      "bf16: on cuda, with fp32 master weights and moments; default: bf16 where all GPUs have it, "
      "else fp32");
  cli.choice("--format", o.format, {Format::text, Format::json}, format_name,
      "json: one document at the end instead of lines");
}

void add_output(Command& cli, TrainOptions& o) {
  cli.text("--rehearse", o.rehearse,
      "compute nothing: actions take the times in this cost profile, which duet plan "
      "--write-profile and analyze --profile write; 3 steps unless --steps says more or less");
  cli.text("--out", o.out, "folder for checkpoints and metrics.jsonl; default: nothing is kept");
  cli.flag("--resume", o.resume, "go on from the newest checkpoint in --out, if there is one");
  cli.number("--from-step", o.from_step, 0, kSteps,
      "with --resume: from this step's checkpoint, later ones are set aside; 0: the newest");
  cli.flag("--overwrite", o.overwrite, "replace the run in --out");
  cli.number(
      "--keep-last", o.keep_last, 0, kSteps, "how many checkpoints stay, the newest; 0: all");
  cli.number("--checkpoint-every", o.checkpoint_every, 0, kSteps,
      "steps between them; 0: only at the end");
  cli.number("--val-every", o.val_every, 0, kSteps, "steps between them; 0: only at the end");
  cli.number("--val-sequences", o.val_sequences, 1, kSteps, "sequences of a validation");
  cli.number("--log-every", o.log_every, 1, kSteps, "steps between lines; metrics.jsonl has all");
  cli.number("--sample", o.sample, 0, kSteps, "tokens of text generated at the end; 0: none");
  cli.text("--trace", o.trace, "file for what ranks and streams did, JSON for ui.perfetto.dev");
  cli.parsed("--trace-steps", o.trace_steps, parse_trace_steps,
      "steps to trace, e.g. 2-3; default: the second and third, or the only one");
  cli.number("--dump-step", o.dump_step, 0, kSteps,
      "step whose batch, logits, loss, gradients OUT/dump-step-N.safetensors keeps; 0: none");
}

}  // namespace

void add_layout_options(Command& cli, TrainOptions& o) {
  cli.number("--micro-batch-size", o.micro_batch_size, 0, kMany,
      "sequences of a microbatch; 0: the preset's");
  cli.number("--microbatches", o.microbatches, 1, kMany, "per data-parallel rank and step");
  cli.number("--dp", o.dp, 0, kRanks, "data-parallel ranks; 0: the MPI processes / --pp, else 1");
  cli.number("--pp", o.pp, 1, kRanks, "pipeline ranks; the world is dp x pp");
  cli.number("--ep", o.ep, 1, kRanks, "ranks over which the experts are spread; divides dp");
  cli.number("--redundant-experts", o.redundant_experts, 0, kMaxReplicas,
      "further replicas of experts, in all, per layer; experts + these: divisible by ep");
  cli.number("--eplb-interval", o.balancer.interval, 0, kSteps,
      "steps between new placements of experts; 0: none");
  cli.choice("--replica-split", o.replica_split, {ReplicaSplit::segment, ReplicaSplit::token},
      split_name, "what goes to one replica whole; token levels better and changes bits");
  cli.choice("--eplb-policy", o.balancer.plan.policy, {EplbPolicy::deepseek, EplbPolicy::balanced},
      policy_name, "how they are placed: the published algorithm, or with few moves");
  cli.number("--eplb-threshold", o.balancer.threshold, 0, 1,
      "no new placement while balancedness, mean / max load, is above");
  cli.text("--schedule", o.schedule, cat(schedule_names(), ", or a CSV file"));
  cli.number("--virtual-stages", o.virtual_stages, 1, kRanks, "of a rank under interleaved");
  cli.choice(
      "--overlap", o.overlap, {true, false}, [](bool on) { return on ? "on" : "off"; },
      "off: pairs run one after the other and all-to-alls block");
  cli.parsed("--split", o.split, parse_split, "layers of each stage: 3,4,4,3; default: by cost");
  cli.number("--threads", o.threads, 0, kRanks, "cores a rank uses; 0: its part of the node's");
}

void add_compare_options(Command& cli, TrainOptions& o) {
  add_model_and_rate(cli, o);
  add_layout_options(cli, o);
  add_machine(cli, o);
}

void add_train_options(Command& cli, TrainOptions& o) {
  add_compare_options(cli, o);
  add_output(cli, o);
}

// --- what must be true of several together -------------------------------------------------------

ModelConfig TrainOptions::resolve() {
  const Preset& p = find_preset(preset);
  ModelConfig config = p.model;
  for (const auto& [field, size] : model.values) config.*field = size;
  config.validate();
  if (seq_len == 0) seq_len = p.seq_len;
  if (micro_batch_size == 0) micro_batch_size = p.micro_batch_size;
  if (decay_steps == 0) decay_steps = steps;
  if (!rehearse.empty()) device = DeviceKind::cpu;
  if (!device) device = cuda_device_count() > 0 ? DeviceKind::cuda : DeviceKind::cpu;
  if (!dtype) dtype = device == DeviceKind::cuda && cuda_has_bf16() ? Dtype::bf16 : Dtype::f32;

  require(dtype == Dtype::f32 || device == DeviceKind::cuda, "--dtype: found ", dtype_name(*dtype),
      " with --device cpu, allowed: fp32 (the CPU's GEMM has no bf16: it would be slower than "
      "fp32)");
  require(dtype == Dtype::f32 || cuda_device_count() == 0 || cuda_has_bf16(),
      "--dtype: found bf16 with a GPU of compute capability below 8.0, allowed: fp32");
  require(!(resume && out.empty()),
      "--resume: found no --out, allowed: with the --out of the run to go on with");
  require(!(resume && overwrite), "--overwrite: found with --resume, allowed: one of them");
  require(!from_step || resume, "--from-step: found no --resume, allowed: with it");
  require(init.empty() || model.values.empty(), "--model: found ", shortened(model.text),
      " with --init, allowed: one of them (the sizes are the checkpoint's)");
  require(!(dump_step && out.empty()),
      "--dump-step: found no --out, allowed: with an --out to write into");
  require(
      dump_step <= steps, "--dump-step: found ", dump_step, ", allowed: at most --steps ", steps);
  require(!trace_steps || !trace.empty(),
      "--trace-steps: found no --trace, allowed: with a --trace to write into");
  traced_steps(0);
  require(preset != "deepseek-v3" || !model.values.empty() || !rehearse.empty(),
      "--preset: found 'deepseek-v3', allowed: the others; its 671B parameters are for planning "
      "only");
  require(device == DeviceKind::cpu || cuda_device_count() > 0,
      "--device: found cuda, allowed: cpu (no GPU that this binary can use)");
  require(!link.emulated() || device == DeviceKind::cpu || cuda_device_count() == 1,
      "--link: found --device cuda with ", cuda_device_count(),
      " GPUs, allowed: one, whose clock all ranks read (CUDA_VISIBLE_DEVICES=0); or --device cpu");
  return config;
}

std::pair<int64_t, int64_t> TrainOptions::traced_steps(int64_t done) const {
  if (!trace_steps) return {std::min(done + 2, steps), std::min(done + 3, steps)};
  const auto [first, last] = *trace_steps;
  require(done < first && first <= last && last <= steps, "--trace-steps: found ", first, "-", last,
      ", allowed: a step or a range like ", done + 1, "-", done + 2, ", within ", done + 1, " to ",
      steps);
  return *trace_steps;
}

double TrainOptions::lr_at(int64_t step) const {
  if (step <= warmup_steps) return adamw.lr * double(step) / double(warmup_steps);
  const double done = std::min(
      1.0, double(step - warmup_steps) / double(std::max<int64_t>(1, decay_steps - warmup_steps)));
  const double cosine = 0.5 * (1 + std::cos(std::numbers::pi * done)),
               wsd = std::min(1.0, (1 - done) / 0.2);
  return adamw.lr * (min_lr + (1 - min_lr) * (lr_schedule == LrSchedule::cosine ? cosine : wsd));
}

}  // namespace duet
