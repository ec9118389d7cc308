// See run_list.h. Sweeps over the ranks, each of which goes as far as it can.
#include "pipeline/schedule/run_list.h"

namespace duet {

std::vector<Stuck> sweep(
    const Schedule& s, const std::function<std::optional<Action>(int rank, int index)>& act) {
  std::vector<int> position(size_t(s.pp), 0);
  std::vector<Stuck> stuck;
  const auto advance = [&](int rank) {
    const int begin = position[rank];
    for (int& i = position[rank]; i < int(s.ranks[rank].size()); ++i)
      if (const std::optional<Action> missing = act(rank, i)) {
        stuck.push_back({rank, i, *missing});
        break;
      }
    return position[rank] > begin;
  };
  for (bool moved = true; moved;) {
    moved = false;
    for (int rank = s.pp - 1; rank >= 0; --rank) moved |= advance(rank);
    stuck.clear();
    for (int rank = 0; rank < s.pp; ++rank) moved |= advance(rank);
  }
  return stuck;
}

std::vector<Stuck> run_list(
    const Schedule& s, const std::function<void(int rank, int index)>& visit) {
  std::vector<bool> made(size_t(2) * s.stages() * s.microbatches, false);  // [results]
  return sweep(s, [&](int rank, int index) {
    const Action& action = s.ranks[rank][index];
    std::optional<Action> missing;
    for_parts(action, [&](const Action& part) {
      for_needs(s, part, [&](Kind kind, int stage, int m) {
        if (!missing && !made[result_id(s, kind, stage, m)]) missing = Action{kind, stage, m};
      });
    });
    if (missing) return missing;
    visit(rank, index);
    for_parts(action, [&](const Action& part) {
      if (part.kind != Kind::W) made[result_id(s, part.kind, part.stage, part.microbatch)] = true;
    });
    return missing;
  });
}

}  // namespace duet
