// Runs every rank as far as it goes, and again when what it waits for is made. Read next: simulator.cpp.
#include "pipeline/run_list.h"

#include <optional>

namespace duet {

std::vector<Stuck> run_list(const Schedule& s, const std::function<void(int rank, int index)>& visit) {
  constexpr int kNone = -1, kMade = -2;
  std::vector<int> waiter(size_t(2) * s.stages() * s.microbatches, kNone);  // of each product: the first rank that waits for it
  std::vector<int> next_waiter(s.pp, kNone);                                // a chain of further ranks
  std::vector<int> position(s.pp, 0);
  std::vector<Action> missing(s.pp);

  const auto first_missing = [&](const Action& action) {
    std::optional<Action> found;
    for_parts(action, [&](const Action& part) {
      for_needs(s, part, [&](Kind kind, int stage, int m) {
        if (!found && waiter[product(s, kind, stage, m)] != kMade) found = Action{kind, stage, m};
      });
    });
    return found;
  };

  std::vector<int> runnable;
  for (int rank = s.pp - 1; rank >= 0; --rank) runnable.push_back(rank);
  while (!runnable.empty()) {
    const int rank = runnable.back();
    runnable.pop_back();
    for (int& i = position[rank]; i < int(s.ranks[rank].size()); ++i) {
      const Action& action = s.ranks[rank][i];
      if (const auto needed = first_missing(action)) {
        int& chain = waiter[product(s, needed->kind, needed->stage, needed->microbatch)];
        missing[rank] = *needed;
        next_waiter[rank] = chain;
        chain = rank;
        break;
      }
      visit(rank, i);
      for_parts(action, [&](const Action& part) {
        if (part.kind == Kind::W) return;
        int& chain = waiter[product(s, part.kind, part.stage, part.microbatch)];
        for (int r = chain; r >= 0; r = next_waiter[r]) runnable.push_back(r);
        chain = kMade;
      });
    }
  }

  std::vector<Stuck> stuck;
  for (int rank = 0; rank < s.pp; ++rank) {
    if (position[rank] < int(s.ranks[rank].size())) stuck.push_back({rank, position[rank], missing[rank]});
  }
  return stuck;
}

}  // namespace duet
