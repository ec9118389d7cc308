// Test material: sizes, and schedules that no paper has, legal by construction.
//
// Ranks take, at random, any action whose needs are done. So backwards, Ws and pairs come in every
// legal order.
#pragma once
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <tuple>

#include "pipeline/schedule/schedule.h"

namespace duet {

// The sizes at which the README's closed forms are held.
template <class Fn> void for_all_sizes(Fn fn) {
  for (int P = 1; P <= 12; ++P)
    for (int M = 1; M <= 4 * P; ++M) {
      SCOPED_TRACE(cat("P ", P, " M ", M));
      fn(P, M);
    }
}

struct RandomShape {
  int pp, stages_per_rank, microbatches;
  bool two_directions;  // then stages_per_rank is 2
};

using Thing = std::tuple<Kind, int, int>;  // kind F or I (also of a B), stage, microbatch

// The needs of a part, spelled out from the header's words.
inline std::vector<Thing> needs_of(const Schedule& s, const Action& a) {
  const int parts = s.two_directions ? int(s.rank_of.size()) / 2 : int(s.rank_of.size());
  const bool starts = a.stage % parts == 0, ends = a.stage % parts == parts - 1;
  if (a.kind == Kind::W) return {{Kind::I, a.stage, a.microbatch}};
  std::vector<Thing> needs;
  if (a.kind == Kind::F && !starts) needs.push_back({Kind::F, a.stage - 1, a.microbatch});
  if (a.kind != Kind::F) needs.push_back({Kind::F, a.stage, a.microbatch});
  if (a.kind != Kind::F && !ends) needs.push_back({Kind::I, a.stage + 1, a.microbatch});
  return needs;
}

inline Schedule random_schedule(const RandomShape& shape, std::mt19937& rng) {
  Schedule s{"random", shape.pp, shape.microbatches, shape.two_directions, {}, {}};
  s.ranks.resize(s.pp);
  const int stages = shape.pp * shape.stages_per_rank;
  for (int i = 0; i < stages; ++i) s.rank_of.push_back(i % shape.pp);
  std::shuffle(s.rank_of.begin(), s.rank_of.end(), rng);

  std::vector<std::vector<Action>> left(s.pp);  // per rank
  for (int stage = 0; stage < stages; ++stage) {
    for (int m = 0; m < s.microbatches; ++m) {
      if (s.two_directions && (m >= s.microbatches / 2) != (stage >= stages / 2)) continue;
      auto& mine = left[s.rank_of[stage]];
      mine.push_back({Kind::F, stage, m});
      if (rng() % 2) {
        mine.push_back({Kind::B, stage, m});
      } else {
        mine.push_back({Kind::I, stage, m});
        mine.push_back({Kind::W, stage, m});
      }
    }
  }
  std::set<Thing> done;
  const auto ready = [&](const Action& a) {
    for (const Thing& need : needs_of(s, a)) {
      if (!done.contains(need)) return false;
    }
    return true;
  };
  for (bool any = true; any;) {
    any = false;
    for (int rank = 0; rank < s.pp; ++rank) {
      std::vector<size_t> choices;
      for (size_t i = 0; i < left[rank].size(); ++i) {
        if (ready(left[rank][i])) choices.push_back(i);
      }
      any |= !left[rank].empty();
      if (choices.empty() || rng() % 3 == 0) continue;
      const size_t i = choices[rng() % choices.size()];
      Action action = left[rank][i];
      size_t partner = i;
      for (const size_t j : choices) {
        if (action.kind == Kind::F && left[rank][j].kind == Kind::B && rng() % 2) partner = j;
      }
      done.insert(
          {action.kind == Kind::B ? Kind::I : action.kind, action.stage, action.microbatch});
      if (partner != i) {
        const Action b = left[rank][partner];
        action.b_stage = b.stage, action.b_microbatch = b.microbatch;
        done.insert({Kind::I, b.stage, b.microbatch});
        left[rank].erase(left[rank].begin() + std::max(i, partner));
        left[rank].erase(left[rank].begin() + std::min(i, partner));
      } else {
        left[rank].erase(left[rank].begin() + i);
      }
      s.ranks[rank].push_back(action);
    }
  }
  return s;
}

inline RandomShape random_shape(std::mt19937& rng) {
  RandomShape shape{int(1 + rng() % 5), int(1 + rng() % 3), int(1 + rng() % 7), rng() % 3 == 0};
  if (shape.two_directions) shape.stages_per_rank = 2, shape.microbatches += 1;
  return shape;
}

}  // namespace duet
