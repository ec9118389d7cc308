// Collectives: the same communication on several ranks. Matched by NCCL's group and sequence
// number, by what duet says of a message, or else by name and order where every rank that has the
// name has it equally often.
//
// A collective ends on all its ranks at about the same time. That brings clocks together: a rank's
// clock is ahead by the median of the differences of ends, uncertain by the median of what is left;
// where that allows 0 it is 0. And nobody's part is transferred before the last rank arrived: what
// a rank spends in it until then is waiting (skew), the rest transfer. Matches that contradict this
// (one rank was done before another came: they are not the same, or a rank had nothing to wait for)
// are counted and dropped.
// Read next: conflicts.h.
#pragma once
#include "pipeline/insight/trace/measure.h"

namespace duet {

struct MatchedComm {                  // of one name
  int64_t count = 0;                  // matched, each once
  int64_t waiting = 0, transfer = 0;  // summed over collectives and ranks
  int64_t skew = 0;                   // from the first arrival to the last, summed
  std::map<int64_t, int64_t> last;    // how often each rank came last
  // message size -> how often, and bytes per ns of transfer (GB/s), their sum
  std::map<int64_t, std::pair<int64_t, double>> bandwidth;
};

struct Matched {
  std::map<int32_t, MatchedComm> by_name;
  std::vector<Times> waiting;  // [ranks], on each rank's own clock
  int64_t contradictions = 0;
};

// Sets the ranks' to_common and clock_error.
Matched match_collectives(std::vector<RankTrace>& ranks, const Names& names);

}  // namespace duet
