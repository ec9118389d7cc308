// RunFolder: the folder that --out names, in the hands of rank 0. Who may write there, what a run
// begins from, and which checkpoints stay.
//
// It is one run's at a time: OUT/.lock is locked as long as this object lives, where the file
// system has locks (some on a network have none: nothing then keeps a second run away). Of what
// lies there metrics.jsonl and the checkpoints step-NNNNNN are the run's; the rest is left alone.
// Read next: rehearse.h.
#pragma once
#include <string>
#include <vector>

#include "pipeline/train/job.h"

namespace duet {

class RunFolder {
 public:
  // Without an --out it does nothing. Throws UsageError, with nothing changed, where another run
  // has the folder, where it may not begin here, or where the checkpoint to resume from is damaged
  // or another run's.
  explicit RunFolder(const Job& job);
  RunFolder(const RunFolder&) = delete;
  ~RunFolder();

  int64_t resumes() const { return resumes_; }                      // after this step; 0: it begins
  const std::vector<std::string>& notes() const { return notes_; }  // what has changed
  void forget_old() const;  // all but the last --keep-last checkpoints

 private:
  explicit RunFolder(const TrainOptions& options) : options_(options) {}
  void lock();
  bool holds_run() const;
  void refuse_wrong_folder() const;
  void choose_checkpoint(const Job& job);
  void make_room();

  const TrainOptions& options_;
  std::vector<std::string> notes_;
  int64_t resumes_ = 0;
  int lock_ = -1;
};

// Refuses a --trace that cannot be written. Its folder may be the --out that is made later.
void check_trace(const TrainOptions& options);

}  // namespace duet
