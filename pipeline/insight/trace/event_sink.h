// EventSink: one event of the file after the other, checked and put where it belongs: GPU work,
// launches, annotations. Used by reader.cpp alone.
// Read next: classify.h.
#pragma once
#include <algorithm>
#include <iterator>
#include <memory>

#include "pipeline/insight/trace/events.h"

namespace duet {

using Number = std::optional<WideInt>;  // thousandths, of a file's number

// What is read of an event and, from "device" on, of its "args"; the last ones NCCL's alone have.
inline constexpr std::string_view kFields[] = {"ph", "cat", "name", "pid", "tid", "ts", "dur",
    "args", "device", "stream", "correlation", "grid", "bytes", "layer", "step", "stage",
    "microbatch", "blocks", "group", "dtype", "Collective name", "Process Group Name",
    "Process Group Description", "Process Group Ranks", "Comms Id", "Seq", "In msg nelems",
    "Out msg nelems"};

struct Field {  // one of them; another key does not compile
  consteval Field(const char* key) : at(std::ranges::find(kFields, key) - std::begin(kFields)) {
    if (at == std::ssize(kFields)) throw key;
  }
  ptrdiff_t at;
};

// One event as it stands in the file, numbers too.
struct RawEvent {
  std::string values[std::size(kFields)];
  uint32_t grid = 0;  // a hash of its dimensions

  void clear();
  const std::string& operator[](Field f) const { return values[f.at]; }
  Number number(Field f) const;
  int64_t whole(Field f, int64_t otherwise) const;
};

class EventSink {
 public:
  EventSink(const std::string& file, Names& names) : names_(names) { recording_.file = file; }
  RawEvent event;  // being read
  std::optional<int64_t> rank;
  void add();  // `event` is complete
  int64_t count() const { return recording_.events; }
  Recording finish();  // drops what is impossible only in the light of the whole

 private:
  void add_complete(const RawEvent& e, const Number& end = {});  // of a B: its E
  void add_gpu(const RawEvent& e, bool own, Work work, const Interval& time);
  void describe_message(const RawEvent& e, GpuEvent& gpu);
  Thread thread_of(const RawEvent& e);
  int32_t stream_of(const RawEvent& e);
  void drop_timestamps_of_zero();
  void drop_covering();

  Names& names_;
  Recording recording_;
  Number base_;
  std::map<Thread, int32_t> streams_;  // by device and number
  // B without its E so far, innermost last; null where nobody wants it
  std::map<Thread, std::vector<std::unique_ptr<RawEvent>>> open_;
};

}  // namespace duet
