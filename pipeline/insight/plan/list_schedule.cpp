// See layout.h. The schedules that a rule makes.
#include "pipeline/insight/plan/layout.h"

#include <algorithm>
#include <cmath>

namespace duet {
namespace {

// Warms up with as many Fs as a rank has time for until its first gradient comes, two fewer than
// the rank before it at least; then I, W, F. Ws wait, the more the further down: by the time in
// which a gradient goes up to the first rank and a microbatch comes down, so that the last ranks
// hurry through their last Is, which is what the first wait for, and end with Ws. A rank keeps no
// more than 2P activations, of each of which `waiting` is there until its W.
Schedule zero_bubble(
    const std::string& name, int P, int M, const StageCosts& costs, double waiting) {
  Schedule s;
  s.name = name, s.pp = P, s.microbatches = M;
  for (int rank = 0; rank < P; ++rank) {
    const int below = P - 1 - rank;
    const double trip = costs.F + costs.I, least = 1e-6 * trip + 1e-300;
    const int warm_up = int(std::min(
        {double(M), 2.0 * (P - rank), std::ceil(1 + below * trip / std::max(costs.F, least))}));
    const double held =
        std::min(rank * std::ceil(trip / std::max(costs.W, least)), (2 * P - warm_up) / waiting);
    s.rank_of.push_back(rank);
    auto& list = s.ranks.emplace_back();
    int f = 0, w = 0;
    while (f < warm_up) list.push_back({Kind::F, rank, f++});
    for (int i = 0; i < M; ++i) {
      list.push_back({Kind::I, rank, i});
      if (i + 1 - w > held) list.push_back({Kind::W, rank, w++});
      if (f < M) list.push_back({Kind::F, rank, f++});
    }
    while (w < M) list.push_back({Kind::W, rank, w++});
  }
  return s;
}

// One microbatch's pattern: down the V and back up, forward and backward, `slope` actions from rank
// to rank on the outer legs and one on the inner. Every rank does six actions a microbatch; each is
// put off until its place in the six is free there, so that the pattern fits between its
// neighbours.
Schedule v_pattern(const std::string& name, int P, int M, int slope) {
  Schedule s;
  s.name = name, s.pp = P, s.microbatches = M;
  std::vector<std::vector<bool>> taken(size_t(P), std::vector<bool>(6, false));
  std::vector<std::vector<std::pair<int, Action>>> pattern(static_cast<size_t>(P));
  const auto place = [&](int rank, int time, Kind kind, int stage) {
    while (taken[size_t(rank)][size_t(time % 6)]) ++time;
    taken[size_t(rank)][size_t(time % 6)] = true;
    pattern[size_t(rank)].push_back({time, {kind, stage, 0}});
    return time;
  };
  int time = -slope;
  std::vector<int> i_done(size_t(2 * P));
  for (int stage = 0; stage < 2 * P; ++stage) {
    s.rank_of.push_back(stage < P ? stage : 2 * P - 1 - stage);
    time = place(s.rank_of.back(), time + (stage < P ? slope : 1), Kind::F, stage);
  }
  for (int stage = 2 * P; stage-- > 0;)
    i_done[size_t(stage)] = time =
        place(s.rank_of[size_t(stage)], time + (stage < P - 1 ? slope : 1), Kind::I, stage);
  for (int stage = 2 * P; stage-- > 0;)
    place(s.rank_of[size_t(stage)], i_done[size_t(stage)] + 1, Kind::W, stage);
  for (auto& once : pattern) {
    std::vector<std::pair<int, Action>> all;
    for (int m = 0; m < M; ++m)
      for (const auto& [at, action] : once)
        all.push_back({at + 6 * m, {action.kind, action.stage, m}});
    std::sort(
        all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    s.ranks.emplace_back();
    for (const auto& [_, action] : all) s.ranks.back().push_back(action);
  }
  return s;
}

}  // namespace

double longest_span(const Timing& timing) {
  double longest = 0;
  for (const auto& spans : timing.spans)
    longest = std::max(longest, spans.back().end - spans.front().start);
  return longest;
}

Schedule planned_schedule(
    const std::string& name, const ScheduleSize& size, const StageCosts& costs, double waiting) {
  const int P = size.pp, M = size.microbatches;
  if (name == "v-min") return v_pattern(name, P, M, 1);
  if (name == "v-half") return v_pattern(name, P, M, 2);
  if (name == "zb-h2") return zero_bubble(name, P, M, {1, 1, 1, 3}, 1);
  if (name == "zb2p") return zero_bubble(name, P, M, costs, waiting);
  return make_schedule(name, size);
}

}  // namespace duet
