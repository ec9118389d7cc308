// Recorder: what happened when, on one rank. Whoever does something worth seeing wraps it in a
// Scope; without a recorder that costs a test of a pointer.
//
//   Scope scope(context.recorder, context.stream(),
//       {"experts F", "compute", stage, microbatch, layer});
//
// A scope begins when the work enqueued on its stream so far is done, and ends when the work
// enqueued inside it is: on the CPU's compute stream that is now; on other streams it is taken by
// events. Used by one thread, the rank's. The file, and what is read from it, is made elsewhere
// (pipeline/insight/trace/trace.h).
// Read next: limits.h.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/machine/device.h"

namespace duet {

struct Activity {
  const char* name = "";  // "attention F", "dispatch F", "F", ...; lives as long as the program
  // "compute" or "comm": which stream of the rank; "actions" for what a schedule's list says;
  // "step"; "wait"; of a kernel, its kind
  const char* track = "";
  int stage = -1, microbatch = -1;
  int64_t layer = -1;
  // sent, where it is a message; read and written by a row operation, or by a product's exact sum
  int64_t bytes = 0;
  int64_t flops = 0;  // of a kernel
};

class Recorder {
 public:
  struct Entry {
    Activity activity;
    std::unique_ptr<Event> begin, end;
    bool on_compute;  // on the compute stream: a message there keeps it from computing
  };
  explicit Recorder(Device& device) : device_(device) {}
  // Marks a point in the stream's order: the beginning of an entry, whose number is returned; and
  // its end.
  size_t begin(Stream& stream, const Activity& activity) {
    entries_.push_back({activity, device_.make_event(true), device_.make_event(true),
        &stream == &device_.compute()});
    stream.record(*entries_.back().begin);
    return entries_.size() - 1;
  }
  void end(Stream& stream, size_t entry) { stream.record(*entries_[entry].end); }
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  Device& device_;
  std::vector<Entry> entries_;
};

class Scope {
 public:
  Scope(Recorder* recorder, Stream& stream, const Activity& activity)
      : recorder_(recorder), stream_(stream) {
    if (recorder_) entry_ = recorder_->begin(stream_, activity);
  }
  ~Scope() {
    try {
      if (recorder_) recorder_->end(stream_, entry_);
    } catch (const Error&) {  // perhaps one unwinds already; the stream's next call finds it again
    }
  }
  Scope(const Scope&) = delete;

 private:
  Recorder* recorder_;
  Stream& stream_;
  size_t entry_ = 0;
};

}  // namespace duet
