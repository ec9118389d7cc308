// duet's command line: options in, one call per subsystem. A command's body lives with its subject.
//
//   duet train      pipeline/train/train_command.h     trains a model, leaves checkpoints and
//                   metrics
//   duet generate   pipeline/train/generate.h          text from a checkpoint
//   duet schedule   pipeline/insight/pictures/schedule_command.h  draws, checks and times a
//                   pipeline schedule
//   duet compare    pipeline/train/compare_command.h   trains under each schedule: not one bit may
//                   differ
//   duet eplb       pipeline/insight/pictures/eplb_command.h           plans where experts and
//                   their replicas go
//   duet bench      pipeline/train/bench.h             tokens/s and GFLOP/s of this machine
//
// g++ compiles this file as plain C++ (the Makefile says -x c++); it is the only one that includes
// CLI11. Exit status: 0 done, 1 failed while running, 2 wrong input. Start reading here, then
// model/README.md.
#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>

#include "pipeline/insight/pictures/eplb_command.h"
#include "pipeline/insight/pictures/schedule_command.h"
#include "pipeline/insight/plan/plan_command.h"
#include "pipeline/train/bench.h"
#include "pipeline/train/compare_command.h"
#include "pipeline/train/generate.h"
#include "pipeline/train/train_command.h"

using namespace duet;

// TOML whose options outside any [section] are the given command's.
class CommandConfig : public CLI::ConfigBase {
 public:
  explicit CommandConfig(std::string command) : command_(std::move(command)) {}
  std::vector<CLI::ConfigItem> from_config(std::istream& in) const override {
    std::vector<CLI::ConfigItem> items = CLI::ConfigBase::from_config(in);
    for (CLI::ConfigItem& item : items)
      if (item.parents.empty()) item.parents = {command_};
    return items;
  }

 private:
  std::string command_;
};

