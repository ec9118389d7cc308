// Overlap: how much of the communication is hidden behind computation. Plain arithmetic on
// intervals of time.
//
//   span       of the window that is looked at: the recorded steps, or the overlapped pairs in them
//   compute    time in which the rank computes: in a phase of track "compute" and not in a wait
//   comm       time in which its comm stream is in a message (track "comm"): all-to-alls, sums of
//              gradients
//   covered    time in which it does both; exposed = comm - covered
//
// Times are whole nanoseconds of one rank's clock, so that sums are exact. Not here: where the
// times come from (trace.h, measure.h).
// Read next: events.h.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace duet {

struct Interval {
  int64_t begin = 0, end = 0;  // nanoseconds; end is not part of it
  bool operator==(const Interval&) const = default;
};

// A set of times: ascending, apart from one another, none empty.
using Times = std::vector<Interval>;

Times merged(std::vector<Interval> intervals);  // in any order, overlapping or not
Times common(const Times& a, const Times& b);   // in both
Times without(const Times& a, const Times& b);  // in a and not in b
// The part of `times` within an interval, in the logarithm of their number.
Times clipped(const Times& times, const Interval& to);
int64_t length(const Times& times);

struct Overlap {
  int64_t span = 0, compute = 0, comm = 0, covered = 0;  // nanoseconds
  int64_t exposed() const { return comm - covered; }
  // of the communication, covered
  double fraction() const { return comm ? double(covered) / double(comm) : 1; }
  // of several ranks: their times added up
  Overlap& operator+=(const Overlap& other);
};

// The line a run ends with and the analysis of its trace says again: means of the ranks.
std::string overlap_line(const Overlap& sum, int ranks);

// `compute` without waits.
Overlap overlap_within(const Times& window, const Times& compute, const Times& comm);

inline double us(int64_t ns) { return double(ns) / 1000; }
inline double ms(int64_t ns) { return double(ns) / 1e6; }

}  // namespace duet
