// See measure.h.
#include "pipeline/insight/trace/measure.h"

#include <array>
#include <set>

#include "pipeline/insight/trace/attribute.h"

namespace duet {
namespace {

void measure_components(RankTrace& rank, const Names& names) {
  struct Parts {
    std::vector<Interval> times;
    std::vector<int64_t> durations;
    std::map<int32_t, std::vector<Interval>> layers;
    int64_t by_work[3] = {};
    bool own = false;
  };
  std::map<int32_t, Parts> parts;
  for (const GpuEvent& e : rank.events) {
    if (e.work >= Work::wait) continue;
    Parts& p = parts[e.component];
    const int64_t waits = e.work == Work::compute ? length(clipped(rank.wait, e)) : 0;
    p.times.push_back(e);
    p.durations.push_back(e.end - e.begin - waits);
    p.layers[e.layer].push_back(e);
    p.by_work[int(e.work)] += e.end - e.begin;
    p.own |= e.own;
  }
  for (auto& [name, p] : parts) {
    Component& c = rank.components[name];
    c.count = int64_t(p.durations.size());
    c.work = Work(std::max_element(p.by_work, p.by_work + 3) - p.by_work);
    const Times none, &waiting = c.work == Work::compute ? rank.wait : none;
    c.busy = length(without(merged(std::move(p.times)), waiting));
    c.median = median(std::move(p.durations));
    c.phase = phase_of(names[name]);
    std::vector<int64_t> occurrences;
    for (auto& [layer, times] : p.layers) {
      occurrences.push_back(length(without(merged(std::move(times)), waiting)));
      if (c.phase) c.layers[layer] = occurrences.back();
    }
    c.median_occurrence = p.own ? c.median : median(std::move(occurrences));
  }
}

void measure(RankTrace& rank, const Names& names) {
  std::ranges::sort(rank.events, {}, [](const GpuEvent& e) { return std::pair(e.begin, -e.end); });
  Measure& m = rank.measure;
  std::vector<Interval> of[6];                                      // by Work
  std::map<int32_t, std::array<std::vector<Interval>, 3>> streams;  // by Work
  for (const GpuEvent& e : rank.events) {
    of[int(e.work)].push_back(e);
    if (e.blocks) of[int(Work::wait)].push_back(e);
    if (e.work >= Work::wait) continue;
    ++m.kernels[int(e.work)];
    ++rank.streams[e.stream].events;
    streams[e.stream][size_t(e.work)].push_back(e);
  }
  const auto times = [&](Work work) { return merged(std::move(of[int(work)])); };
  Times window = times(Work::step);
  if (window.empty())
    window =
        merged({{rank.events[0].begin, std::ranges::max(rank.events, {}, &GpuEvent::end).end}});
  rank.wait = times(Work::wait);
  const Times compute = without(times(Work::compute), rank.wait), comm = times(Work::comm),
              memory = common(window, times(Work::memory));
  rank.compute = common(window, compute);
  rank.comm = common(window, comm);

  m.overlap = overlap_within(window, compute, comm);
  rank.pairs = overlap_within(times(Work::pair), compute, comm);
  m.memory = length(memory);
  m.idle = length(without(without(without(window, rank.compute), rank.comm), memory));
  for (auto& [stream, works] : streams)
    for (size_t w = 0; w < 3; ++w)
      rank.streams[stream].busy[w] = length(merged(std::move(works[w])));
  measure_components(rank, names);
}

// What distributedInfo says where it tells the files apart, else the GPU, else a running number.
void number(std::vector<RankTrace>& ranks) {
  for (const int attempt : {0, 1, 2}) {
    std::set<int64_t> seen;
    for (size_t i = 0; i < ranks.size(); ++i) {
      const std::optional<int64_t>& said = ranks[i].recording->rank;
      ranks[i].number = attempt == 0 && said ? *said : attempt < 2 ? ranks[i].device : int64_t(i);
      if (ranks[i].number >= 0) seen.insert(ranks[i].number);  // below: text in its place
    }
    if (seen.size() == ranks.size()) return;
  }
}

}  // namespace

int64_t median(std::vector<int64_t> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + int64_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2) return *middle;
  const int64_t below = *std::max_element(values.begin(), middle);
  return below + (*middle - below) / 2;
}

std::vector<RankTrace> make_ranks(std::vector<Recording>& recordings, const Names& names) {
  std::vector<RankTrace> ranks;
  for (Recording& recording : recordings) {
    std::map<int64_t, std::vector<GpuEvent>> devices;
    for (const GpuEvent& e : recording.gpu)
      devices[recording.streams[size_t(e.stream)].device].push_back(e);
    std::vector<GpuEvent>().swap(recording.gpu);
    for (auto& [device, events] : devices) {
      RankTrace& rank = ranks.emplace_back();
      rank.device = device;
      rank.recording = &recording;
      rank.events = std::move(events);
      measure(rank, names);
    }
  }
  number(ranks);
  std::ranges::stable_sort(ranks, {}, &RankTrace::number);
  return ranks;
}

}  // namespace duet
