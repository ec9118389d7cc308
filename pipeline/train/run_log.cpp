// See run_log.h.
#include "pipeline/train/run_log.h"

#include <unistd.h>

#include <filesystem>
#include <iostream>

#include "moe/migration.h"
#include "pipeline/checkpoint/durable.h"

namespace duet {

double mfu(const Job& job, const StepResult& r, const Device& device) {
  const double peak = device.peak_flops(*job.options.dtype) * job.layout.world();
  const double flops = job.config.train_flops_per_token(job.options.seq_len) * double(r.tokens);
  return peak > 0 ? flops / r.seconds / peak : 0;
}

RunLog::RunLog(const Job& job, Device& device, std::ostream& out, int64_t first_step)
    : job_(job), options_(job.options), device_(device), out_(out),
      // mpirun gives rank 0 a terminal of its own, whatever its output goes to
      terminal_(&out == &std::cout && isatty(STDOUT_FILENO) && find_launcher().name.empty()),
      first_step_(first_step) {
  if (options_.out.empty()) return;
  metrics_path_ = options_.out + "/metrics.jsonl";
  keep_metrics(first_step);
  metrics_.open(metrics_path_, std::ios::app);
  require(metrics_.good(), "--out: cannot write ", metrics_path_);
}

// Notes the steps between two that follow one another in the file.
static void find_gap(int64_t after, int64_t next, std::vector<std::string>& gaps) {
  if (next == after + 2) gaps.push_back(cat("step ", after + 1));
  if (next > after + 2) gaps.push_back(cat("steps ", after + 1, " to ", next - 1));
}

void RunLog::keep_metrics(int64_t first_step) {
  std::ifstream in(metrics_path_, std::ios::binary);
  std::string kept;
  std::vector<std::string> gaps;
  int64_t number = 0, last = 0;
  for (std::string line; std::getline(in, line) && !in.eof();) {
    ++number;
    try {
      const int64_t step = Json::parse(line, metrics_path_).at("step").integer(1, kMostSteps);
      if (step >= first_step) continue;
      find_gap(last, step, gaps);
      last = std::max(last, step);
      kept += line + "\n";
    } catch (const UsageError&) {
      warn(cat("metrics.jsonl: line ", number, " is not a step's: '", shortened(line, 40),
          "'; it is left out"));
    }
  }
  find_gap(last, first_step, gaps);
  for (const std::string& gap : gaps) warn("metrics.jsonl: lacks " + gap);
  std::error_code missing;
  if (kept.size() != std::filesystem::file_size(metrics_path_, missing) && !missing)
    replace_file(metrics_path_, kept);
}

void RunLog::sync_metrics() const {
  if (!metrics_path_.empty()) sync(metrics_path_);
}

RunLog::~RunLog() { clear_progress(); }

static Json metrics_of(
    const ModelConfig& config, const StepResult& r, std::optional<double> val_loss) {
  Json j = Json::object({{"step", r.step}, {"loss", r.loss}, {"loss_hex", format("%a", r.loss)},
      {"grad_norm", r.grad_norm}, {"grad_norm_hex", format("%a", r.grad_norm)},
      {"largest_gradient_sum", r.largest_gradient}, {"lr", r.lr}, {"step_ms", r.seconds * 1e3},
      {"tokens_per_s", double(r.tokens) / r.seconds}, {"balance_loss", r.balance_loss},
      {"bytes_intra", r.traffic.intra}, {"bytes_inter", r.traffic.inter}});
  if (val_loss) j.set("val_loss", *val_loss);
  if (r.overlap) j.set("overlap", *r.overlap);
  Json layers = Json::array();
  for (const LayerLoad& l : r.loads) {
    Json layer =
        Json::object({{"layer", l.layer}, {"tokens_per_expert", Json(l.tokens_per_expert)}});
    if (!l.tokens_per_rank.empty()) layer.set("tokens_per_rank", Json(l.tokens_per_rank));
    layer.set("balancedness", l.balancedness);
    if (const std::optional<Replan>& p = l.replan)
      layer.set("replan",
          Json::object({{"before", p->before}, {"predicted", p->predicted}, {"moves", p->moves},
              {"bytes_moved", p->moves * expert_bytes(config)}, {"skipped", p->skipped}}));
    layers.push(std::move(layer));
  }
  return j.set("moe", layers);
}

void RunLog::step(const StepResult& r, std::optional<double> val_loss) {
  seconds_ += r.seconds;
  traffic_.intra += r.traffic.intra;
  traffic_.inter += r.traffic.inter;
  steps_++;
  const double rate = double(r.tokens) / r.seconds;
  last_ = metrics_of(job_.config, r, val_loss);
  if (metrics_.is_open()) {
    metrics_ << last_.dump() << std::endl;
    if (!metrics_) throw Error(cat(options_.out, "/metrics.jsonl", cannot_be("written")));
  }
  if (const std::string near = near_the_limit(r.step, r.largest_gradient); !near.empty())
    warn(near);
  if (r.step % options_.log_every == 0 || r.step == first_step_ || r.step == options_.steps ||
      val_loss) {
    const int width = int(std::to_string(options_.steps).size()) + 1;
    std::string line =
        format("step %*lld/%lld | loss %.6f | norm %.4f | lr %.2e | %.2f ms | %.0f tok/s", width,
            (long long)r.step, (long long)options_.steps, r.loss, r.grad_norm, r.lr,
            r.seconds * 1e3, rate);
    if (const double part = mfu(job_, r, device_); part > 0)
      line += format(" | mfu %.1f%%", 100 * part);
    if (job_.layout.world() > 1 && why_not_timed(job_).empty())
      line += format(" | idle %.1f%%", 100 * r.idle);
    if (r.overlap) line += format(" | overlap %.1f%%", 100 * *r.overlap);
    if (job_.layout.ep > 1) line += format(" | balance %.2f", r.balancedness);
    if (val_loss) line += format(" | val %.6f", *val_loss);
    say(line);
  }
  progress(r);
}

void RunLog::memory_table() {
  say("memory of this rank, MiB at the peak of the first step:");
  const int rank = job_.layout.pp_rank(0);
  for (int u = 0; u < kUses; ++u) {
    const MemoryStats m = device_.memory(Use(u));
    if (m.peak == 0) continue;
    std::string line = format("  %-12s %10.1f", use_name(u), double(m.peak) / (1 << 20));
    if (Use(u) == Use::activations)
      line += cat("  of at most ", job_.usage.peak_activations[size_t(rank)],
          " microbatches in a stage, the checker says");
    say(line);
  }
  say(format(
      "  %-12s %10.1f  taken from the system", "all", double(device_.pool_bytes()) / (1 << 20)));
}

void RunLog::traffic_line() {
  if (job_.layout.world() == 1 || steps_ == 0) return;
  say(format("sent   %.3f MB a step within nodes, %.3f MB between them, all ranks together",
      1e-6 * double(traffic_.intra) / double(steps_),
      1e-6 * double(traffic_.inter) / double(steps_)));
}

void RunLog::json_document(int64_t step, const std::string& checkpoint, int signal) {
  if (options_.format != Format::json) return;
  out_ << last_.set("step", step)
              .set("checkpoint", checkpoint.empty() ? Json() : Json(checkpoint))
              .set("stopped_by_signal", signal)
              .dump(2)
       << std::endl;
}

void RunLog::say(const std::string& line) {
  if (options_.format == Format::json) return;
  clear_progress();
  out_ << line << std::endl;
}

void RunLog::warn(const std::string& line) {
  if (options_.format == Format::json)
    std::cerr << "duet: " << line << std::endl;
  else
    say(line);
}

void RunLog::progress(const StepResult& r) {
  if (!terminal_ || r.step == options_.steps || options_.format == Format::json) return;
  clear_progress();
  const double left = seconds_ / double(r.step - first_step_ + 1) * double(options_.steps - r.step);
  const int filled = int(30 * r.step / options_.steps);
  out_ << '[' << std::string(size_t(filled), '#') << std::string(size_t(30 - filled), '.')
       << format("] %lld%%, %d:%02d left", (long long)(100 * r.step / options_.steps),
              int(left) / 60, int(left) % 60)
       << std::flush;
  progress_shown_ = true;
}

void RunLog::clear_progress() {
  if (progress_shown_) out_ << "\r\033[K" << std::flush;
  progress_shown_ = false;
}

}  // namespace duet
