// See same_run.h.
#include "pipeline/train/same_run.h"

#include <algorithm>
#include <filesystem>

#include "data/open_file.h"
#include "model/base/hash.h"
#include "pipeline/checkpoint/checkpoint.h"

namespace duet {

Json run_definition(const Job& job) {
  return Json::object({{"seed", int64_t(job.options.seed)},
      {"data_hash", hash_text(job.dataset.hash)}, {"seq_len", job.options.seq_len},
      {"segment_tokens", std::min(job.options.segment_tokens, job.options.seq_len)},
      {"global_sequences", job.global_sequences()}});
}

Json run_options(const Job& job) {
  const TrainOptions& o = job.options;
  return Json::object({{"--lr", o.adamw.lr}, {"--min-lr", o.min_lr},
      {"--lr-schedule", o.lr_schedule == LrSchedule::wsd ? "wsd" : "cosine"},
      {"--warmup-steps", o.warmup_steps}, {"--decay-steps", o.decay_steps},
      {"--beta1", o.adamw.beta1}, {"--beta2", o.adamw.beta2},
      {"--weight-decay", o.adamw.weight_decay}, {"--clip", o.clip},
      {"--balance-loss", o.balance_loss}, {"--bias-update-speed", o.bias_update_speed},
      {"--replica-split", split_name(o.replica_split)}, {"--dtype", dtype_name(*o.dtype)},
      {"--force-balanced-routing", o.force_balanced_routing}});
}

std::vector<std::string> check_same_run(
    const Job& job, const Json& trainer, const std::string& dir) {
  constexpr const char* kOptions[][2] = {{"seed", "--seed"}, {"data_hash", "--data"},
      {"seq_len", "--seq-len"}, {"segment_tokens", "--segment-tokens"},
      {"global_sequences", "--dp x --microbatches x --micro-batch-size"}};
  const Json mine = run_definition(job);
  for (const auto& [key, option] : kOptions) {
    const auto was = trainer.find(key);
    const std::string hash = std::string(key) == "data_hash" ? "tokens of hash " : "";
    require(!was || was->dump() == mine.at(key).dump(), option, ": found ", hash,
        mine.at(key).dump(), ", but the run of ", dir, " has ", hash, was ? was->dump() : "",
        ", allowed with --resume: the same; or start anew with another --out and --init ", dir);
  }
  std::vector<std::string> changed;
  if (const auto before = trainer.find("options"))
    for (const auto& [name, value] : run_options(job).members())
      if (const auto was = before->find(name); was && was->dump() != value.dump())
        changed.push_back(cat("changed ", name, " ", value.dump(), ", so far ", was->dump()));
  return changed;
}

void require_same_job(Comm& world, const Job& job) {
  const TrainOptions& o = job.options;
  std::string schedule;  // of a file, what is in it
  for (const auto& list : job.compute.ranks)
    for (const Action& a : list) schedule += to_string(a) + ",";
  const std::string model = o.init.empty() ? o.preset + " " + o.model.text : "of --init";
  const EplbShape& shape = o.balancer.shape;
  const auto [first, last] = o.trace_steps.value_or(std::pair<int64_t, int64_t>());
  Json told = Json::object(
      {{"--data", cat(job.dataset.tokens(), " tokens of hash ", hash_text(job.dataset.hash))},
          {"--preset, --model",
              cat(model, " of hash ", hash_text(checksum(job.config.to_json(1, "").dump())))},
          {"--seed", int64_t(o.seed)}, {"--seq-len", o.seq_len},
          {"--segment-tokens", std::min(o.segment_tokens, o.seq_len)},
          {"--micro-batch-size", o.micro_batch_size}, {"--microbatches", o.microbatches},
          {"--steps", o.steps}, {"--pp", o.pp}, {"--dp", job.layout.dp}, {"--ep", o.ep},
          {"--redundant-experts", shape.replicas - shape.experts},
          {"--eplb-interval", o.balancer.interval},
          {"--eplb-policy", policy_name(o.balancer.plan.policy)},
          {"--eplb-threshold", o.balancer.threshold},
          {"--replicas-may-leave-node", o.balancer.plan.replicas_may_leave_node},
          {"--ranks-per-node", o.ranks_per_node}, {"--overlap", o.overlap},
          {"--schedule", cat(job.compute.name, " of hash ", hash_text(checksum(schedule)))},
          {"--split", Json(job.layer_bounds)}, {"--resume", o.resume}, {"--from-step", o.from_step},
          {"--overwrite", o.overwrite}, {"--out", o.out.empty() ? "none" : "a folder"},
          {"--init", o.init.empty() ? "none" : "a folder"},
          {"--checkpoint-every", o.checkpoint_every}, {"--keep-last", o.keep_last},
          {"--val-every", o.val_every}, {"--val-sequences", o.val_sequences},
          {"--sample", o.sample}, {"--format", format_name(o.format)},
          {"--trace", o.trace.empty() ? "none" : "a file"},
          {"--trace-steps", cat(first, "-", last)}, {"--dump-step", o.dump_step}});
  for (const auto& [name, value] : run_options(job).members()) told.set(name, value);
  for (const auto& [name, value] : told.members()) world.require_same(name, value.dump());
}

void require_same_checkpoint(Comm& world, const std::string& option, const std::string& dir) {
  namespace fs = std::filesystem;
  const bool ours = fs::exists(dir + "/DONE");  // which has the others' checksums
  std::map<std::string, std::string> hashes;
  for (const auto& entry : fs::directory_iterator(dir)) {
    const std::string name = entry.path().filename().string();
    if (ours ? name == "DONE" : name == "config.json" || name.ends_with(".safetensors"))
      hashes[name] = hash_text(OpenFile(entry.path().string()).checksum());
  }
  std::string label;
  for (const auto& [name, hash] : hashes)
    label += cat(label.empty() ? "" : ", ", name, " of hash ", hash);
  world.require_same(option, label);
}

}  // namespace duet