static void train_options(CLI::App& cli, TrainOptions& o) {
  cli.add_option("--preset", o.preset, "sizes of the model: tiny, small, bench, base, deepseek-v3");
  cli.add_option("--model", o.model, "sizes other than the preset's, e.g. n_layers=4,d_model=256")
      ->delimiter('\0');
  cli.add_option(
      "--data", o.data, "text file, folder, or llm.c token shards; default: duet's own sources");
  cli.add_option("--init", o.init,
      "start from the weights in this checkpoint or DeepseekV3ForCausalLM directory");
  cli.add_option("--seq-len", o.seq_len, "tokens of a sequence; default: the preset's");
  cli.add_option(
      "--micro-batch-size", o.micro_batch_size, "sequences of a microbatch; default: the preset's");
  cli.add_option("--microbatches", o.microbatches, "microbatches per data-parallel rank and step");
  cli.add_option("--steps", o.steps, "steps in all");
  cli.add_option("--decay-steps", o.decay_steps,
      "steps over which the learning rate decays; default: --steps");
  cli.add_option("--warmup-steps", o.warmup_steps, "steps over which the learning rate rises");
  cli.add_option(
      "--lr-schedule", o.lr_schedule, "cosine, or wsd (constant, then linear over the last fifth)");
  cli.add_option("--lr", o.adamw.lr, "peak learning rate");
  cli.add_option("--min-lr", o.min_lr, "learning rate at the end, as a fraction of the peak");
  cli.add_option("--beta1", o.adamw.beta1, "AdamW");
  cli.add_option("--beta2", o.adamw.beta2, "AdamW");
  cli.add_option(
      "--weight-decay", o.adamw.weight_decay, "AdamW, decoupled; not on norms and the embedding");
  cli.add_option("--clip", o.clip, "largest gradient norm; 0: no clipping");
  cli.add_option("--balance-loss", o.balance_loss, "alpha of the sequence-wise balance loss");
  cli.add_option(
      "--bias-update-speed", o.bias_update_speed, "gamma: how far a router bias moves in a step");
  cli.add_option("--seed", o.seed, "of initial values, batches and sampling");
  cli.add_option("--dp", o.dp, "data-parallel ranks; default: the MPI processes / --pp, else 1");
  cli.add_option("--pp", o.pp, "pipeline ranks; the world is dp x pp");
  cli.add_option("--ep", o.ep, "ranks over which the experts are spread; divides dp");
  cli.add_option("--redundant-experts", o.redundant_experts,
      "replicas per layer in total; experts + these: divisible by ep");
  cli.add_flag("--force-balanced-routing", o.force_balanced_routing,
      "experts in turn instead of the router's choice: for measuring time, not for learning");
  cli.add_option("--eplb-interval", o.eplb_interval,
      "steps between new placements of the experts; 0: they stay");
  cli.add_option(
      "--eplb-policy", o.eplb_policy, "deepseek (the published algorithm) or balanced (few moves)");
  cli.add_option(
      "--eplb-threshold", o.eplb_threshold, "no new placement while balancedness is above");
  cli.add_flag("--replicas-may-leave-node", o.replicas_may_leave_node,
      "with balanced: one replica stays on its group's node");
  cli.add_option("--schedule", o.schedule,
      "gpipe, 1f1b, interleaved, zb1p, zbv, dualpipe, dualpipev, or a CSV file");
  cli.add_option("--virtual-stages", o.virtual_stages, "stages a rank holds under interleaved");
  cli.add_option(
      "--overlap", o.overlap, "on, or off: pairs run one after the other and all-to-alls block");
  cli.add_option("--split", o.split, "layers of each stage, e.g. 3,4,4,3; default: even by cost");
  cli.add_option("--transport", o.transport,
      "local (threads), mpi, or nccl (GPU to GPU, one rank on each; MPI processes under mpirun or "
      "srun, else "
      "threads); default: mpi under mpirun or srun, else local");
  cli.add_option("--comm-timeout", o.comm_timeout, "seconds a rank waits for a message");
  cli.add_option("--ranks-per-node", o.ranks_per_node,
      "ranks that share a node: bytes within and between nodes are counted apart; 0: all");
  cli.add_option("--link", o.link,
         "emulate an interconnect (local transport; CPU or one GPU), e.g. "
         "intra=160GB/s,inter=40GB/s,latency=5us")
      ->delimiter('\0');
  cli.add_option("--device", o.device, "cpu or cuda; default: cuda if there is one");
  cli.add_option("--dtype", o.dtype,
      "fp32, or on cuda bf16 (master weights, gradients and moments stay fp32)");
  cli.add_option(
      "--threads", o.threads, "cores a rank uses; default: the cores of the node / its ranks");
  cli.add_option(
      "--out", o.out, "the run's folder: checkpoints and metrics.jsonl; default: nothing is kept");
  cli.add_flag(
      "--resume", o.resume, "go on from the newest checkpoint in --out; start if there is none");
  cli.add_flag("--overwrite", o.overwrite, "replace the run in --out");
  cli.add_option(
      "--checkpoint-every", o.checkpoint_every, "steps between checkpoints; 0: only at the end");
  cli.add_option("--val-every", o.val_every, "steps between validations; 0: only at the end");
  cli.add_option("--val-sequences", o.val_sequences, "sequences of a validation");
  cli.add_option("--log-every", o.log_every, "steps between log lines; metrics.jsonl has them all");
  cli.add_option("--format", o.format, "text, or json: one document with the last step's metrics");
  cli.add_option("--sample", o.sample, "tokens of text generated at the end; 0: none");
  cli.add_option("--trace", o.trace,
      "write what ranks and streams did, as JSON for ui.perfetto.dev, to this file");
  cli.add_option("--trace-steps", o.trace_steps,
      "steps to trace, e.g. 2-3; default: the second and third, or the only one");
  cli.add_option("--dump-step", o.dump_step,
      "write this step's batch, logits, loss and gradients to OUT/dump-step-N.safetensors");
}

static void generate_options(CLI::App& cli, GenerateOptions& o) {
  cli.add_option("--from", o.from,
      "a run's folder or a checkpoint; default: a small model is trained on the spot");
  cli.add_option("--prompt", o.sample.prompt, "text to continue");
  cli.add_option("--tokens", o.sample.tokens, "how many tokens to add");
  cli.add_option("--temperature", o.sample.temperature, "0: always the most likely token");
  cli.add_option("--top-k", o.sample.top_k, "sample from the k most likely tokens; 0: from all");
  cli.add_option("--seed", o.sample.seed, "of the sampling");
  cli.add_option("--tokenizer", o.tokenizer, "llm.c's tokenizer .bin; default: bytes");
  cli.add_option("--device", o.device, "cpu or cuda; default: cuda if there is one");
  cli.add_option("--threads", o.threads, "cores used; default: all");
}

static void schedule_options(CLI::App& cli, ScheduleOptions& o) {
  cli.add_option("--schedule", o.schedule,
      "gpipe, 1f1b, interleaved, zb1p, zbv, dualpipe, dualpipev, or a CSV file; default: dualpipe");
  cli.add_option("--pp", o.pp, "pipeline ranks; default: 8, or the file's");
  cli.add_option("--microbatches", o.microbatches, "per step; default: 20, or the file's");
  cli.add_option("--virtual-stages", o.virtual_stages, "stages a rank holds under interleaved");
  cli.add_option(
      "--cost", o.cost, "what actions take, e.g. F=1,I=1,W=1,FB=2.4; FB is an overlapped pair");
  cli.add_option("--format", o.format, "text, csv, json or svg");
  cli.add_flag("--compare", o.compare,
      "all schedules (or those of --schedule a,b) at equal devices and model");
}

