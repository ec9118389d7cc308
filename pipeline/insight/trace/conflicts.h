// Conflicts: where computation and communication get in each other's way, and why.
//
//   exposed  communication while nothing computes. Its cause:
//     skew        waiting for another rank to arrive (collectives.h)
//     micro-gap   shorter than 10 us
//     host        the next compute kernel was launched only after the gap had begun
//     dependency  the last thing to end before the next compute kernel began was a communication
//                 that ended within the gap: the kernel waited for it
//     other       the rest, such as the end of the trace
//   slowed   computation beside communication: the same kernel (component, ordinal of its launch
//            within it, name, grid; of duet's own the phase) takes longer than the median of
//            those with nothing beside them. Half of it must be covered; a twentieth counts as
//            nothing.
//
// The two are apart in time; exposed points add up to the exposed communication exactly. Apart from
// both, slack: how much longer a dispatch or combine could have taken before its consumer (dispatch
// F: experts F; combine F: attention F; combine B: experts B; dispatch B: attention B), or, through
// its stream, that of a later one, had begun later.
// Read next: analysis.h.
#pragma once
#include "pipeline/insight/trace/collectives.h"

namespace duet {

enum class Cause { micro_gap, host, dependency, skew, other, contention };
constexpr const char* kCauses[] = {
    "micro-gap", "host", "dependency", "skew", "other", "contention"};

struct Conflict {
  Cause cause = Cause::other;
  size_t rank = 0;                 // index
  Interval time;                   // on the rank's clock
  int64_t lost = 0;                // ns
  const GpuEvent* comm = nullptr;  // exposed, or beside the computation
  const GpuEvent* waiting =
      nullptr;                    // the compute kernel that came next, or was slowed; may be none
  int64_t with = 0, without = 0;  // samples, where slowed
  bool slowed() const { return cause == Cause::contention; }
};

struct Slack {
  size_t rank = 0;
  int32_t comm = -1, consumer = -1;  // components
  int32_t layer = -1;
  int64_t duration = 0, slack = 0;  // ns
};

// Of one rank, in order of time. `waiting`: of Matched.
std::vector<Conflict> exposed_by_cause(const RankTrace& rank, size_t index, const Times& waiting);
std::vector<Conflict> slowed_by_comm(const RankTrace& rank, size_t index);
std::vector<Slack> slack_of_dependencies(const RankTrace& rank, size_t index, const Names& names);

}  // namespace duet
