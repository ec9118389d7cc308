// See event_sink.h.
#include "pipeline/insight/trace/event_sink.h"

#include <algorithm>
#include <span>

#include "model/base/check.h"

namespace duet {
namespace {

constexpr WideInt kFarthest = WideInt(1) << 53;  // ns from the first event: 104 days
constexpr int64_t kCovered = 100;                // kernels under one of their own stream

Category category_of(std::string_view cat) {
  constexpr std::pair<std::string_view, Category> kCategories[] = {{"kernel", Category::kernel},
      {"concurrent_kernel", Category::kernel}, {"gpu_memcpy", Category::copy},
      {"gpu_memset", Category::copy}, {"memcpy", Category::copy}, {"memset", Category::copy},
      {"compute", Category::lane}, {"comm", Category::lane}, {"wait", Category::lane},
      {"step", Category::lane}, {"actions", Category::lane},
      {"user_annotation", Category::annotation}};
  const std::string name = lower(cat);
  for (const auto& [known, category] : kCategories)
    if (name == known) return category;
  // cuda_runtime, hip_driver, xpu_runtime, and Runtime, as it was
  const bool launch = name.ends_with("runtime") || name.ends_with("driver");
  return launch ? Category::launch : Category::none;
}

std::optional<Work> work_of_lane(const RawEvent& e) {
  switch (e.cat[0]) {
    case 's': return Work::step;
    case 'w': return Work::wait;
    case 'a': return e.name == "pair" ? std::optional(Work::pair) : std::nullopt;
    default: return e.cat == "comm" ? Work::comm : Work::compute;
  }
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
  text.remove_prefix(negative);
  WideInt digits = 0;
  int exponent = 3;
  size_t i = 0, seen = 0;
  for (bool point = false; i < text.size(); ++i) {
    if (text[i] == '.' && !point) {
      point = true;
    } else if (std::isdigit(uint8_t(text[i]))) {
      ++seen;
      if (digits > kMost && !point) return std::nullopt;
      if (digits > kMost) continue;  // decimals without weight
      digits = digits * 10 + (text[i] - '0');
      exponent -= point;
    } else {
      break;
    }
  }
  if (seen == 0) return std::nullopt;
  if (i < text.size()) {
    if (text[i] != 'e' && text[i] != 'E') return std::nullopt;
    const std::string rest(text.substr(i + 1));
    char* end = nullptr;
    const long power = std::strtol(rest.c_str(), &end, 10);
    if (rest.empty() || *end || power > 99 || power < -99) return std::nullopt;
    exponent += int(power);
  }
  for (; exponent > 0 && digits != 0; --exponent) {
    if (digits > kMost) return std::nullopt;
    digits *= 10;
  }
  for (; exponent < -1 && digits != 0; ++exponent) digits /= 10;
  if (exponent < 0) digits = (digits + 5) / 10;
  return negative ? -digits : digits;
}

// --- one event ---

const Field* field_of(std::string_view key, bool in_args) {
  using E = RawEvent;
  static constexpr Field kOfEvent[] = {{"ph", nullptr, &E::ph}, {"cat", nullptr, &E::cat},
      {"name", nullptr, &E::name}, {"pid", &E::pid}, {"tid", &E::tid}, {"ts", &E::ts},
      {"dur", &E::dur}, {"args"}};
  static constexpr Field kOfArgs[] = {{"device", &E::device}, {"stream", &E::stream},
      {"correlation", &E::correlation}, {"grid", &E::dimension}, {"bytes", &E::bytes},
      {"layer", &E::layer}, {"step", &E::step}, {"stage", &E::stage},
      {"microbatch", &E::microbatch}, {"blocks"}, {"group", nullptr, &E::ranks},
      {"Collective name", nullptr, &E::collective, true},
      {"Process Group Name", nullptr, &E::group, true},
      {"Process Group Description", nullptr, &E::group, true},
      {"Process Group Ranks", nullptr, &E::group, true},
      {"Comms Id", &E::comms_number, &E::comms_id, true}, {"Seq", &E::seq, nullptr, true},
      {"dtype", nullptr, &E::dtype}, {"In msg nelems", &E::elements_in, nullptr, true},
      {"Out msg nelems", &E::elements_in, nullptr, true}};
  const auto fields = in_args ? std::span<const Field>(kOfArgs) : kOfEvent;
  const auto found = std::ranges::find(fields, key, &Field::key);
  return found == fields.end() ? nullptr : &*found;
}

void RawEvent::set(const Field& field, Number number) {
  if (!field.number) return;
  if (field.number == &RawEvent::dimension)
    grid = grid * 1000003u + uint32_t(number.value_or(0) / 1000) + 1;
  if (!number && (field.number == &RawEvent::ts || field.number == &RawEvent::dur))
    bad_number = true;
  if (field.number != &RawEvent::elements_in || !elements_in)  // In before Out
    this->*field.number = number;
  nccl |= field.nccl;
}

void RawEvent::set(const Field& field, const std::string& text) {
  if (field.text) {
    std::string& to = this->*field.text;
    to = field.text == &RawEvent::group ? to + text : text;
    nccl |= field.nccl;
  } else if (field.number && field.number != &RawEvent::dimension) {
    const Number number = thousandths(text);
    if (!number && field.number == &RawEvent::pid) process = text;
    if (!number && field.number == &RawEvent::tid) thread = text;
    set(field, number);
  }
}

namespace {

int64_t whole(const Number& number, int64_t otherwise) {
  return number ? int64_t(*number / 1000) : otherwise;
}

}  // namespace

// --- where it belongs ---

// Text instead of a number counts below all that files number.
Thread EventSink::thread_in_file(const RawEvent& e) {
  const auto id = [&](const Number& number, const std::string& text) {
    return whole(number, text.empty() ? 0 : int64_t(INT32_MIN) + names_.id(text));
  };
  return {id(e.pid, e.process), id(e.tid, e.thread)};
}

void EventSink::add() {
  ++recording_.events;
  if (event.ph == "X") return add_complete(event);
  if (event.ph != "B" && event.ph != "E") return;
  std::vector<std::unique_ptr<RawEvent>>& open = open_[thread_in_file(event)];
  if (event.ph == "B") {
    const bool wanted = category_of(event.cat) != Category::none;
    open.push_back(wanted ? std::make_unique<RawEvent>(event) : nullptr);
  } else if (open.empty()) {
    ++recording_.left_out["an end without its beginning"];
  } else {
    if (const std::unique_ptr<RawEvent> e = std::move(open.back())) {
      if (e->ts && event.ts) e->dur = *event.ts - *e->ts;
      add_complete(*e);
    }
    open.pop_back();
  }
}

void EventSink::add_complete(const RawEvent& e) {
  const Category category = category_of(e.cat);
  if (category == Category::none) return;
  const Number &ts = e.ts, &duration = e.dur;
  const char* wrong = e.bad_number   ? "a time that is no number"
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
    if (e.correlation)
      recording_.launches.push_back({whole(e.correlation, 0), begin, thread_of(e)});
  } else if (category == Category::annotation) {
    recording_.annotations.push_back({begin, begin + length, names_.id(e.name), thread_of(e)});
  } else {
    add_gpu(e, category, begin, length);
  }
}

void EventSink::add_gpu(const RawEvent& e, Category category, int64_t begin, int64_t length) {
  const bool lane = category == Category::lane, copy = category == Category::copy;
  const std::optional<Work> work = lane ? work_of_lane(e) : copy ? Work::memory : Work::compute;
  if (!work) return;
  // what a rank does by itself for a message is not the message
  const bool local = lane && *work == Work::compute &&
      (e.name.starts_with("dispatch") || e.name.starts_with("combine"));
  recording_.gpu.push_back({.begin = begin,
      .end = begin + length,
      .correlation = whole(e.correlation, -1),
      .name = names_.id(e.name),
      .stream = stream_of(e),
      .collective = collective_of(e, *work),
      .component = lane ? names_.id((local ? "local " : "") + e.name) : -1,
      .layer = int32_t(whole(e.layer, -1)),
      .grid = e.grid,
      .source = Source(category),
      .work = *work,
      .blocks = e.blocks && *work == Work::comm});
}

int32_t EventSink::collective_of(const RawEvent& e, Work work) {
  const auto part = [&](const Number& number) { return cat("|", whole(number, -1)); };
  if (work == Work::comm)  // a lane's
    recording_.collectives.push_back({names_.id(cat("duet|", e.name, part(e.step), part(e.stage),
                                          part(e.microbatch), part(e.layer), "|", e.ranks)),
        whole(e.bytes, 0)});
  else if (e.nccl)
    recording_.collectives.push_back(
        {e.seq ? names_.id(cat("nccl|", e.collective, "|", e.group, "|", e.comms_id,
                     part(e.comms_number), part(e.seq)))
               : -1,
            whole(e.elements_in, 0) * size_of(e.dtype)});
  else
    return -1;
  return int32_t(recording_.collectives.size()) - 1;
}

int32_t EventSink::thread_of(const RawEvent& e) {
  const Thread thread = thread_in_file(e);
  const auto [found, added] = threads_.emplace(thread, int32_t(threads_.size()));
  if (added) recording_.threads.push_back(thread);
  return found->second;
}

int32_t EventSink::stream_of(const RawEvent& e) {
  const Thread row = thread_in_file(e);
  const int64_t device = whole(e.device, row.pid), number = whole(e.stream, row.tid);
  const auto [found, added] =
      streams_.emplace(Thread{device, number}, int32_t(recording_.streams.size()));
  if (added) {
    const bool lane = category_of(e.cat) == Category::lane;
    recording_.streams.push_back({device,
        lane                               ? e.cat
            : e.stream || e.thread.empty() ? std::to_string(number)
                                           : e.thread});
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
    if (e.source != Source::kernel) continue;
    begins[size_t(e.stream)].push_back(e.begin);
    ends[size_t(e.stream)].push_back(e.end);
  }
  for (auto* times : {&begins, &ends})
    for (auto& stream : *times) std::sort(stream.begin(), stream.end());
  const auto covering = [&](const GpuEvent& e) {
    if (e.source != Source::kernel) return false;
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
      if (e && category_of(e->cat) <= Category::lane)
        ++recording_.left_out["a beginning without its end"];
  drop_timestamps_of_zero();
  drop_covering();
  recording_.base = base_.value_or(0);
  recording_.rank = rank;
  return std::move(recording_);
}

}  // namespace duet
