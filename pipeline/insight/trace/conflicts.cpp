// See conflicts.h.
#include "pipeline/insight/trace/conflicts.h"

#include <algorithm>
#include <tuple>

#include "pipeline/insight/trace/attribute.h"

namespace duet {
namespace {

constexpr int64_t kMicroGap = 10'000;  // ns

// Events of one kind by when they began and by when they ended.
struct Sorted {
  Sorted(const RankTrace& rank, Work work) {
    for (const GpuEvent& e : rank.events)
      if (e.work == work && e.begin < e.end) by_begin.push_back(&e);
    by_end = by_begin;
    std::ranges::stable_sort(by_end, {}, &GpuEvent::end);
  }
  // The last to end at or before `time`; null: none.
  const GpuEvent* ended_before(int64_t time) const {
    const auto after = std::ranges::upper_bound(by_end, time, {}, &GpuEvent::end);
    return after == by_end.begin() ? nullptr : *(after - 1);
  }
  // One that goes on at `time`, the latest begun of the last few; null: none.
  const GpuEvent* going_on(int64_t time) const {
    auto after = std::ranges::upper_bound(by_begin, time, {}, &GpuEvent::begin);
    for (int i = 0; i < 64 && after != by_begin.begin(); ++i)
      if ((*--after)->end > time) return *after;
    return nullptr;
  }
  std::vector<const GpuEvent*> by_begin, by_end;
};

// What begins to compute at or after a time, and when. Of duet's own also where a phase goes on
// after a wait.
std::pair<const GpuEvent*, int64_t> next_compute(
    const RankTrace& rank, const Sorted& compute, int64_t time) {
  const auto next = std::ranges::lower_bound(rank.compute, time, {}, &Interval::begin);
  if (next == rank.compute.end()) return {nullptr, 0};
  const auto event = std::ranges::lower_bound(compute.by_begin, next->begin, {}, &GpuEvent::begin);
  const bool begins = event != compute.by_begin.end() && (*event)->begin == next->begin;
  return {begins ? *event : compute.going_on(next->begin), next->begin};
}

}  // namespace

std::vector<Conflict> exposed_by_cause(const RankTrace& rank, size_t index, const Times& waiting) {
  std::vector<Conflict> points;
  const Sorted comm(rank, Work::comm), memory(rank, Work::memory), compute(rank, Work::compute);
  for (const Interval& gap : without(rank.comm, rank.compute)) {
    const auto add = [&](Cause cause, const Interval& time, const GpuEvent* by,
                         const GpuEvent* waits) {
      points.push_back({cause, index, time, time.end - time.begin, by, waits});
    };
    const auto [next, at] = next_compute(rank, compute, gap.end);
    if (gap.end - gap.begin < kMicroGap) {
      add(Cause::micro_gap, gap, comm.going_on(gap.begin), next);
      continue;
    }
    const Times skew = clipped(waiting, gap);
    for (const Interval& time : skew) add(Cause::skew, time, comm.going_on(time.begin), next);
    const GpuEvent* done = next ? comm.ended_before(at) : nullptr;
    const GpuEvent* copied = next ? memory.ended_before(at) : nullptr;
    const bool host = next && next->launched > gap.begin;
    const bool waited =
        !host && done && done->end > gap.begin && (!copied || copied->end <= done->end);
    for (const Interval& time : without({gap}, skew))
      add(host         ? Cause::host
              : waited ? Cause::dependency
                       : Cause::other,
          time, waited ? done : comm.going_on(time.begin), next);
  }
  return points;
}

std::vector<Conflict> slowed_by_comm(const RankTrace& rank, size_t index) {
  struct Sample {
    const GpuEvent* event;
    int64_t duration, beside;
  };
  using Same = std::tuple<int32_t, int32_t, int32_t, uint32_t>;
  std::map<Same, std::vector<Sample>> kernels;
  const Times comm_apart = without(rank.comm, rank.wait);
  for (const GpuEvent& e : rank.events) {
    if (e.work != Work::compute) continue;
    kernels[{e.component, e.ordinal, e.name, e.grid}].push_back(
        {&e, e.end - e.begin - length(clipped(rank.wait, e)), length(clipped(comm_apart, e))});
  }
  std::vector<Conflict> points;
  const Sorted comm(rank, Work::comm);
  for (const auto& [same, samples] : kernels) {
    std::vector<int64_t> alone;
    int64_t with = 0;
    for (const Sample& s : samples) {
      if (s.beside * 20 <= s.duration) alone.push_back(s.duration);
      with += s.duration > 0 && s.beside * 2 >= s.duration;
    }
    if (alone.empty() || with == 0) continue;
    const int64_t usual = median(alone);
    for (const Sample& s : samples) {
      if (s.beside * 2 < s.duration || s.duration <= usual) continue;
      const Times covered = clipped(comm_apart, *s.event);
      points.push_back({Cause::contention, index, *s.event, s.duration - usual,
          comm.going_on(covered[0].begin), s.event, with, int64_t(alone.size())});
    }
  }
  std::ranges::stable_sort(points, {}, [](const Conflict& c) { return c.time.begin; });
  return points;
}

// --- slack ---

std::vector<Slack> slack_of_dependencies(const RankTrace& rank, size_t index, const Names& names) {
  std::map<int32_t, std::pair<std::string_view, char>> parts;  // by component
  for (const auto& [name, c] : rank.components)
    parts[name] = {part_of(names[name]), c.phase == 'I' ? 'B' : c.phase};
  std::vector<GpuEvent> transfers;  // the kernels of one dispatch or combine as one
  std::map<std::pair<int32_t, int32_t>, size_t> last;  // by component and stream
  // by part, pass and, of duet's own, layer: annotations count as they come
  std::map<std::tuple<std::string_view, char, int32_t>, std::vector<const GpuEvent*>> begins;
  for (const GpuEvent& e : rank.events) {
    if (e.work >= Work::wait || e.component < 0) continue;
    const auto& [part, pass] = parts[e.component];
    if (part.empty() || (pass != 'F' && pass != 'B')) continue;
    if (part != "dispatch" && part != "combine") {
      if (e.work == Work::compute) begins[{part, pass, e.own ? e.layer : -1}].push_back(&e);
      continue;
    }
    const auto found = last.find({e.component, e.stream});
    if (found != last.end() && !e.own && transfers[found->second].layer == e.layer) {
      transfers[found->second].end = std::max(transfers[found->second].end, e.end);
      continue;
    }
    last[{e.component, e.stream}] = transfers.size();
    transfers.push_back(e);
  }
  std::vector<Slack> slacks;
  std::map<int32_t, std::pair<int64_t, int64_t>> later;  // by stream: the next's begin and slack
  for (auto t = transfers.rbegin(); t != transfers.rend(); ++t) {
    const auto& [part, pass] = parts[t->component];
    const bool to_experts = (part == "dispatch") == (pass == 'F');
    const int32_t layer =
        !t->own ? -1 : t->layer + (part == "combine" && pass == 'F');  // the next one's
    const auto& consumers = begins[{to_experts ? "experts" : "attention", pass, layer}];
    const auto consumer = std::ranges::lower_bound(consumers, t->end, {}, &GpuEvent::begin);
    const bool found = consumer != consumers.end();
    int64_t slack = found ? (*consumer)->begin - t->end : INT64_MAX;
    if (const auto next = later.find(t->stream); next != later.end())
      if (const auto [begin, rest] = next->second; rest != INT64_MAX)
        slack = std::min(slack, std::max<int64_t>(0, begin - t->end) + rest);
    later[t->stream] = {t->begin, slack};
    if (!found) continue;
    slacks.push_back(
        {index, t->component, (*consumer)->component, t->layer, t->end - t->begin, slack});
  }
  std::reverse(slacks.begin(), slacks.end());
  return slacks;
}

}  // namespace duet
