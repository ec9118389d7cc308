// RunLog: what a run says while it trains. Log lines in the manner of llm.c, a progress line on a
// terminal, and metrics.jsonl.
//
//   step   42/200 | loss 2.431873 | norm 0.8312 | lr 3.00e-04 | 412.31 ms | 9934 tok/s | idle 12.1%
//          | balance 0.97
//
// idle (of several ranks, each with cores or a GPU of its own) is the part of the schedule's time
// that compute streams waited for pipeline messages; all-to-alls are not in it. mfu, on GPUs of
// known peak: see below. balance, with --ep, is the layers' balancedness (trainer.h). In a traced
// step there is also overlap, the part of communication that computation covered
// (insight/trace/intervals.h).
//
// metrics.jsonl has one object a step: step, loss, loss_hex (C's %a, every bit), grad_norm,
// grad_norm_hex, largest_gradient_sum (before and after reduction: model/machine/grid.h), lr,
// step_ms, tokens_per_s, balance_loss, bytes_intra and bytes_inter (what all ranks sent within
// nodes and between them, up to the exchange of these very numbers), val_loss and overlap where
// measured, and per mixture-of-experts layer tokens_per_expert, tokens_per_rank with --ep, the
// balancedness that was achieved, and where a new placement was considered its "replan":
// balancedness before and predicted over the window, moves and bytes_moved of an expert-parallel
// group, and whether it was skipped.
// Read next: same_run.h.
#pragma once
#include <fstream>
#include <iosfwd>
#include <optional>
#include <string>

#include "pipeline/train/trainer.h"

namespace duet {

// The part of the devices' peak that a step made use of, by the model's own count of FLOPs: what is
// computed again does not count. 0 where the peak is not known.
double mfu(const Job& job, const StepResult& step, const Device& device);

class RunLog {
 public:
  // Of rank 0. out: where lines go. On resume after `first_step - 1` steps, metrics.jsonl loses
  // what an interrupted run wrote beyond them, and lines that are none; what is missing is said.
  RunLog(const Job& job, Device& device, std::ostream& out, int64_t first_step);
  ~RunLog();

  void step(const StepResult& result, std::optional<double> val_loss);
  void memory_table();
  void traffic_line();  // of the steps so far; nothing where one rank trains
  // With --format json nothing is said but this, at the end: the last step's metrics, the step that
  // the run is at, its checkpoint if it has one, and the signal that stopped it or 0.
  void json_document(int64_t step, const std::string& checkpoint, int signal);
  void sync_metrics() const;  // to the disk, before a checkpoint that counts on it
  // A line of its own, clear of the progress line.
  void say(const std::string& line);
  void warn(const std::string& line);  // on stderr with --format json

 private:
  void progress(const StepResult& result);
  void keep_metrics(int64_t first_step);
  void clear_progress();
  const Job& job_;
  const TrainOptions& options_;
  Device& device_;
  std::ostream& out_;
  std::string metrics_path_;
  std::ofstream metrics_;
  bool terminal_, progress_shown_ = false;
  int64_t first_step_;
  double seconds_ = 0;  // of all steps so far
  Traffic traffic_;     // likewise
  int64_t steps_ = 0;
  Json last_ = Json::object();  // metrics of the last step
};

}  // namespace duet
