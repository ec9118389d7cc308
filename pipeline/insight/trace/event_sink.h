// EventSink: one event of the file after the other, checked and put where it belongs: GPU work,
// launches, annotations. Used by reader.cpp alone.
// Read next: classify.h.
#pragma once
#include <memory>

#include "pipeline/insight/trace/events.h"

namespace duet {

using Number = std::optional<WideInt>;  // thousandths, of a file's number

// One event as it stands in the file.
struct RawEvent {
  std::string ph, cat, name, ranks, collective, group, comms_id, dtype;
  std::string process, thread;  // a pid or tid that is text
  Number pid, tid, ts, dur, device, stream, correlation, bytes, layer, step, stage, microbatch;
  Number comms_number, seq, elements_in;
  Number dimension;   // of the grid, the last one
  uint32_t grid = 0;  // a hash of its dimensions
  bool blocks = false, bad_number = false, nccl = false;

  void set(const struct Field& field, Number number);
  void set(const struct Field& field, const std::string& text);
};

// What is read of an event and of its "args": a key, and where its value goes.
struct Field {
  std::string_view key;
  Number RawEvent::*number = nullptr;
  std::string RawEvent::*text = nullptr;
  bool nccl = false;  // who has it is NCCL's
};
const Field* field_of(std::string_view key, bool in_args);  // null: nobody asks for it

enum class Category { kernel, copy, lane, launch, annotation, none };  // first as Source

class EventSink {
 public:
  EventSink(const std::string& file, Names& names) : names_(names) { recording_.file = file; }
  RawEvent event;  // being read
  std::optional<int64_t> rank;
  void add();  // `event` is complete
  int64_t count() const { return recording_.events; }
  Recording finish();  // drops what is impossible only in the light of the whole

 private:
  void add_complete(const RawEvent& e);
  void add_gpu(const RawEvent& e, Category category, int64_t begin, int64_t length);
  int32_t collective_of(const RawEvent& e, Work work);
  Thread thread_in_file(const RawEvent& e);
  int32_t thread_of(const RawEvent& e);
  int32_t stream_of(const RawEvent& e);
  void drop_timestamps_of_zero();
  void drop_covering();

  Names& names_;
  Recording recording_;
  Number base_;
  std::map<Thread, int32_t> threads_;
  std::map<Thread, int32_t> streams_;  // by device and number
  // B without its E so far, innermost last; null where nobody wants it
  std::map<Thread, std::vector<std::unique_ptr<RawEvent>>> open_;
};

}  // namespace duet
