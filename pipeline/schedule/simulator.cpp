// See simulator.h. The clock on top of run_list.
#include "pipeline/schedule/simulator.h"

#include <algorithm>
#include <map>

#include "model/base/text.h"
#include "pipeline/schedule/run_list.h"

namespace duet {

double Costs::of(const Action& action) const {
  if (action.overlapped()) return FB;
  switch (action.kind) {
    case Kind::F: return F;
    case Kind::I: return I;
    case Kind::W: return W;
    case Kind::B: return B();
    default: return 0;  // messages take no time
  }
}

Costs parse_costs(const std::string& text) {
  Costs c;
  c.FB = 0;
  const std::map<std::string, double*> costs = {
      {"F", &c.F}, {"I", &c.I}, {"W", &c.W}, {"FB", &c.FB}};
  read_keys("--cost", text, "positive costs such as F=1,I=1,W=1,FB=2.4",
      [&](const std::string& key, const std::string& value) {
        const std::optional<double> x = parse_number<double>(value);
        if (!costs.contains(key) || !x || *x <= 0) return false;
        *costs.at(key) = *x;
        return true;
      });
  if (c.FB == 0) c.FB = c.F + c.B();
  return c;
}

// cost(action); message(kind): how long what an action of this kind made travels to another rank.
template <class Cost, class Message>
static Timing run_clock(const Schedule& s, Cost cost_of, Message message) {
  Timing timing;
  std::vector<double> made_at(size_t(2) * s.stages() * s.microbatches, 0);  // [products]
  std::vector<double> free_at(s.pp, 0), busy(s.pp, 0);
  timing.spans.resize(s.pp);
  for (int rank = 0; rank < s.pp; ++rank) timing.spans[rank].resize(s.ranks[rank].size());

  const auto stuck = run_list(s, [&](int rank, int index) {
    const Action& action = s.ranks[rank][index];
    double start = free_at[rank];
    for_parts(action, [&](const Action& part) {
      for_needs(s, part, [&](Kind kind, int stage, int m) {
        const double travel = s.rank_of[stage] == rank ? 0 : message(kind);
        start = std::max(start, made_at[product(s, kind, stage, m)] + travel);
      });
    });
    const double cost = cost_of(action), end = start + cost;
    for_parts(action, [&](const Action& part) {
      if (part.kind != Kind::W) made_at[product(s, part.kind, part.stage, part.microbatch)] = end;
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

Timing simulate(const Schedule& s, const Costs& costs) {
  return run_clock(
      s, [&](const Action& a) { return costs.of(a); }, [](Kind) { return 0.0; });
}

Timing simulate(const Schedule& s, const CostProfile& profile) {
  DUET_CHECK(profile.fits(s), "simulate: expected a profile of one or ", s.model_stages(),
      " stages, found ", profile.stages.size());
  return run_clock(
      s, [&](const Action& a) { return profile.of(s, a); },
      [&](Kind kind) {
        return kind == Kind::F ? profile.forward_message : profile.backward_message;
      });
}

}  // namespace duet
