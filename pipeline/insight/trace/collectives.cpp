// See collectives.h.
#include "pipeline/insight/trace/collectives.h"

#include <algorithm>
#include <cstdlib>
#include <set>

namespace duet {
namespace {

struct Member {
  size_t rank;
  const GpuEvent* event;
};
using Match = std::vector<Member>;  // by rank, at most one of each

std::vector<Match> match(const std::vector<RankTrace>& ranks, const Names& names) {
  using Events = std::map<size_t, std::vector<const GpuEvent*>>;  // by rank, in time
  std::map<std::pair<bool, int32_t>, Events> found;               // by name? name or key
  for (size_t r = 0; r < ranks.size(); ++r)
    for (const GpuEvent& e : ranks[r].events) {
      if (e.work != Work::comm) continue;
      const bool by_name = e.message < 0;
      if (by_name && names[e.name].find("layout") != std::string::npos) continue;  // local
      found[{by_name, by_name ? e.name : e.message}][r].push_back(&e);
    }
  std::vector<Match> out;
  for (const auto& [key, by_rank] : found) {
    std::set<size_t> counts;
    for (const auto& [rank, events] : by_rank) counts.insert(events.size());
    if (key.first && counts.size() > 1) continue;
    for (size_t i = 0; i < *counts.rbegin(); ++i) {
      Match match;
      for (const auto& [rank, events] : by_rank)
        if (i < events.size()) match.push_back({rank, events[i]});
      if (match.size() > 1) out.push_back(std::move(match));
    }
  }
  return out;
}

// Brings each rank to the clock of one that is placed already and shares most collectives with it.
void align(std::vector<RankTrace>& ranks, const std::vector<Match>& matches) {
  constexpr WideInt kNear = WideInt(1) << 53;
  for (RankTrace& rank : ranks) {
    const WideInt shift = rank.recording->base - ranks[0].recording->base;
    rank.to_common = shift < kNear && shift > -kNear ? int64_t(shift) : 0;
  }
  // By pair of ranks: by how much the second one's ends are later. A collective's members are all
  // paired with its first.
  std::map<std::pair<size_t, size_t>, std::vector<int64_t>> later;
  for (const Match& match : matches)
    for (size_t i = 1; i < match.size(); ++i) {
      const Member &a = match[0], &b = match[i];
      if (a.event->own) continue;  // duet's clocks are together
      const int64_t difference =
          b.event->end + ranks[b.rank].to_common - (a.event->end + ranks[a.rank].to_common);
      later[{a.rank, b.rank}].push_back(difference);
      later[{b.rank, a.rank}].push_back(-difference);
    }
  std::vector<int64_t> moved(ranks.size());
  std::vector<bool> placed(ranks.size());
  placed[0] = true;
  const auto shared = [&](const auto& pair) {  // of one that is placed and one that is not
    return placed[pair.first.first] && !placed[pair.first.second] ? pair.second.size() : 0;
  };
  for (;;) {
    const auto best = std::ranges::max_element(later, {}, shared);
    if (best == later.end() || !shared(*best)) break;  // those left share nothing with the others
    const auto [from, to] = best->first;
    const int64_t ahead = median(best->second);
    std::vector<int64_t> rest = best->second;
    for (int64_t& d : rest) d = std::abs(d - ahead);
    ranks[to].clock_error = median(std::move(rest));
    moved[to] = moved[from] - (std::abs(ahead) > ranks[to].clock_error ? ahead : 0);
    placed[to] = true;
  }
  for (size_t r = 0; r < ranks.size(); ++r) ranks[r].to_common += ranks[r].clock_moved = moved[r];
}

}  // namespace

Matched match_collectives(std::vector<RankTrace>& ranks, const Names& names) {
  Matched result;
  std::vector<std::vector<Interval>> waiting(ranks.size());
  const std::vector<Match> matches = match(ranks, names);
  align(ranks, matches);
  for (const Match& match : matches) {
    int64_t first = INT64_MAX, arrival = INT64_MIN, done = INT64_MAX, error = 0, bytes = 0;
    size_t last = 0;
    for (const Member& m : match) {
      const RankTrace& rank = ranks[m.rank];
      const int64_t begin = m.event->begin + rank.to_common;
      first = std::min(first, begin);
      done = std::min(done, m.event->end + rank.to_common);
      if (begin > arrival) arrival = begin, last = m.rank;
      error = std::max(error, rank.clock_error);
      bytes = std::max(bytes, m.event->bytes);
    }
    if (done + error < arrival) {
      ++result.contradictions;
      continue;
    }
    MatchedComm& c = result.by_name[match[0].event->name];
    ++c.count;
    ++c.last[ranks[last].number];
    c.skew += arrival - first;
    int64_t slowest = 0;
    for (const Member& m : match) {
      const int64_t own_arrival = arrival - ranks[m.rank].to_common;
      const int64_t until = std::clamp(own_arrival, m.event->begin, m.event->end);
      waiting[m.rank].push_back({m.event->begin, until});
      c.waiting += until - m.event->begin;
      c.transfer += m.event->end - until;
      slowest = std::max(slowest, m.event->end - until);
    }
    if (bytes > 0 && slowest > 0) {
      auto& [n, sum] = c.bandwidth[bytes];
      ++n;
      sum += double(bytes) / double(slowest);
    }
  }
  for (std::vector<Interval>& times : waiting) result.waiting.push_back(merged(std::move(times)));
  return result;
}

}  // namespace duet
