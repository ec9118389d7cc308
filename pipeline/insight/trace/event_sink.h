// EventSink: one event of the file after the other, checked and put where it belongs: GPU work,
// launches, annotations. Used by reader.cpp alone.
// Read next: classify.h.
#pragma once
#include <array>
#include <memory>

#include "pipeline/insight/trace/events.h"

namespace duet {

// What is read of an event and of its "args"; everything else is `other`.
enum class Field : uint8_t {
  other,
  args,
  ph,
  cat,
  name,
  pid,
  tid,
  ts,
  dur,  // the event's own
  device,
  stream,
  correlation,
  grid,
  bytes,
  layer,
  step,
  stage,
  microbatch,
  blocks,
  ranks,
  collective,
  group,
  comms_id,
  seq,
  dtype,
  elements_in  // NCCL's metadata
};
constexpr size_t kFields = size_t(Field::elements_in) + 1;
Field field_of_event(std::string_view key);
Field field_of_args(std::string_view key);

// One event as it stands in the file; one object serves all of them, so that nothing is allocated.
struct RawEvent {
  std::string cat, name, group, collective, comms_id, dtype, label,
      ranks;  // label: a tid that is text
  char ph = 0;
  std::array<std::optional<WideInt>, kFields> value;  // thousandths
  uint32_t grid = 0;
  bool blocks = false, bad_number = false, nccl = false;

  void clear();
  void set(Field field, std::optional<WideInt> number);
  void set(Field field, const std::string& text);
  int64_t whole(Field field, int64_t otherwise) const {
    const std::optional<WideInt>& v = value[size_t(field)];
    return v ? int64_t(*v / 1000) : otherwise;
  }
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
  void add_complete(const RawEvent& e);
  void add_gpu(const RawEvent& e, Source source, Work work, int64_t begin, int64_t duration);
  int32_t collective_of(const RawEvent& e, Work work);
  int32_t thread_of(const RawEvent& e);
  int32_t stream_of(const RawEvent& e);
  void drop_timestamps_of_zero();
  void drop_covering();

  Names& names_;
  Recording recording_;
  std::optional<WideInt> base_;
  std::map<Thread, int32_t> threads_;
  std::map<Thread, int32_t> streams_;  // by device and number
  // B without its E so far, innermost last; null where nobody wants it
  std::map<Thread, std::vector<std::unique_ptr<RawEvent>>> open_;
  std::vector<size_t> at_zero_;  // of recording_.gpu: timestamp 0
};

}  // namespace duet
