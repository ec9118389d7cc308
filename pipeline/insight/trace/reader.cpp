// See reader.h.  The handler of the parser's calls; where events end up is event_sink.h.
#include "pipeline/insight/trace/reader.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "model/base/check.h"
#include "model/base/text.h"
#include "pipeline/insight/trace/event_sink.h"

namespace duet {
namespace {

using nlohmann::json;

constexpr int kDeepest = 512;

// What a file is that is no JSON, by the end of its name or the beginning of its bytes.
constexpr std::string_view kPerfetto =
    "a Perfetto trace (protobuf); write it as JSON: traceconv json FILE";
constexpr std::string_view kNsight =
    "an Nsight Systems report; record with torch.profiler, whose export_chrome_trace fits";
constexpr std::pair<std::string_view, std::string_view> kOthers[] = {{".pftrace", kPerfetto},
    {".perfetto-trace", kPerfetto}, {".nsys-rep", kNsight}, {".qdrep", kNsight},
    {"SQLite format 3",
        "a SQLite file, as nsys or rocpd export them; record with torch.profiler instead"},
    {".et", "a Chakra execution trace (protobuf): it has no times of kernels"},
    {"\x28\xb5\x2f\xfd", "zstd data; unpack it first: zstd -d FILE"},
    {"PK", "a zip archive; unpack it first"},
    {"\x80", "a Python pickle, such as a CUDA memory snapshot"},
    {"\x0a", "protobuf, such as a Perfetto trace or a Chakra graph"},
    {"\xff\xfe", "text in UTF-16; convert it to UTF-8"},
    {"\xfe\xff", "text in UTF-16; convert it to UTF-8"}};

// A key's place in kFields; -1: nobody asks for it.
ptrdiff_t field_of(std::string_view key, bool in_args) {
  const auto* args = &kFields[Field("device").at];
  const auto* end = in_args ? std::end(kFields) : args;
  const auto* found = std::find(in_args ? args : kFields, end, key);
  return found == end ? -1 : found - kFields;
}

// The parser's calls -> RawEvents. Depth counts open objects and arrays; an event is an object at
// event_depth_, its "args" one deeper.
class Handler {
 public:
  Handler(EventSink& sink, const Input& input) : sink_(sink), input_(input) {}

  // --- what nlohmann calls ---
  bool null() { return true; }
  bool boolean(bool value) { return !is("blocks") || text(value ? "true" : ""); }
  bool number_integer(int64_t value) { return text(std::to_string(value)); }
  bool number_unsigned(uint64_t value) { return text(std::to_string(value)); }
  bool number_float(double, const std::string& value) { return text(value); }
  bool string(const std::string& value) { return text(value); }
  bool binary(json::binary_t&) { return true; }
  bool key(std::string& key) {
    if (in_event() || in_args())
      field_ = field_of(key, in_args());
    else if (depth_ == 1)
      top_ = key, nodes |= key == "nodes",
      memory |= key == "segments" || key == "device_traces" || key == "categories";
    else if (depth_ == 2)
      is_rank_ = top_ == "distributedInfo" && key == "rank";
    return true;
  }
  bool start_object(size_t) {
    if (in_event() && is("args")) in_args_object_ = true;
    if (in_events_ && depth_ == event_depth_ - 1) sink_.event.clear();
    return open();
  }
  bool end_object() {
    --depth_;
    if (!in_events_) return true;
    if (in_event()) in_args_object_ = false, field_ = -1;
    if (depth_ == event_depth_ - 1) sink_.add();
    return true;
  }
  bool start_array(size_t) {
    if (depth_ == 0 || (depth_ == 1 && top_ == "traceEvents")) {
      bare = depth_ == 0;
      in_events_ = true;
      event_depth_ = depth_ + 2;
    } else if (bare && depth_ == 1 && sink_.count() == 0) {
      memory = true;  // an array of arrays
      return false;
    }
    return open();
  }
  bool end_array() {
    --depth_;
    if (in_events_ && depth_ == event_depth_ - 2)
      in_events_ = false, event_depth_ = -9, ended = true;
    return true;
  }
  bool parse_error(size_t, const std::string&, const json::exception& error) {
    const std::string what = error.what();
    const size_t dash = what.find(" - ");
    reason = dash == what.npos ? what.substr(what.find(']') + 2) : what.substr(dash + 3);
    offset = input_.offset();
    between_events = in_events_ && depth_ == event_depth_ - 1;
    at_bracket = reason.starts_with("unexpected ']'");
    return false;
  }

  // --- what is known afterwards ---
  std::string schema, reason;
  int64_t offset = -1;
  bool nodes = false, memory = false, bare = false, ended = false;
  bool between_events = false, at_bracket = false;

