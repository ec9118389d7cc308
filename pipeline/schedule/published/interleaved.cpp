// Interleaved 1F1B (Megatron-LM: Narayanan et al., 2021, "Efficient Large-Scale Language Model
// Training", section 2.2).
//
// Each rank holds v chunks of the model, stages r, P+r, 2P+r, ..., of which each costs 1/v: the
// pipeline fills v times as fast. Microbatches go in groups of P: a group through chunk 0, then
// through chunk 1, ... Where P does not divide M the groups are somewhat larger and as even as can
// be: a group smaller than P would deadlock with its neighbour. Idle time (P-1)(F+B), with F and B
// those of the v times smaller chunks, where M >= P.
// Read next: zb1p.cpp.
#include <algorithm>

#include "pipeline/schedule/published/published.h"

namespace duet {

static int first_of(int group, int groups, int M) { return int(int64_t(M) * group / groups); }

Schedule interleaved(const ScheduleSize& size) {
  const int P = size.pp, M = size.microbatches, v = size.virtual_stages;
  require(v >= 2, "--virtual-stages: interleaved needs 2 or more, found ", v);
  require(v <= 1024, "--virtual-stages: expected at most 1024, found ", v);
  Schedule s = looped("interleaved", size, v);

  // The order in which every rank does its forwards; its backwards go the same way with the chunks
  // reversed.
  struct Turn {
    int chunk, microbatch;
  };
  std::vector<Turn> turns;  // [v M]
  const int groups = std::max(1, M / P);
  for (int group = 0; group < groups; ++group)
    for (int chunk = 0; chunk < v; ++chunk)
      for (int m = first_of(group, groups, M); m < first_of(group + 1, groups, M); ++m)
        turns.push_back({chunk, m});
  const int largest = std::max(P, (M + groups - 1) / groups);  // group

  for (int rank = 0; rank < P; ++rank) {
    std::vector<Action>& list = s.ranks[rank];
    const auto F = [&](int i) {
      list.push_back({Kind::F, turns[i].chunk * P + rank, turns[i].microbatch});
    };
    const auto B = [&](int i) {
      list.push_back({Kind::B, (v - 1 - turns[i].chunk) * P + rank, turns[i].microbatch});
    };
    const int total = v * M;
    const int warmup = std::min(total, (v - 1) * largest + 2 * (P - 1 - rank));
    for (int i = 0; i < warmup; ++i) F(i);
    for (int i = warmup; i < total; ++i) F(i), B(i - warmup);
    for (int i = total - warmup; i < total; ++i) B(i);
  }
  return s;
}

}  // namespace duet
