// See attribute.h.
#include "pipeline/insight/trace/attribute.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <span>
#include <tuple>

namespace duet {
namespace {

// The annotation of each launch: the one that began last and still goes on, of those of its thread,
// else of its process; -1: none. As time only moves on, an annotation that is over stays so.
std::vector<int32_t> annotations_of(const Recording& r) {
  std::vector<int32_t> annotation(r.launches.size(), -1);
  std::vector<size_t> in_time(r.launches.size());
  std::iota(in_time.begin(), in_time.end(), 0);
  std::ranges::stable_sort(in_time, {}, [&](size_t i) { return r.launches[i].at; });
  for (const bool whole_process : {false, true}) {
    std::map<Thread, std::vector<int32_t>> open;
    const auto open_in = [&](const Thread& t) -> std::vector<int32_t>& {
      return open[whole_process ? Thread{t.pid, 0} : t];
    };
    size_t next = 0;
    for (const size_t i : in_time) {
      const int64_t at = r.launches[i].at;
      for (; next < r.annotations.size() && r.annotations[next].begin <= at; ++next)
        open_in(r.annotations[next].thread).push_back(int32_t(next));
      if (annotation[i] >= 0) continue;
      std::vector<int32_t>& stack = open_in(r.launches[i].thread);
      while (!stack.empty() && r.annotations[size_t(stack.back())].end <= at) stack.pop_back();
      if (!stack.empty()) annotation[i] = stack.back();
    }
  }
  return annotation;
}

// The launches of a correlation id. A few: an id that stands for many launches tells nothing.
std::span<const LaunchCall> launches_of(const Recording& r, int64_t correlation) {
  const auto id = &LaunchCall::correlation;
  const auto begin = std::ranges::lower_bound(r.launches, correlation, {}, id);
  const auto end = std::ranges::upper_bound(r.launches, correlation, {}, id);
  return {begin, std::min<size_t>(32, size_t(end - begin))};
}

// The process whose launches fit a device's kernels best. Where several fit as well (merged files
// count correlation ids from 1 in each), devices and processes pair up in their order.
std::map<int64_t, int64_t> process_of_devices(const Recording& r) {
  std::map<int64_t, std::map<int64_t, int64_t>> votes;  // device, process
  for (const GpuEvent& e : r.gpu)
    for (const LaunchCall& launch : launches_of(r, e.correlation))
      if (launch.at <= e.begin) ++votes[r.streams[size_t(e.stream)].device][launch.thread.pid];
  std::map<int64_t, int64_t> process;
  std::set<int64_t> taken;
  for (const auto& [device, by_pid] : votes) {
    const auto best = std::ranges::max_element(by_pid, {}, [&](const auto& votes_of_pid) {
      return std::pair(votes_of_pid.second, !taken.contains(votes_of_pid.first));
    });
    process[device] = best->first;
    taken.insert(best->first);
  }
  return process;
}

}  // namespace

char phase_of(std::string_view component) {
  const size_t n = component.size();
  if (n < 3) return 0;
  const bool brackets = component[n - 1] == ')' && component[n - 3] == '(';
  const char phase = component[brackets ? n - 2 : n - 1];
  const bool known = phase == 'F' || phase == 'B' || phase == 'I' || phase == 'W';
  return known && (brackets || component[n - 2] == ' ') ? phase : 0;
}

std::string_view part_of(const std::string& component) {
  constexpr std::pair<const char*, const char*> kParts[] = {{"dispatch", "dispatch"},
      {"combine", "combine"}, {"mlp", "experts"}, {"expert", "experts"}, {"moe", "experts"},
      {"attn", "attention"}, {"attention", "attention"}};
  const std::string name = lower(component);
  for (const auto& [begin, part] : kParts)
    if (name.starts_with(begin)) return part;
  return "";
}

void attribute(Recording& r, Names& names) {
  std::ranges::sort(
      r.annotations, {}, [](const Annotation& a) { return std::pair(a.begin, -a.end); });
  std::ranges::stable_sort(r.launches, {}, &LaunchCall::correlation);
  std::map<std::pair<int64_t, int32_t>, int32_t> count;  // by process and name
  std::vector<int32_t> layer;
  for (const Annotation& a : r.annotations) layer.push_back(count[{a.thread.pid, a.name}]++);
  const std::vector<int32_t> annotation = annotations_of(r);
  const std::map<int64_t, int64_t> process = process_of_devices(r);
  const int32_t unattributed = names.id("unattributed"), outside = names.id("outside annotations");

  std::vector<std::pair<int32_t, GpuEvent*>> under;  // by annotation
  for (GpuEvent& e : r.gpu) {
    if (e.own) continue;
    e.component = unattributed;
    const auto found = launches_of(r, e.correlation);
    if (e.correlation < 0 || found.empty()) continue;
    const auto owner = process.find(r.streams[size_t(e.stream)].device);
    const auto own = std::ranges::find_if(found, [&](const LaunchCall& launch) {
      return owner != process.end() && launch.thread.pid == owner->second;
    });
    const LaunchCall& launch = own == found.end() ? found.front() : *own;
    e.launched = launch.at;
    const int32_t a = annotation[size_t(&launch - r.launches.data())];
    e.component = a < 0 ? outside : r.annotations[size_t(a)].name;
    if (a < 0) continue;
    if (e.layer < 0) e.layer = layer[size_t(a)];
    under.push_back({a, &e});
  }
  std::ranges::sort(under, {},
      [](const auto& x) { return std::tuple(x.first, x.second->launched, x.second->begin); });
  for (size_t i = 1; i < under.size(); ++i)
    if (under[i].first == under[i - 1].first)
      under[i].second->ordinal = under[i - 1].second->ordinal + 1;
}

}  // namespace duet
