// Measure: where a rank's time went. With C, M and A the merged intervals of compute, communication
// and everything, and T the span from the first to the last GPU event:
//
//   span |T|   compute |C|   communication |M|   overlap |C and M|   exposed |M without C|
//   overlap ratio |C and M| / |M|   idle |T| - |A|   serial time |C| + |M|
//   speed-up serial / span   lower bound max(|C|, |M|)
//   efficiency (|C| + |M| - |T|) / min(|C|, |M|)
//
// Of duet's own traces T is the recorded steps, and a rank that stands in a wait does not compute
// (intervals.h): the same code as for a run's last line. Ratios of nothing are empty, never NaN.
// Read next: collectives.h.
#pragma once
#include <algorithm>

#include "pipeline/insight/trace/events.h"

namespace duet {

struct Component {
  int64_t busy = 0, count = 0, median = 0;  // ns; of events
  int64_t median_occurrence = 0;            // of annotations: their busy time
  Work work = Work::compute;                // of most of its time
  char phase = 0;
  std::map<int32_t, int64_t> layers;  // busy; of components with a phase
};

struct Measure {
  Overlap overlap;  // span, compute, comm, covered
  int64_t memory = 0, idle = 0;
  int64_t kernels[3] = {};  // by Work
  int64_t exposed() const { return overlap.exposed(); }
  int64_t serial() const { return overlap.compute + overlap.comm; }
  int64_t lower_bound() const { return std::max(overlap.compute, overlap.comm); }
  std::optional<double> ratio() const { return divide(overlap.covered, overlap.comm); }
  std::optional<double> speedup() const { return divide(serial(), overlap.span); }
  std::optional<double> efficiency() const {
    return divide(serial() - overlap.span, std::min(overlap.compute, overlap.comm));
  }

 private:
  static std::optional<double> divide(int64_t a, int64_t b) {
    return b == 0 ? std::nullopt : std::optional(double(a) / double(b));
  }
};

struct StreamBusy {
  int64_t events = 0, busy[3] = {};  // ns, by Work
};

// A GPU of a file.
struct RankTrace {
  int64_t number = 0, device = 0;
  const Recording* recording = nullptr;
  std::vector<GpuEvent> events;  // by beginning
  int64_t to_common = 0;         // added to its times: the clock all ranks share (collectives.h)
  int64_t clock_moved = 0, clock_error = 0;  // beyond what the files say of their clocks

  Times compute, comm, wait;  // merged; compute without waits
  Measure measure;
  Overlap pairs;  // of duet's overlapped pairs
  std::map<int32_t, Component> components;
  std::map<int32_t, StreamBusy> streams;
};

// One rank for every GPU of the recordings, measured. Recordings outlive them.
std::vector<RankTrace> make_ranks(std::vector<Recording>& recordings, const Names& names);

int64_t median(std::vector<int64_t> values);  // of none: 0

}  // namespace duet
