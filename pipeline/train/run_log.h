// RunLog: what a run says while it trains. Log lines in the manner of llm.c, a progress line on a
// terminal, and metrics.jsonl.
//
//   step   42/200 | loss 2.431873 | norm 0.8312 | lr 3.00e-04 | 412.31 ms | 9934 tok/s | idle 12.1%
//          | balance 0.97
//
// idle is the part of the schedule's time that ranks stood still for messages, with more than one
// rank each on cores of its own; balance, with --ep, is the layers' balancedness (trainer.h). In a
// traced step there is also overlap, the part of communication that computation covered
// (insight/trace/intervals.h).
// metrics.jsonl has one object a step: step, loss, loss_hex (C's %a, every bit), grad_norm,
// grad_norm_hex, lr, step_ms, tokens_per_s, balance_loss, bytes_intra and bytes_inter (what all
// ranks sent within nodes and between them, up to the exchange of these very numbers), val_loss and
// overlap where measured, and per mixture-of-experts layer tokens_per_expert, tokens_per_rank with
// --ep, the balancedness that was achieved, and where a new placement was considered its "replan":
// balancedness before and predicted over the window, moves and bytes_moved of an expert-parallel
// group, and whether it was skipped.
// Read next: train_command.h.
#pragma once
#include <fstream>
#include <iosfwd>
#include <optional>
#include <string>

#include "pipeline/train/trainer.h"

namespace duet {

class RunLog {
 public:
  // Of rank 0. out: where lines go. On resume after `first_step - 1` steps, metrics.jsonl loses
  // what an interrupted run wrote beyond them.
  RunLog(const Job& job, Device& device, std::ostream& out, int64_t first_step);
  ~RunLog();

  void step(const StepResult& result, std::optional<double> val_loss);
  void memory_table();
  void traffic_line();  // of the steps so far; nothing where one rank trains
  // With --format json nothing is said but this, at the end.
  void json_document(const std::string& checkpoint);
  // A line of its own, clear of the progress line.
  void say(const std::string& line);

 private:
  void progress(const StepResult& result);
  void clear_progress();
  const Job& job_;
  const TrainOptions& options_;
  Device& device_;
  std::ostream& out_;
  std::ofstream metrics_;
  bool terminal_, progress_shown_ = false;
  int64_t first_step_;
  double seconds_ = 0;  // of all steps so far
  Traffic traffic_;     // likewise
  int64_t steps_ = 0;
  Json last_;  // metrics of the last step
};

}  // namespace duet
