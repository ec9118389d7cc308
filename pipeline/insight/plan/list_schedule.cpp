// See layout.h. The schedules that a rule makes.
#include "pipeline/insight/plan/layout.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace duet {
namespace {

// Ws wait while at most `held` do, and once the Is left are no more than `eager` times those that
// fit between a rank and the first.
Schedule listed(
    const std::string& name, int P, int M, const StageCosts& costs, double eager, int held) {
  Schedule s;
  s.name = name, s.pp = P, s.microbatches = M;
  s.ranks.resize(size_t(P)), s.rank_of.resize(size_t(P));
  std::iota(s.rank_of.begin(), s.rank_of.end(), 0);
  std::vector<int> next_f(size_t(P), 0), next_i = next_f, next_w = next_f;  // microbatches
  // [stage][microbatch] when its F and I are done
  std::vector<std::vector<double>> f_at(size_t(P), std::vector<double>(size_t(M), INFINITY));
  std::vector<std::vector<double>> i_at = f_at;

  // Returns the cost of what the rank did, 0 if there was nothing.
  const auto act = [&](size_t rank, double now) {
    int &f = next_f[rank], &i = next_i[rank], &w = next_w[rank];
    const auto emit = [&](Kind kind, int& next, double cost) {
      s.ranks[rank].push_back({kind, int(rank), next++});
      return cost;
    };
    const bool first = rank == 0, last = rank + 1 == size_t(P);
    const bool in_steady_state = M - i > eager * double(2 * rank + 1);
    if (i - w > held && in_steady_state) return emit(Kind::W, w, costs.W);
    if (i < M && f_at[rank][size_t(i)] <= now && (last || i_at[rank + 1][size_t(i)] <= now)) {
      i_at[rank][size_t(i)] = now + costs.I;
      return emit(Kind::I, i, costs.I);
    }
    if (f < M && f - w < 2 * P && (first ? f - i < 2 * P - 1 : f_at[rank - 1][size_t(f)] <= now)) {
      f_at[rank][size_t(f)] = now + costs.F;
      return emit(Kind::F, f, costs.F);
    }
    return w < i ? emit(Kind::W, w, costs.W) : 0;
  };

  // The ranks act in the order of time; one that can do nothing waits until another has acted.
  std::vector<double> free_at(size_t(P), 0);
  for (int64_t left = 3LL * P * M; left > 0;) {
    const auto first = std::min_element(free_at.begin(), free_at.end());
    const double now = *first, spent = act(size_t(first - free_at.begin()), now);
    if (spent > 0) {
      *first += spent, --left;
      continue;
    }
    double next = INFINITY;
    for (double t : free_at)
      if (t > now) next = std::min(next, t);
    *first = next < INFINITY ? next : now + std::min({costs.F, costs.I, costs.W});
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

bool is_list_schedule(const std::string& name) {
  return name == "zb-h2" || name == "zb2p" || name == "v-half" || name == "v-min";
}

Schedule list_schedule(const std::string& name, int pp, int M, const StageCosts& costs) {
  if (name == "v-min") return v_pattern(name, pp, M, 1);
  if (name == "v-half") return v_pattern(name, pp, M, 2);
  if (name == "zb-h2") return listed(name, pp, M, {1, 1, 1, 3}, 1, 0);
  CostProfile profile;
  profile.stages.assign(size_t(pp), costs);
  Schedule best;
  double shortest = INFINITY;
  for (double eager : {0.0, 0.5, 1.0, 1.5, 2.0})
    for (int held : {0, 1, pp / 4, pp / 2}) {
      Schedule s = listed(name, pp, M, costs, eager, held);
      const double longest = longest_span(simulate(s, profile));
      if (longest < shortest) shortest = longest, best = std::move(s);
    }
  return best;
}

}  // namespace duet
