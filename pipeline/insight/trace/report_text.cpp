// See report.h.
#include <algorithm>
#include <functional>
#include <ostream>

#include "model/base/check.h"
#include "model/base/text.h"
#include "pipeline/insight/trace/report.h"

namespace duet {
namespace {

// Of a C++ kernel's signature the function's own name.
std::string plain(std::string kernel) {
  constexpr std::string_view kAnonymous = "(anonymous namespace)::";
  for (size_t at; (at = kernel.find(kAnonymous)) != kernel.npos;)
    kernel.erase(at, kAnonymous.size());
  if (kernel.starts_with("void ")) kernel.erase(0, 5);
  kernel.resize(std::min(kernel.find_first_of("(<", 1), kernel.size()));
  const size_t scope = kernel.rfind("::");
  return scope == kernel.npos ? kernel : kernel.substr(scope + 2);
}

// What a kernel is called where there is room for little: its component, else its name.
std::string label(const Analysis& a, const GpuEvent* e, size_t n) {
  if (!e) return "nothing";
  const std::string& component = a.names[e->component];
  const bool known = component != "unattributed" && component != "outside annotations";
  return e->own ? fitted(component, n)
                : fitted((known ? component + " " : "") + plain(a.names[e->name]), n);
}

void say_files(std::ostream& out, const Analysis& a) {
  int64_t bytes = 0, events = 0, kernels[3] = {};
  for (const Recording& r : a.recordings) bytes += r.bytes, events += r.events;
  for (const RankTrace& r : a.ranks)
    for (int w = 0; w < 3; ++w) kernels[w] += r.measure.kernels[w];
  const std::string what = a.recordings.size() == 1
      ? a.recordings[0].file
      : cat(a.recordings.size(), " files, ", a.recordings[0].file, " ...");
  out << what << format(": %.1f MB, ", double(bytes) / 1e6) << events << " events, "
      << a.ranks.size() << (a.ranks.size() == 1 ? " rank; " : " ranks; ")
      << kernels[0] + kernels[1] + kernels[2] << " GPU events: " << kernels[0] << " compute, "
      << kernels[1] << " communication, " << kernels[2] << " memory; "
      << format("%.3f s, %.0f MB/s\n", a.seconds, double(bytes) / 1e6 / a.seconds);
  for (const std::string& w : a.warnings) out << "warning: " << w << "\n";
  for (const auto& [what, n] : a.left_out) out << "left out: " << n << " with " << what << "\n";
}

void say_rank(std::ostream& out, const RankTrace& rank) {
  const Measure& m = rank.measure;
  const double span = std::max<double>(1, double(m.overlap.span));
  out << format("\nrank %lld: span %.3f ms\n", (long long)rank.number, ms(m.overlap.span));
  const std::pair<const char*, int64_t> rows[] = {{"compute", m.overlap.compute},
      {"communication", m.overlap.comm}, {"  covered", m.overlap.covered},
      {"  exposed", m.exposed()}, {"memory", m.memory}, {"idle", m.idle}};
  for (const auto& [name, time] : rows)
    out << format("  %-15s%s %10.3f ms %5.1f%%\n", name, bar(double(time) / span, 40).c_str(),
        ms(time), 100 * double(time) / span);
  if (const auto ratio = m.ratio())
    out << format("  %.1f%% of the communication is covered;", 100 * *ratio);
  if (const auto speedup = m.speedup())
    out << format(" %.2fx faster than one after the other (%.3f ms)", *speedup, ms(m.serial()));
  if (const auto efficiency = m.efficiency())
    out << format(
        "; overlap efficiency %.1f%%, lower bound %.3f ms", 100 * *efficiency, ms(m.lower_bound()));
  out << "\n";
}

void say_ranks(std::ostream& out, const Analysis& a) {
  if (a.ranks.size() == 1) return say_rank(out, a.ranks[0]);
  out << "\n  rank     span ms    compute      comm   covered   exposed      idle   clock us\n";
  for (const RankTrace& rank : a.ranks) {
    const Measure& m = rank.measure;
    out << format("  %4lld  %10.3f %10.3f%10.3f%10.3f%10.3f%10.3f  %+.1f +- %.1f\n",
        (long long)rank.number, ms(m.overlap.span), ms(m.overlap.compute), ms(m.overlap.comm),
        ms(m.overlap.covered), ms(m.exposed()), ms(m.idle), us(rank.clock_moved),
        us(rank.clock_error));
  }
  Overlap steps, pairs;
  for (const RankTrace& rank : a.ranks) steps += rank.measure.overlap, pairs += rank.pairs;
  out << "steps  mean of ranks: " << overlap_line(steps, int(a.ranks.size())) << "\n";
  if (pairs.span > 0)
    out << "pairs  mean of ranks: " << overlap_line(pairs, int(a.ranks.size())) << "\n";
}

void say_components(std::ostream& out, const Analysis& a) {
  std::map<int32_t, Component> sums;
  for (const RankTrace& rank : a.ranks)
    for (const auto& [name, c] : rank.components) {
      Component& row = sums[name];
      row.busy += c.busy, row.count += c.count;
      row.median = std::max(row.median, c.median), row.work = c.work;
    }
  std::vector<std::pair<int32_t, Component>> rows(sums.begin(), sums.end());
  std::ranges::stable_sort(rows, std::greater{}, [](const auto& x) { return x.second.busy; });
  const int64_t most = rows.empty() ? 1 : std::max<int64_t>(1, rows[0].second.busy);
  out << "\ncomponents, by busy time            busy ms   events  median us  class\n";
  for (size_t i = 0; i < rows.size() && i < 12; ++i) {
    const auto& [name, row] = rows[i];
    out << format("  %-20s%s %10.3f %8lld %10.1f  %s\n", fitted(a.names[name], 19).c_str(),
        bar(double(row.busy) / double(most), 10).c_str(), ms(row.busy), (long long)row.count,
        us(row.median), kWorks[int(row.work)]);
  }
  if (rows.size() > 12) out << "  and " << rows.size() - 12 << " more\n";
}

void say_conflicts(std::ostream& out, const Analysis& a, size_t top) {
  int64_t sums[6] = {}, counts[6] = {};
  for (const Conflict& c : a.conflicts) sums[int(c.cause)] += c.lost, ++counts[int(c.cause)];
  out << "\nlost ms (points)";
  for (int cause = 0; cause < 6; ++cause)
    if (counts[cause])
      out << format("%s %s %.3f (%lld)", cause < 5 ? "  exposed," : "  slowed,", kCauses[cause],
          ms(sums[cause]), (long long)counts[cause]);
  if (a.conflicts.empty()) {
    out << "  none\n";
    return;
  }
  out << "\n   lost ms      at ms  cause       communication                       "
         "who waited, or was slowed\n";
  for (size_t i = 0; i < std::min(top, a.conflicts.size()); ++i) {
    const Conflict& c = a.conflicts[i];
    const std::string rank = a.ranks.size() > 1 ? cat("r", a.ranks[c.rank].number, " ") : "";
    out << format("%10.3f %10.3f  %-11s %-35s ", ms(c.lost),
               a.since_origin_us(c.rank, c.time.begin) / 1000, kCauses[int(c.cause)],
               (rank + label(a, c.comm, 34 - rank.size())).c_str())
        << label(a, c.waiting, 36);
    if (c.slowed()) out << " (" << c.with << " beside, " << c.without << " alone)";
    out << "\n";
  }
}

void say_slack(std::ostream& out, const Analysis& a) {
  std::map<std::pair<int32_t, int32_t>, std::vector<int64_t>> rows;
  for (const Slack& s : a.slacks) rows[{s.comm, s.consumer}].push_back(s.slack);
  if (rows.empty()) return;
  out << "\nslack: how much longer it could have taken for nothing   median us   least     most  "
         "with some\n";
  for (const auto& [who, slack] : rows) {
    const auto [least, most] = std::ranges::minmax(slack);
    const auto some = std::ranges::count_if(slack, [](int64_t ns) { return ns >= 10'000; });
    out << format("  %-53s%11.1f %8.1f %8.1f  %lld of %zu\n",
        cat(a.names[who.first], ", for ", a.names[who.second]).c_str(), us(median(slack)),
        us(least), us(most), (long long)some, slack.size());
  }
}

void say_collectives(std::ostream& out, const Analysis& a) {
  if (a.matched.by_name.empty()) return;
  out << "\ncollectives matched over ranks: waiting for the last to arrive, then transfer, ms in "
         "all\n";
  for (const auto& [name, c] : a.matched.by_name) {
    const auto last = std::ranges::max_element(c.last, {}, [](const auto& x) { return x.second; });
    out << format(
        "  %-34s%5lld x  waiting %9.3f  transfer %9.3f  last most often: rank %lld (%lld)",
        fitted(plain(a.names[name]), 33).c_str(), (long long)c.count, ms(c.waiting), ms(c.transfer),
        (long long)last->first, (long long)last->second);
    if (!c.bandwidth.empty()) {
      const auto mean = [](const auto& x) { return x.second.second / double(x.second.first); };
      const auto [least, most] = std::ranges::minmax_element(c.bandwidth, {}, mean);
      out << format("\n      %lld to %lld bytes, %.3f to %.3f GB/s",
          (long long)c.bandwidth.begin()->first, (long long)c.bandwidth.rbegin()->first,
          mean(*least), mean(*most));
    }
    out << "\n";
  }
}

void say_nothing_is_comm(std::ostream& out, const Analysis& a) {
  out << "\nNOTHING WAS CLASSED AS COMMUNICATION, so overlap says nothing. Most time went to:\n";
  for (const auto& [name, busy, count] : a.most_time(10))
    out << format("%12.3f ms %7lld x  ", ms(busy), (long long)count)
        << fitted(plain(a.names[name]), 70) << "\n";
  out << "If some of these communicate, say so: --classify rules.json with\n"
         "  {\"rules\": [{\"name\": \"REGULAR EXPRESSION\", \"class\": \"communication\"}]}\n";
}

}  // namespace

void report_text(std::ostream& out, const Analysis& a, const AnalyzeOptions& options) {
  say_files(out, a);
  say_ranks(out, a);
  say_components(out, a);
  if (a.nothing_is_comm()) return say_nothing_is_comm(out, a);
  say_conflicts(out, a, options.top > 0 ? size_t(options.top) : 10);
  say_slack(out, a);
  say_collectives(out, a);
}

}  // namespace duet
