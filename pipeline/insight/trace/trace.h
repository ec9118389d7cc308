// Trace: what every rank did in a few steps, as a file that https://ui.perfetto.dev and
// chrome://tracing open.
//
// Ranks are processes; the tracks of a rank are its threads:
//   step      the step, from its first to its last work
//   actions   what the schedule's list says: F, I, W, B, pair, SEND_F, RECV_F, SEND_B, RECV_B
//   compute   phases on the compute stream: "attention F", "experts W", "AdamW", ...
//   comm      what the rank sends and receives beside them: all-to-alls under their phase's name,
//             reductions of gradients
//   wait      where the compute stream stands still; for a pipeline message under the name of its
//             RECV
// A message on the compute stream itself (--overlap off) is marked "blocks": it counts as a wait,
// whatever phase it is in. Stage, microbatch, layer and bytes are arguments. An arrow joins each
// SEND to the wait for its message (or to its RECV where nobody waited). What is recorded is said
// in model/machine/recorder.h; one Recorder a step.
// Read next: intervals.h.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "comm/comm.h"
#include "model/base/json.h"
#include "model/machine/recorder.h"
#include "pipeline/insight/trace/intervals.h"
#include "pipeline/schedule/layout.h"

namespace duet {

// How far this rank's clock is ahead of rank 0's, in nanoseconds, and by how much that may be
// wrong.
struct ClockOffset {
  int64_t ahead = 0, error = 0;
};
// Collective. Stamps go round, and no message arrives before it was sent: that bounds the offset
// from both sides. Where the bounds allow 0, it is 0: processes of one node share a clock.
ClockOffset clock_offset(Comm& world, const std::function<int64_t()>& now);

// Of the communication in the recorded steps, and in the overlapped pairs in them.
struct MeasuredOverlap {
  Overlap steps, pairs;
  MeasuredOverlap& operator+=(const MeasuredOverlap& other) {
    steps += other.steps, pairs += other.pairs;
    return *this;
  }
};

// All methods but records() are collective.
class Trace {
 public:
  struct Options {
    std::string file;  // empty: nothing is recorded
    int64_t first_step = 0, last_step = 0;
    bool one_clock = true;  // ranks are threads of one process
  };
  // world and layout outlive the trace.
  Trace(Comm& world, const Layout& layout, const Options& options);

  bool records(int64_t step) const;
  // Takes over what was recorded in a step; waits until all of it has happened. After the last one,
  // the file is written. Returns the step's times, all ranks' added up.
  MeasuredOverlap add(int64_t step, const Recorder& recorder);
  // At the end of the run: writes the file of a run that ended early, and returns the lines to say.
  std::vector<std::string> finish();

 private:
  struct Entry {
    Activity activity;
    int64_t step;
    bool blocks;    // a message on the compute stream
    Interval time;  // this rank's clock
  };
  struct Head {  // what all ranks know of one another before the file is written
    int64_t begin, events;
    ClockOffset clock;
    MeasuredOverlap measured;
  };
  void write();
  std::string events(int64_t origin) const;

  Comm& world_;
  const Layout& layout_;
  Options options_;
  std::vector<Entry> entries_;
  std::vector<int64_t> steps_;      // recorded so far
  MeasuredOverlap measured_;        // of this rank
  std::vector<std::string> lines_;  // to say, once the file is written
};

}  // namespace duet
