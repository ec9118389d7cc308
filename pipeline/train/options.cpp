// See options.h.
#include "pipeline/train/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>

#include "model/machine/device.h"

namespace duet {

ModelConfig TrainOptions::resolve() {
  const Preset& p = find_preset(preset);
  ModelConfig config = p.model;
  if (!model.empty()) config.override_sizes(model);
  if (seq_len == 0) seq_len = p.seq_len;
  if (micro_batch_size == 0) micro_batch_size = p.micro_batch_size;
  if (decay_steps == 0) decay_steps = steps;
  if (device.empty()) device = cuda_device_count() > 0 ? "cuda" : "cpu";

  const struct {
    const char* option;
    int64_t value, least;
  } integers[] = {{"--seq-len", seq_len, 1}, {"--micro-batch-size", micro_batch_size, 1},
      {"--microbatches", microbatches, 1}, {"--steps", steps, 0}, {"--decay-steps", decay_steps, 0},
      {"--warmup-steps", warmup_steps, 0}, {"--threads", threads, 0},
      {"--checkpoint-every", checkpoint_every, 0}, {"--val-every", val_every, 0},
      {"--val-sequences", val_sequences, 1}, {"--log-every", log_every, 1}, {"--sample", sample, 0},
      {"--dump-step", dump_step, 0}, {"--dp", dp, 0}, {"--pp", pp, 1}, {"--ep", ep, 1},
      {"--redundant-experts", redundant_experts, 0}, {"--eplb-interval", eplb_interval, 0},
      {"--virtual-stages", virtual_stages, 1}, {"--ranks-per-node", ranks_per_node, 0}};
  for (const auto& i : integers)
    require(i.value >= i.least, i.option, ": found ", i.value, ", allowed: at least ", i.least);
  const struct {
    const char* option;
    double value, least, most;
  } numbers[] = {{"--lr", adamw.lr, 0, 1e3}, {"--min-lr", min_lr, 0, 1},
      {"--beta1", adamw.beta1, 0, 0.9999999}, {"--beta2", adamw.beta2, 0, 0.9999999},
      {"--weight-decay", adamw.weight_decay, 0, 1e3}, {"--clip", clip, 0, 1e30},
      {"--balance-loss", balance_loss, 0, 1e3}, {"--comm-timeout", comm_timeout, 0.001, 1e6},
      {"--eplb-threshold", eplb_threshold, 0, 1},
      {"--bias-update-speed", bias_update_speed, 0, 1e3}};
  for (const auto& n : numbers)
    require(n.value >= n.least && n.value <= n.most, n.option, ": found ", n.value,
        ", allowed: ", n.least, " to ", n.most);
  const auto one_of = [](const char* option, const std::string& value, const char* a,
                          const char* b) {
    require(value == a || value == b, option, ": found '", value, "', allowed: ", a, ", ", b);
  };
  one_of("--lr-schedule", lr_schedule, "cosine", "wsd");
  one_of("--overlap", overlap, "on", "off");
  one_of("--format", format, "text", "json");
  one_of("--eplb-policy", eplb_policy, "deepseek", "balanced");
  one_of("--device", device, "cpu", "cuda");
  one_of("--dtype", dtype, "fp32", "bf16");
  require(transport.empty() || transport == "local" || transport == "mpi" || transport == "nccl",
      "--transport: found '", transport, "', allowed: local, mpi, nccl");
  require(dtype == "fp32" || device == "cuda",
      "--dtype: found bf16 with --device cpu, allowed: fp32 (the CPU's GEMM has no bf16: it would "
      "be slower than fp32)");
  require(!(resume && out.empty()),
      "--resume: found no --out, allowed: with the --out of the run to go on with");
  require(!(dump_step && out.empty()),
      "--dump-step: found no --out, allowed: with an --out to write into");
  require(
      dump_step <= steps, "--dump-step: found ", dump_step, ", allowed: at most --steps ", steps);
  require(trace_steps.empty() || !trace.empty(),
      "--trace-steps: found no --trace, allowed: with a --trace to write into");
  traced_steps(0);
  require(preset != "deepseek-v3" || !model.empty(),
      "--preset: found 'deepseek-v3', allowed: the others; its 671B parameters are for planning "
      "only");
  require(device == "cpu" || cuda_device_count() > 0,
      "--device: found cuda, allowed: cpu (no GPU that this binary can use)");
  require(link.empty() || device == "cpu" || cuda_device_count() == 1,
      "--link: found --device cuda with ", cuda_device_count(),
      " GPUs, allowed: one, whose clock all ranks read (CUDA_VISIBLE_DEVICES=0); or --device cpu");
  return config;
}

std::pair<int64_t, int64_t> TrainOptions::traced_steps(int64_t done) const {
  if (trace_steps.empty()) return {std::min(done + 2, steps), std::min(done + 3, steps)};
  int64_t first = 0, last = 0;
  const char* end = trace_steps.data() + trace_steps.size();
  auto read = std::from_chars(trace_steps.data(), end, first);
  last = first;
  if (read.ec == std::errc() && read.ptr != end && *read.ptr == '-')
    read = std::from_chars(read.ptr + 1, end, last);
  require(
      read.ec == std::errc() && read.ptr == end && done < first && first <= last && last <= steps,
      "--trace-steps: found '", trace_steps, "', allowed: a step or a range like ", done + 1, "-",
      done + 2, ", within ", done + 1, " to ", steps);
  return {first, last};
}

double TrainOptions::lr_at(int64_t step) const {
  if (step <= warmup_steps) return adamw.lr * double(step) / double(warmup_steps);
  const double done = std::min(
      1.0, double(step - warmup_steps) / double(std::max<int64_t>(1, decay_steps - warmup_steps)));
  const double cosine = 0.5 * (1 + std::cos(std::numbers::pi * done)),
               wsd = std::min(1.0, (1 - done) / 0.2);
  return adamw.lr * (min_lr + (1 - min_lr) * (lr_schedule == "cosine" ? cosine : wsd));
}

}  // namespace duet
