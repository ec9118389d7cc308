// The event model of a trace: what duet records and what others' profilers write, as one kind of
// rows.
//
//   GpuEvent     work on a stream: a kernel, a copy, or an event of one of duet's tracks
//   LaunchCall       the CPU's call that enqueued it (same correlation id)
//   Annotation   a named range on a CPU thread ("dispatch(F)", "ProfilerStep#1")
//
// Times are whole nanoseconds after the Recording's `base`, the file's first event: 4.9e12 us keep
// their last digit, 1.7e18 us do not overflow. Names are interned, so an event holds no string. An
// event belongs to a rank, which is a GPU of a file.
// Read next: input.h.
#pragma once
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/base/text.h"
#include "pipeline/insight/trace/intervals.h"

namespace duet {

using WideInt = __int128;  // absolute nanoseconds

// wait, step and pair are tracks of duet's own traces (trace.h)
enum class Work : uint8_t { compute, comm, memory, wait, step, pair };
constexpr const char* kWorks[] = {"compute", "communication", "memory", "wait", "step", "pair"};

// Strings as small numbers, in the order in which they came. One table serves all files of a job.
class Names {
 public:
  int32_t id(std::string_view text) {
    if (const auto found = ids_.find(text); found != ids_.end()) return found->second;
    texts_.emplace_back(text);
    return ids_.emplace(texts_.back(), int32_t(ids_.size())).first->second;
  }
  const std::string& operator[](int32_t id) const { return texts_[size_t(id)]; }
  size_t size() const { return texts_.size(); }

 private:
  std::deque<std::string> texts_;  // where a string lies, it stays
  std::unordered_map<std::string_view, int32_t> ids_;
};

struct GpuEvent : Interval {
  int64_t correlation = -1;
  int32_t name = 0;
  int32_t stream = 0;      // in Recording::streams
  int32_t component = -1;  // a name: the annotation around its launch, or the track's own name
  int32_t layer = -1;      // as the file says, else the annotation's number among its namesakes
  int32_t ordinal = 0;     // of its launch within the annotation
  int32_t message = -1;    // a name, equal on all ranks that take part; -1: unknown
  uint32_t grid = 0;       // a hash of the launch's dimensions
  Work work = Work::compute;
  bool own = false;              // of duet's own: the file says what it is
  bool blocks = false;           // communication on the compute stream itself
  int64_t launched = INT64_MIN;  // when the CPU launched it; INT64_MIN: unknown
  // that this rank puts in; 0: unknown; -1: neither NCCL's metadata nor duet say it is a message
  int64_t bytes = -1;
};

struct Thread {
  int64_t pid, tid;
  auto operator<=>(const Thread&) const = default;
};
struct LaunchCall {
  int64_t correlation, at;
  Thread thread;
};
struct Annotation {
  int64_t begin, end;
  int32_t name;
  Thread thread;
};
struct StreamRow {
  int64_t device;
  std::string label;
};

struct Recording {  // one file
  std::string file;
  WideInt base = 0;
  std::optional<int64_t> rank;    // as distributedInfo says
  int64_t bytes = 0, events = 0;  // read, kept or not
  std::vector<GpuEvent> gpu;
  std::vector<LaunchCall> launches;
  std::vector<Annotation> annotations;
  std::vector<StreamRow> streams;
  std::map<std::string, int64_t> left_out;  // impossible events, by what is wrong with them
  std::vector<std::string> warnings;
};

}  // namespace duet
