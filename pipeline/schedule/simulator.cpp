// See simulator.h. The clock on top of run_list.
#include "pipeline/schedule/simulator.h"

#include <algorithm>

#include "pipeline/schedule/run_list.h"

namespace duet {

Timing simulate(const Schedule& s, const CostProfile& profile) {
  DUET_CHECK(profile.fits(s), "simulate: expected a profile of one or ", s.model_stages(),
      " stages, found ", profile.stages.size());
  Timing timing;
  std::vector<double> made_at(size_t(2) * s.stages() * s.microbatches, 0);  // [results]
  std::vector<double> free_at(s.pp, 0), busy(s.pp, 0);
  timing.spans.resize(s.pp);
  for (int rank = 0; rank < s.pp; ++rank) timing.spans[rank].resize(s.ranks[rank].size());

  const auto stuck = run_list(s, [&](int rank, int index) {
    const Action& action = s.ranks[rank][index];
    double start = free_at[rank];
    for_parts(action, [&](const Action& part) {
      for_needs(s, part, [&](Kind kind, int stage, int m) {
        const double travel = s.rank_of[stage] == rank ? 0
            : kind == Kind::F                          ? profile.forward_message
                                                       : profile.backward_message;
        start = std::max(start, made_at[result_id(s, kind, stage, m)] + travel);
      });
    });
    const double cost = profile.of(s, action), end = start + cost;
    for_parts(action, [&](const Action& part) {
      if (part.kind != Kind::W) made_at[result_id(s, part.kind, part.stage, part.microbatch)] = end;
    });
    timing.spans[rank][index] = {start, end};
    free_at[rank] = end;
    busy[rank] += cost;
    timing.makespan = std::max(timing.makespan, end);
  });
  DUET_CHECK(stuck.empty(), "simulate: ", s.name, " deadlocks; the checker comes first");
  for (int rank = 0; rank < s.pp; ++rank)
    timing.bubble_fraction.push_back(std::max(0.0, 1 - busy[rank] / timing.makespan));
  return timing;
}

double longest_span(const Timing& timing) {
  double longest = 0;
  for (const auto& spans : timing.spans)
    longest = std::max(longest, spans.back().end - spans.front().start);
  return longest;
}

}  // namespace duet
