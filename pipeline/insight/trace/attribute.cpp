// See attribute.h.
#include "pipeline/insight/trace/attribute.h"

#include <algorithm>
#include <set>
#include <span>

namespace duet {
namespace {

// For each of `queries` (launches), the annotation among `open` that began last and still goes on;
// -1: none. Both are sorted by time. As time only moves on, an annotation that is over stays so.
template <class Found>
void innermost(const std::vector<Annotation>& all, const std::vector<int32_t>& open,
    const std::vector<const LaunchCall*>& queries, Found found) {
  std::vector<int32_t> stack;
  size_t next = 0;
  for (const LaunchCall* launch : queries) {
    for (; next < open.size() && all[size_t(open[next])].begin <= launch->at; ++next)
      stack.push_back(open[next]);
    while (!stack.empty() && all[size_t(stack.back())].end <= launch->at) stack.pop_back();
    if (!stack.empty()) found(launch, stack.back());
  }
}

// The annotation of each launch: of its thread, else of its process.
std::vector<int32_t> annotations_of(const Recording& r) {
  std::vector<int32_t> annotation(r.launches.size(), -1);
  for (const bool whole_process : {false, true}) {
    const auto group_of = [&](int32_t thread) {
      const Thread& t = r.threads[size_t(thread)];
      return whole_process ? Thread{t.pid, 0} : t;
    };
    std::map<Thread, std::pair<std::vector<int32_t>, std::vector<const LaunchCall*>>> groups;
    for (size_t i = 0; i < r.annotations.size(); ++i)
      groups[group_of(r.annotations[i].thread)].first.push_back(int32_t(i));
    for (size_t i = 0; i < r.launches.size(); ++i)
      if (annotation[i] < 0)
        groups[group_of(r.launches[i].thread)].second.push_back(&r.launches[i]);
    for (auto& [group, members] : groups) {
      std::stable_sort(members.second.begin(), members.second.end(),
          [](const LaunchCall* a, const LaunchCall* b) { return a->at < b->at; });
      innermost(
          r.annotations, members.first, members.second, [&](const LaunchCall* launch, int32_t a) {
            annotation[size_t(launch - &r.launches[0])] = a;
          });
    }
  }
  return annotation;
}

// Launches by correlation id; those of one id by process.
struct Launches {
  explicit Launches(const Recording& r) : recording(r) {
    for (size_t i = 0; i < r.launches.size(); ++i) order.push_back(int32_t(i));
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return r.launches[size_t(a)].correlation < r.launches[size_t(b)].correlation;
    });
  }
  int64_t pid(int32_t launch) const {
    return recording.threads[size_t(recording.launches[size_t(launch)].thread)].pid;
  }
  // A few: an id that stands for many launches tells nothing.
  std::span<const int32_t> of(int64_t correlation) const {
    const auto id = [&](int32_t i) { return recording.launches[size_t(i)].correlation; };
    const auto first = std::ranges::lower_bound(order, correlation, {}, id);
    auto last = first;
    while (last != order.end() && last - first < 32 && id(*last) == correlation) ++last;
    return {first, last};
  }
  const Recording& recording;
  std::vector<int32_t> order;
};

// The process whose launches fit a device's kernels best. Where several fit as well (merged files
// count correlation ids from 1 in each), devices and processes pair up in their order.
std::map<int64_t, int64_t> process_of_devices(const Recording& r, const Launches& launches) {
  std::map<int64_t, std::map<int64_t, int64_t>> votes;  // device, process
  for (const GpuEvent& e : r.gpu)
    for (const int32_t launch : launches.of(e.correlation))
      if (r.launches[size_t(launch)].at <= e.begin)
        ++votes[r.streams[size_t(e.stream)].device][launches.pid(launch)];
  std::map<int64_t, int64_t> process;
  std::set<int64_t> taken;
  for (const auto& [device, by_pid] : votes) {
    std::pair<int64_t, bool> best{0, false};
    for (const auto& [pid, n] : by_pid)
      if (const std::pair<int64_t, bool> found{n, !taken.contains(pid)}; found > best) {
        best = found;
        process[device] = pid;
      }
    taken.insert(process[device]);
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
  std::sort(r.annotations.begin(), r.annotations.end(), [](const auto& a, const auto& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end > b.end;
  });
  std::map<std::pair<int64_t, int32_t>, int32_t> count;  // by process and name
  std::vector<int32_t> layer;
  for (const Annotation& a : r.annotations)
    layer.push_back(count[{r.threads[size_t(a.thread)].pid, a.name}]++);
  const std::vector<int32_t> annotation = annotations_of(r);
  const Launches launches(r);
  const std::map<int64_t, int64_t> process = process_of_devices(r, launches);
  const int32_t unattributed = names.id("unattributed"), outside = names.id("outside annotations");

  std::vector<std::pair<int32_t, GpuEvent*>> under;  // by annotation
  for (GpuEvent& e : r.gpu) {
    if (e.source == Source::lane) continue;
    e.component = unattributed;
    const auto found = launches.of(e.correlation);
    if (e.correlation < 0 || found.empty()) continue;
    int32_t launch = found.front();
    if (const auto owner = process.find(r.streams[size_t(e.stream)].device); owner != process.end())
      for (const int32_t i : found)
        if (launches.pid(i) == owner->second) {
          launch = i;
          break;
        }
    e.launched = r.launches[size_t(launch)].at;
    const int32_t a = annotation[size_t(launch)];
    e.component = a < 0 ? outside : r.annotations[size_t(a)].name;
    if (a < 0) continue;
    if (e.layer < 0) e.layer = layer[size_t(a)];
    under.push_back({a, &e});
  }
  std::sort(under.begin(), under.end(), [](const auto& x, const auto& y) {
    return std::tuple(x.first, x.second->launched, x.second->begin) <
        std::tuple(y.first, y.second->launched, y.second->begin);
  });
  for (size_t i = 1; i < under.size(); ++i)
    if (under[i].first == under[i - 1].first)
      under[i].second->ordinal = under[i - 1].second->ordinal + 1;
}

}  // namespace duet
