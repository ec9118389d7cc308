// Rehearsal: a run in which no stage computes. `duet train --rehearse PROFILE.json` has the ranks
// of a job do what they always do (lists, executor, messages, trace), but an action only takes the
// time that a cost profile says (schedule/profile.h). So sixteen ranks of a cluster's DualPipe run
// on a laptop, in real time, and what the simulator says of a schedule can be held to something
// that waits for real messages.
//
// THE CLOCK. A sleeping thread wakes late, and lateness would add up from action to action. So each
// rank keeps a logical time: an action begins at the later of the rank's own and those of what it
// needs, and ends its cost later; the rank sleeps until the real clock is there. Each message
// carries its sender's logical time. Late is then only what is late at the end.
//
// Messages are of the size that the options say. They are there at once, and count as there when
// the profile's time for a message has passed. Data-parallel ranks rehearse side by side: what they
// exchange is in no profile. Weights, data and whatever follows the schedule's list are not there.
// Read next: train_command.h.
#pragma once
#include <iosfwd>
#include <vector>

#include "pipeline/schedule/simulator.h"
#include "pipeline/train/executor.h"
#include "pipeline/train/job.h"

namespace duet {

struct RehearsedStep {
  double seconds = 0;       // by the clock, from a common begin to the last rank's end
  double bubble = 0;        // the part of them in which a rank had nothing to do, mean over ranks
  std::vector<Span> spans;  // of this rank's actions, logical
};

// A rank's part of a job's rehearsal: its stages, which wait.
class Rehearsal {
 public:
  // Collective. The references outlive it; the profile fits the job's schedule.
  Rehearsal(const Job& job, const CostProfile& profile, Comm& world, Device& device);
  RehearsedStep step(Recorder* recorder = nullptr);  // collective

 private:
  Executor::Made run(const Action& compute, const Executor::Given& given);
  double arrival(Tag::Kind kind, const Buf& what, int stage) const;
  const Job& job_;
  const CostProfile& profile_;
  Comm& world_;
  Channels channels_;
  Comm pipeline_;
  Context context_;
  const double clock_ahead_;  // of rank 0's, seconds; threads share one clock
  double begin_ = 0;          // of the step, by this rank's clock
  std::vector<Span> spans_;   // of its actions so far, logical: seconds after begin_
};

// What the simulator is given: the job's list as the executor runs it, with --overlap off each pair
// as its F and its B.
Schedule rehearsed_schedule(const Job& job);

// All of `duet train --rehearse`. Throws UsageError.
void rehearse_command(const TrainOptions& options, std::ostream& out);

}  // namespace duet
