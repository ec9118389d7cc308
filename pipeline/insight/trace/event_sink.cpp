// See event_sink.h.
#include "pipeline/insight/trace/event_sink.h"

#include "model/base/check.h"

namespace duet {
namespace {

constexpr WideInt kFarthest = WideInt(1) << 53;  // ns from the first event: 104 days
constexpr int64_t kCovered = 100;                // kernels under one of their own stream

enum class Category { gpu, track, launch, annotation, none };
struct Class {
  Category category;
  Work work = Work::compute;  // of GPU work: what it is until classify.h knows better
};

Class class_of(std::string_view cat) {
  using enum Category;
  constexpr std::pair<std::string_view, Class> kClasses[] = {{"kernel", {gpu}},
      {"concurrent_kernel", {gpu}}, {"gpu_memcpy", {gpu, Work::memory}},
      {"gpu_memset", {gpu, Work::memory}}, {"memcpy", {gpu, Work::memory}},
      {"memset", {gpu, Work::memory}}, {"compute", {track}}, {"comm", {track, Work::comm}},
      {"wait", {track, Work::wait}}, {"step", {track, Work::step}},
      {"actions", {track, Work::pair}}, {"user_annotation", {annotation}}};
  const std::string name = lower(cat);
  for (const auto& [known, found] : kClasses)
    if (name == known) return found;
  // cuda_runtime, hip_driver, xpu_runtime, and Runtime, as it was
  return {name.ends_with("runtime") || name.ends_with("driver") ? launch : none};
}

int64_t size_of(std::string_view dtype) {
  constexpr std::pair<std::string_view, int64_t> kSizes[] = {{"Double", 8}, {"Long", 8},
      {"Float", 4}, {"Int", 4}, {"BFloat16", 2}, {"Half", 2}, {"Short", 2}, {"Byte", 1},
      {"Char", 1}, {"Bool", 1}, {"Float8_e4m3fn", 1}, {"Float8_e5m2", 1}};
  for (const auto& [name, size] : kSizes)
    if (name == dtype) return size;
  return 0;
}

}  // namespace

std::optional<WideInt> thousandths(std::string_view text) {
  constexpr WideInt kMost = WideInt(1'000'000'000'000'000) * 1'000'000'000'000'000'000;  // 1e33
  const bool negative = text.starts_with('-');
  const size_t e = std::min(text.find_first_of("eE"), text.size());
  std::optional<int> power = 0;
  if (e < text.size())
    power = parse_number<int>(text.substr(e + (text.substr(e + 1).starts_with('+') ? 2 : 1)));
  const std::string_view number = text.substr(negative, e - negative);
  const size_t point = std::min(number.find('.'), number.size());
  const bool digits = number.size() > (point < number.size() ? 1 : 0);
  if (!power || std::abs(*power) > 99 || !digits) return std::nullopt;
  WideInt value = 0;
  int64_t more = int64_t(point) + 3 + *power;  // digits that count, zeros where the text is over
  bool up = false;
  for (size_t i = 0; i < number.size() || (more > 0 && value > 0); ++i) {
    const char c = i < number.size() ? number[i] : '0';
    if (i == point && c == '.') continue;
    if (!std::isdigit(uint8_t(c)) || (more > 0 && value > kMost)) return std::nullopt;
    if (more > 0) value = value * 10 + (c - '0');
    if (more-- == 0) up = c >= '5';
  }
  value += up;
  return negative ? -value : value;
}

// --- one event ---

void RawEvent::clear() {
  for (std::string& value : values) value.clear();
  grid = 0;
}

Number RawEvent::number(Field f) const { return thousandths(values[f.at]); }

int64_t RawEvent::whole(Field f, int64_t otherwise) const {
  const Number value = number(f);
  const bool fits = value && *value / 1000 == int64_t(*value / 1000);
  return fits ? int64_t(*value / 1000) : otherwise;
}

// --- where it belongs ---

// Text instead of a number counts below all that files number.
Thread EventSink::thread_of(const RawEvent& e) {
  const auto id = [&](Field f) {
    const bool text = !e[f].empty() && !e.number(f);
    return text ? int64_t(INT32_MIN) + names_.id(e[f]) : e.whole(f, 0);
  };
  return {id("pid"), id("tid")};
}

void EventSink::add() {
  ++recording_.events;
  const std::string& phase = event["ph"];
  if (phase == "X") return add_complete(event);
  if (phase != "B" && phase != "E") return;
  std::vector<std::unique_ptr<RawEvent>>& open = open_[thread_of(event)];
  if (phase == "B") {
    const bool wanted = class_of(event["cat"]).category != Category::none;
    open.push_back(wanted ? std::make_unique<RawEvent>(event) : nullptr);
  } else if (open.empty()) {
    ++recording_.left_out["an end without its beginning"];
  } else {
    if (open.back()) add_complete(*open.back(), event.number("ts"));
    open.pop_back();
  }
}

void EventSink::add_complete(const RawEvent& e, const Number& end) {
  const auto [category, work] = class_of(e["cat"]);
  if (category == Category::none) return;
  const Number ts = e.number("ts"), duration = end && ts ? Number(*end - *ts) : e.number("dur");
  const bool no_number = (!ts && !e["ts"].empty()) || (!duration && !e["dur"].empty());
  const char* wrong = no_number      ? "a time that is no number"
      : !ts                          ? "no timestamp"
      : category == Category::launch ? nullptr
      : !duration                    ? "no duration"
      : *duration < 0                ? "a negative duration"
      : *duration > kFarthest        ? "a time beyond 104 days of the first"
                                     : nullptr;
  const auto far = [&](WideInt time) { return time > kFarthest || time < -kFarthest; };
  if (!wrong && !base_) base_ = *ts;
  if (!wrong && *base_ == 0 && far(*ts)) {  // what came before was at 0, and wrong
    if (!recording_.gpu.empty())
      recording_.left_out["timestamp 0"] += int64_t(recording_.gpu.size());
    recording_.gpu.clear(), recording_.launches.clear(), recording_.annotations.clear();
    base_ = *ts;
  }
  if (!wrong && far(*ts - *base_))
    wrong = *ts == 0 ? "timestamp 0" : "a time beyond 104 days of the first";
  if (wrong) {
    ++recording_.left_out[wrong];
    return;
  }
  const int64_t begin = int64_t(*ts - *base_), length = int64_t(duration.value_or(0));
  if (category == Category::launch) {
    if (e.number("correlation"))
      recording_.launches.push_back({e.whole("correlation", 0), begin, thread_of(e)});
  } else if (category == Category::annotation) {
    recording_.annotations.push_back({begin, begin + length, names_.id(e["name"]), thread_of(e)});
  } else {
    add_gpu(e, category == Category::track, work, {begin, begin + length});
  }
}

void EventSink::add_gpu(const RawEvent& e, bool own, Work work, const Interval& time) {
  const std::string& name = e["name"];
  if (work == Work::pair && name != "pair") return;
  // what a rank does by itself for a message is not the message
  const bool local =
      own && work == Work::compute && (name.starts_with("dispatch") || name.starts_with("combine"));
  GpuEvent& gpu = recording_.gpu.emplace_back(GpuEvent{time});
  gpu.correlation = e.whole("correlation", -1);
  gpu.name = names_.id(name);
  gpu.stream = stream_of(e);
  if (own) gpu.component = names_.id((local ? "local " : "") + name);
  gpu.layer = int32_t(e.whole("layer", -1));
  gpu.grid = e.grid, gpu.own = own, gpu.work = work;
  gpu.blocks = !e["blocks"].empty() && work == Work::comm;
  describe_message(e, gpu);
}

void EventSink::describe_message(const RawEvent& e, GpuEvent& gpu) {
  const auto part = [&](Field f) { return cat("|", e.whole(f, -1)); };
  const bool nccl = std::any_of(&e["Collective name"], std::end(e.values),
      [](const std::string& value) { return !value.empty(); });
  if (gpu.work == Work::comm) {  // duet's own
    gpu.message = names_.id(cat("duet|", e["name"], part("step"), part("stage"), part("microbatch"),
        part("layer"), "|", e["group"]));
    gpu.bytes = e.whole("bytes", 0);
  } else if (nccl) {
    if (!e["Seq"].empty())
      gpu.message = names_.id(cat("nccl|", e["Collective name"], "|", e["Process Group Name"],
          e["Process Group Description"], e["Process Group Ranks"], "|", e["Comms Id"],
          part("Seq")));
    gpu.bytes = e.whole("In msg nelems", e.whole("Out msg nelems", 0)) * size_of(e["dtype"]);
  }
}

int32_t EventSink::stream_of(const RawEvent& e) {
  const Thread row = thread_of(e);
  const int64_t device = e.whole("device", row.pid), number = e.whole("stream", row.tid);
  const auto [found, added] =
      streams_.emplace(Thread{device, number}, int32_t(recording_.streams.size()));
  if (added) {
    const bool own = class_of(e["cat"]).category == Category::track;
    const bool named = !e.number("stream") && !e.number("tid") && !e["tid"].empty();
    recording_.streams.push_back({device,
        own         ? e["cat"]
            : named ? e["tid"]
                    : std::to_string(number)});
  }
  return found->second;
}

// --- the whole ---

// A timestamp of 0 is right where times count from the trace's start, and wrong where the others
// count from 1970 or from the machine's start: further away than all of them are long.
void EventSink::drop_timestamps_of_zero() {
  const WideInt base = base_.value_or(0);
  const auto at_zero = [&](const GpuEvent& e) { return base + e.begin == 0; };
  int64_t first = INT64_MAX, last = INT64_MIN;
  for (const GpuEvent& e : recording_.gpu)
    if (!at_zero(e)) first = std::min(first, e.begin), last = std::max(last, e.end);
  if (first > last || base + first < 1'000'000'000 || base + first < last - first) return;
  if (const auto n = std::erase_if(recording_.gpu, at_zero); n > 0)
    recording_.left_out["timestamp 0"] += int64_t(n);
}

// A kernel that covers hundreds of others of its own stream was never so long. Of the kernels that
// end by its end, at most those that began before it are not within it.
void EventSink::drop_covering() {
  std::vector<std::vector<int64_t>> begins(recording_.streams.size()), ends(begins.size());
  for (const GpuEvent& e : recording_.gpu) {
    if (e.own || e.work != Work::compute) continue;
    begins[size_t(e.stream)].push_back(e.begin);
    ends[size_t(e.stream)].push_back(e.end);
  }
  for (auto* times : {&begins, &ends})
    for (auto& stream : *times) std::sort(stream.begin(), stream.end());
  const auto covering = [&](const GpuEvent& e) {
    if (e.own || e.work != Work::compute) return false;
    const auto &b = begins[size_t(e.stream)], &n = ends[size_t(e.stream)];
    const auto ended = std::upper_bound(n.begin(), n.end(), e.end) - n.begin();
    const auto begun = std::lower_bound(b.begin(), b.end(), e.begin) - b.begin();
    return ended - begun - 1 >= kCovered;
  };
  if (const auto n = std::erase_if(recording_.gpu, covering); n > 0)
    recording_.left_out["a kernel over a hundred others of its stream"] += int64_t(n);
}

Recording EventSink::finish() {
  for (const auto& [thread, open] : open_)
    for (const auto& e : open)
      if (e && class_of((*e)["cat"]).category <= Category::track)
        ++recording_.left_out["a beginning without its end"];
  drop_timestamps_of_zero();
  drop_covering();
  recording_.base = base_.value_or(0);
  recording_.rank = rank;
  return std::move(recording_);
}

}  // namespace duet