static void eplb_options(CLI::App& cli, EplbCommandOptions& o) {
  cli.add_option("--loads", o.loads,
      "JSON {\"weight\": [[...]]}, CSV, a layer a row, or a run's metrics.jsonl, summed; default: "
      "loads made up");
  cli.add_option("--replicas", o.replicas, "physical experts of a layer, in all");
  cli.add_option("--groups", o.groups, "groups of experts");
  cli.add_option("--nodes", o.nodes, "nodes");
  cli.add_option("--gpus", o.gpus, "GPUs, in all");
  cli.add_option("--policy", o.policy, "deepseek (as published) or balanced");
  cli.add_flag("--replicas-may-leave-node", o.replicas_may_leave_node,
      "balanced: redundant replicas may live on another node");
  cli.add_option("--format", o.format,
      "text, json, or svg: a run's metrics.jsonl as a heat map of loads over steps");
}

static int run(int argc, char** argv) {
  CLI::App cli(
      "duet trains small DeepSeek-V3-style mixture-of-experts models, on a laptop or on GPUs.\n"
      "Change the schedule: not one bit of the loss changes.");
  cli.option_defaults()->always_capture_default();
  cli.require_subcommand(1);
  cli.set_config("--config", "", "a TOML file with the same options, e.g. steps=300");
  cli.allow_config_extras(CLI::config_extras_mode::error);
  if (argc > 1) cli.config_formatter(std::make_shared<CommandConfig>(argv[1]));
  const auto command = [&](const char* name, const char* purpose) {
    CLI::App* sub = cli.add_subcommand(name, purpose);
    sub->fallthrough();
    sub->option_defaults()->always_capture_default();
    return sub;
  };

  TrainOptions train;
  CLI::App* train_cli =
      command("train", "train a model; without options a demonstration of under a minute");
  train_options(*train_cli, train);
  GenerateOptions generate;
  CLI::App* generate_cli =
      command("generate", "continue a prompt; without options with a model trained on the spot");
  generate_options(*generate_cli, generate);
  ScheduleOptions schedule;
  CLI::App* schedule_cli = command("schedule",
      "draw, check and time a schedule; without options DualPipe, 8 ranks, 20 microbatches");
  schedule_options(*schedule_cli, schedule);
  CompareOptions compare;
  CLI::App* compare_cli = command(
      "compare", "train under each schedule and compare every bit; exit status 1 if one differs");
  train_options(*compare_cli, compare.train);
  compare_cli->add_option(
      "--schedules", compare.schedules, "names or CSV files, with commas between");
  compare_cli->get_option("--format")->description("text or json");
  EplbCommandOptions eplb;
  eplb_options(
      *command("eplb", "plan where experts and their replicas go; without options a demonstration"),
      eplb);
  BenchOptions bench;
  CLI::App* bench_cli =
      command("bench", "tokens/s and GFLOP/s of training steps and of GEMM on this machine");
  bench_cli->add_option("--preset", bench.preset, "model to time");
  bench_cli->add_option("--threads", bench.threads, "cores used");
  bench_cli->add_option("--steps", bench.steps, "timed steps; the median counts");
  bench_cli->add_option("--microbatches", bench.microbatches, "per step");
  bench_cli->add_flag("--gemm", bench.gemm, "time GEMM on the shapes of the bench preset instead");

  int exit_status = 0;
  add_plan_command(cli, exit_status);
  try {
    cli.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return cli.exit(error);  // --help
    std::cerr << "duet: " << error.what() << " (duet --help lists what is allowed)\n";
    return 2;
  }
  if (*train_cli) train_command(train, std::cout);
  if (*generate_cli) generate_command(generate, std::cout);
  if (*schedule_cli) schedule_command(schedule, std::cout, terminal_of_stdout());
  if (*compare_cli) return compare_command(compare, std::cout) ? 0 : 1;
  if (cli.got_subcommand("eplb")) eplb_command(eplb, std::cout);
  if (*bench_cli) bench_command(bench, std::cout);
  return exit_status;
}

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const UsageError& error) {
    std::cerr << "duet: " << error.what() << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "duet: " << error.what() << "\n";
    return 1;
  }
}