 private:
  bool in_event() const { return depth_ == event_depth_; }
  bool in_args() const { return in_args_object_ && depth_ == event_depth_ + 1; }
  bool open() {
    if (++depth_ <= kDeepest) return true;
    offset = input_.offset();
    reason = cat("objects and arrays nested deeper than ", kDeepest);
    return false;
  }
  bool is(Field field) const { return field_ == field.at; }
  bool text(const std::string& value) {
    if (in_args_object_ && is("grid"))
      sink_.event.grid =
          sink_.event.grid * 1000003u + uint32_t(thousandths(value).value_or(0) / 1000) + 1;
    else if (field_ >= 0 && (in_event() || in_args()))
      sink_.event.values[field_] = one_line(value);
    else if (depth_ == 1 && top_ == "schema")
      schema = value;
    else if (const Number rank = is_rank_ && depth_ == 2 ? thousandths(value) : Number();
             rank && *rank >= 0 && *rank / 1000 <= INT32_MAX)
      sink_.rank = int64_t(*rank / 1000);
    return true;
  }

  EventSink& sink_;
  const Input& input_;
  std::string top_;       // the key of the outermost object
  ptrdiff_t field_ = -1;  // in kFields; -1: nobody asks for it
  int depth_ = 0, event_depth_ = -9;
  bool in_events_ = false, in_args_object_ = false, is_rank_ = false;
};

// Throws for what is no trace of events.
void refuse_others(const std::string& file, const Handler& h) {
  require(!(h.nodes && !h.schema.empty()), file,
      ": expected a Chrome trace, found an execution trace (schema ", h.schema,
      "), as PyTorch's ExecutionTraceObserver and Chakra write them: it has no times of kernels; "
      "use the file of torch.profiler's export_chrome_trace");
  require(!h.memory, file,
      ": expected a Chrome trace, found a memory timeline or snapshot; use the file of "
      "torch.profiler's export_chrome_trace");
  require(h.ended || !h.reason.empty(), file,
      ": expected a Chrome trace, found JSON without \"traceEvents\": [...]");
}

// The parser's reason, with a name for what programs write though JSON does not have it.
std::string excerpt(const Input& input, const std::string& reason) {
  const size_t last = reason.find("last read: ");
  const std::string text = shortened(reason.substr(0, 300), 300);
  if (last == reason.npos) return text;
  const std::string_view rest(input.at, std::min<size_t>(8, size_t(input.end - input.at)));
  for (const char* word : {"NaN", "Infinity", "N/A", "nan", "inf"})
    if ((reason.substr(last).find(word[0]) != reason.npos) && rest.starts_with(word + 1))
      return cat("a bare ", word, ", which JSON does not have");
  return text;
}

}  // namespace

Recording read_trace(const std::string& file, ReadBytes read, Names& names) {
  Input input(file, std::move(read));
  const std::string_view head = input.head();
  require(!head.empty(), file, ": expected a Chrome trace, found an empty file");
  const size_t first = std::min(head.find_first_not_of(" \t\r\n\xef\xbb\xbf"), head.size());
  const std::string_view text = head.substr(first, 20);
  if (!text.starts_with("{") && !text.starts_with("[")) {
    const auto* other = std::ranges::find_if(kOthers, [&](const auto& format) {
      return lower(file).ends_with(format.first) || head.starts_with(format.first);
    });
    throw UsageError(cat(file, ": expected a Chrome trace (JSON), found ",
        other != std::end(kOthers) ? other->second
                                   : cat("text that begins with '", shortened(text), "'")));
  }

  EventSink sink(file, names);
  Handler handler(sink, input);
  std::vector<std::string> warnings;
  bool complete = false;
  try {
    complete = json::sax_parse(InputIterator(&input), InputIterator(), &handler);
  } catch (const UsageError& error) {  // the file under the text
    if (!handler.ended) throw;
    warnings.push_back(cat("damage after the events' end: ", error.what()));
    complete = true;
  }
  refuse_others(file, handler);
  if (!complete) {
    const std::string damage =
        cat("byte ", handler.offset, ": expected JSON, found ", excerpt(input, handler.reason));
    const bool at_end = handler.offset >= input.size();
    if (handler.ended)
      warnings.push_back("damage after the events' end, " + damage);
    else if (handler.between_events && handler.bare && at_end)
      warnings.push_back("the array of events is not closed");
    else if (handler.between_events && handler.at_bracket)
      warnings.push_back("a comma after the last event, " + damage);
    else
      throw UsageError(cat(file, ": ", damage, at_end ? ": the file is cut off" : ""));
  }
  Recording recording = sink.finish();
  recording.bytes = input.size();
  recording.warnings = input.warnings();
  recording.warnings.insert(recording.warnings.end(), warnings.begin(), warnings.end());
  return recording;
}

}  // namespace duet
