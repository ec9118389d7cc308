// See intervals.h.
#include "pipeline/insight/trace/intervals.h"

#include <algorithm>

#include "model/base/check.h"

namespace duet {

Times merged(std::vector<Interval> intervals) {
  std::ranges::sort(intervals, {}, &Interval::begin);
  Times times;
  for (const Interval& i : intervals) {
    if (i.begin >= i.end) continue;
    if (times.empty() || times.back().end < i.begin)
      times.push_back(i);
    else
      times.back().end = std::max(times.back().end, i.end);
  }
  return times;
}

Times common(const Times& a, const Times& b) {
  Times times;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const Interval both{std::max(a[i].begin, b[j].begin), std::min(a[i].end, b[j].end)};
    if (both.begin < both.end) times.push_back(both);
    a[i].end < b[j].end ? ++i : ++j;
  }
  return times;
}

Times without(const Times& a, const Times& b) {
  Times gaps;  // between the intervals of b
  int64_t from = INT64_MIN;
  for (const Interval& i : b) {
    gaps.push_back({from, i.begin});
    from = i.end;
  }
  gaps.push_back({from, INT64_MAX});
  return common(a, gaps);
}

Times clipped(const Times& times, const Interval& to) {
  Times parts;
  auto i = std::ranges::upper_bound(times, to.begin, {}, &Interval::end);
  for (; i != times.end() && i->begin < to.end; ++i)
    parts.push_back({std::max(i->begin, to.begin), std::min(i->end, to.end)});
  return parts;
}

int64_t length(const Times& times) {
  int64_t sum = 0;
  for (const Interval& i : times) sum += i.end - i.begin;
  return sum;
}

Overlap& Overlap::operator+=(const Overlap& other) {
  span += other.span;
  compute += other.compute;
  comm += other.comm;
  covered += other.covered;
  return *this;
}

std::string overlap_line(const Overlap& sum, int ranks) {
  const auto ms = [&](int64_t ns) { return double(ns) * 1e-6 / ranks; };
  return format(
      "span %.2f ms, compute %.2f, communication %.2f, covered %.2f (%.1f%%), exposed %.2f",
      ms(sum.span), ms(sum.compute), ms(sum.comm), ms(sum.covered), 100 * sum.fraction(),
      ms(sum.exposed()));
}

Overlap overlap_within(const Times& window, const Times& compute, const Times& comm) {
  const Times computes = common(window, compute), communicates = common(window, comm);
  return {length(window), length(computes), length(communicates),
      length(common(computes, communicates))};
}

}  // namespace duet
