// See list_schedule.h.
#include "pipeline/insight/plan/list_schedule.h"

#include <algorithm>
#include <cmath>

#include "pipeline/schedule/simulator.h"

namespace duet {
namespace {

class Lister {
 public:
  // Ws wait while at most `held` do, and once the Is left are no more than `eager` times those that
  // fit between a rank and the first.
  Lister(const std::string& name, int pp, int M, const StageCosts& costs, double eager, int held)
      : M_(M), held_(held), eager_(eager), costs_(costs) {
    s_.name = name, s_.pp = pp, s_.microbatches = M;
    s_.ranks.resize(size_t(pp));
    for (int stage = 0; stage < pp; ++stage) s_.rank_of.push_back(stage);
    f_.resize(size_t(pp)), i_.resize(size_t(pp)), w_.resize(size_t(pp));
    f_at_.assign(size_t(pp) * size_t(M), INFINITY), i_at_ = f_at_;
  }

  // The ranks act in the order of time; one that can do nothing waits until another has acted.
  Schedule make() {
    std::vector<double> free_at(size_t(s_.pp), 0);
    for (int64_t left = 3LL * s_.pp * M_; left > 0;) {
      const auto first = std::min_element(free_at.begin(), free_at.end());
      const double now = *first, spent = act(int(first - free_at.begin()), now);
      if (spent > 0) {
        *first += spent, --left;
        continue;
      }
      double next = INFINITY;
      for (double t : free_at)
        if (t > now) next = std::min(next, t);
      *first = next < INFINITY ? next : now + std::min({costs_.F, costs_.I, costs_.W});
    }
    return std::move(s_);
  }

 private:
  // When a microbatch's F and I of a stage are done.
  double& f_at(int stage, int m) { return f_at_[size_t(stage) * size_t(M_) + size_t(m)]; }
  double& i_at(int stage, int m) { return i_at_[size_t(stage) * size_t(M_) + size_t(m)]; }

  // Returns the cost of what it did, 0 if there was nothing.
  double act(int rank, double now) {
    int &f = f_[size_t(rank)], &i = i_[size_t(rank)], &w = w_[size_t(rank)];
    const auto emit = [&](Kind kind, int& next, double cost) {
      s_.ranks[size_t(rank)].push_back({kind, rank, next++});
      return cost;
    };
    const bool in_steady_state = M_ - i > eager_ * (2 * rank + 1);
    if (i - w > held_ && in_steady_state) return emit(Kind::W, w, costs_.W);
    if (i < M_ && f_at(rank, i) <= now && (rank == s_.pp - 1 || i_at(rank + 1, i) <= now)) {
      i_at(rank, i) = now + costs_.I;
      return emit(Kind::I, i, costs_.I);
    }
    if (f < M_ && f - w < 2 * s_.pp &&
        (rank == 0 ? f - i < 2 * s_.pp - 1 : f_at(rank - 1, f) <= now)) {
      f_at(rank, f) = now + costs_.F;
      return emit(Kind::F, f, costs_.F);
    }
    return w < i ? emit(Kind::W, w, costs_.W) : 0;
  }

  int M_, held_;
  double eager_;
  StageCosts costs_;
  Schedule s_;
  std::vector<int> f_, i_, w_;  // [pp] the next microbatch of each kind
  std::vector<double> f_at_, i_at_;
};

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

bool is_list_schedule(const std::string& name) {
  return name == "zb-h2" || name == "zb2p" || name == "v-half" || name == "v-min";
}

Schedule list_schedule(const std::string& name, int pp, int M, const StageCosts& costs) {
  if (name == "v-min") return v_pattern(name, pp, M, 1);
  if (name == "v-half") return v_pattern(name, pp, M, 2);
  if (name == "zb-h2") return Lister(name, pp, M, {1, 1, 1, 3}, 1, 0).make();
  CostProfile profile;
  profile.stages.assign(size_t(pp), costs);
  Schedule best;
  double shortest = INFINITY;
  for (double eager : {0.0, 0.5, 1.0, 1.5, 2.0})
    for (int held : {0, 1, pp / 4, pp / 2}) {
      Schedule s = Lister(name, pp, M, costs, eager, held).make();
      double longest = 0;
      for (const auto& spans : simulate(s, profile).spans)
        longest = std::max(longest, spans.back().end - spans.front().start);
      if (longest < shortest) shortest = longest, best = std::move(s);
    }
  return best;
}

}  // namespace duet
