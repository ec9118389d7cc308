// Reader: a trace file -> events (events.h). Chrome's trace-event JSON as PyTorch's profiler (CUDA,
// ROCm, old and new), duet's --trace and others write it; plain or gzip.
//
// Events come as X or as B and E; timestamps and durations are microseconds, numbers or strings of
// digits, exact to the nanosecond. The file is read as a stream, by nlohmann's SAX parser: no tree
// is built, and what is not kept (CPU operators, Python frames, arguments nobody asks for) costs no
// memory. Damage is an error with its byte offset, unless it lies after the events' end; what is no
// such trace is named. Impossible events are counted in Recording::left_out. Not here: which work
// is communication (classify.h), whose it is (attribute.h).
// Read next: event_sink.h.
#pragma once
#include "pipeline/insight/trace/events.h"
#include "pipeline/insight/trace/input.h"

namespace duet {

// Throws UsageError, one line that begins with the file's name.
Recording read_trace(const std::string& file, ReadBytes read, Names& names);

// A decimal number in thousandths, rounded: microseconds in nanoseconds. Empty if the text is no
// number or too large for the model (33 digits).
std::optional<WideInt> thousandths(std::string_view text);

}  // namespace duet
