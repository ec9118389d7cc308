// See analysis.h.
#include "pipeline/insight/trace/analysis.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "model/base/check.h"
#include "model/base/clock.h"
#include "pipeline/insight/trace/attribute.h"
#include "pipeline/insight/trace/classify.h"
#include "pipeline/insight/trace/reader.h"

namespace duet {
namespace {

namespace fs = std::filesystem;

// Files as they are; of a folder those that may be traces, in the order of their names.
std::vector<std::string> files_of(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    if (!fs::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    std::set<std::string> traces;
    for (const fs::directory_entry& entry : fs::directory_iterator(path))
      if (const std::string extension = entry.path().extension();
          entry.is_regular_file() && (extension == ".json" || extension == ".gz"))
        traces.insert(entry.path());
    require(!traces.empty(), path, ": expected traces, found a folder without .json and .gz files");
    files.insert(files.end(), traces.begin(), traces.end());
  }
  return files;
}

void require_gpu_events(const Recording& r) {
  std::string left_out;
  for (const auto& [what, n] : r.left_out) left_out += cat("; left out: ", n, " with ", what);
  require(!r.gpu.empty(), r.file, ": expected GPU events, found none among ", r.events, " events",
      left_out,
      ". Record them with torch.profiler.profile(activities=[ProfilerActivity.CPU, "
      "ProfilerActivity.CUDA]) (CUDA also for ROCm), or with duet train --trace");
}

void finish(Analysis& a) {
  a.ranks = make_ranks(a.recordings, a.names);
  a.matched = match_collectives(a.ranks, a.names);
  for (const Recording& r : a.recordings) {
    for (const auto& [what, n] : r.left_out) a.left_out[what] += n;
    for (const std::string& w : r.warnings) a.warnings.push_back(r.file + ": " + w);
  }
  if (a.matched.contradictions > 0)
    a.warnings.push_back(cat(a.matched.contradictions,
        " collectives are left out of skew: one rank was done before another came, so they are not "
        "the same or nothing was to be waited for"));
  a.origin = INT64_MAX;
  for (size_t i = 0; i < a.ranks.size(); ++i) {
    const RankTrace& rank = a.ranks[i];
    a.origin = std::min(a.origin, rank.events[0].begin + rank.to_common);
    for (const auto& found :
        {exposed_by_cause(rank, i, a.matched.waiting[i]), slowed_by_comm(rank, i)})
      a.conflicts.insert(a.conflicts.end(), found.begin(), found.end());
    const std::vector<Slack> slacks = slack_of_dependencies(rank, i, a.names);
    a.slacks.insert(a.slacks.end(), slacks.begin(), slacks.end());
  }
  std::ranges::stable_sort(a.conflicts, std::greater{}, &Conflict::lost);
}

void add(Analysis& a, Recording recording, const Classifier& classifier) {
  require_gpu_events(recording);
  attribute(recording, a.names);
  classifier.classify(recording, a.names);
  std::vector<LaunchCall>().swap(recording.launches);
  std::vector<Annotation>().swap(recording.annotations);
  a.recordings.push_back(std::move(recording));
}

}  // namespace

bool Analysis::nothing_is_comm() const {
  return std::ranges::all_of(ranks, [](const RankTrace& r) { return r.measure.kernels[1] == 0; });
}

std::vector<std::tuple<int32_t, int64_t, int64_t>> Analysis::most_time(size_t n) const {
  std::unordered_map<int32_t, std::pair<int64_t, int64_t>> sums;
  for (const RankTrace& rank : ranks)
    for (const GpuEvent& e : rank.events)
      if (e.work < Work::wait) sums[e.name].first += e.end - e.begin, ++sums[e.name].second;
  std::vector<std::tuple<int32_t, int64_t, int64_t>> all;
  for (const auto& [name, sum] : sums) all.push_back({name, sum.first, sum.second});
  std::ranges::sort(
      all, {}, [](const auto& x) { return std::pair(-std::get<1>(x), std::get<0>(x)); });
  all.resize(std::min(n, all.size()));
  return all;
}

Analysis analyze(const AnalyzeOptions& options) {
  const Classifier classifier(options.rules, options.by_annotation);
  const double start = seconds_now();
  Analysis a;
  for (const std::string& file : files_of(options.traces))
    add(a, read_trace(file, read_trace_file(file), a.names), classifier);
  finish(a);
  a.seconds = seconds_now() - start;
  return a;
}

Analysis analyze_bytes(std::string_view bytes) {
  Analysis a;
  add(a, read_trace("trace", read_memory(bytes), a.names), Classifier("", false));
  finish(a);
  return a;
}

}  // namespace duet
