// Reports: an Analysis as a screen of text, as JSON, as a cost profile. The timeline is drawn by
// ../pictures/timeline.h.
//
// JSON, times in microseconds, null where a ratio has nothing below it:
//   {"ranks": [{"rank", "file", "gpu", "span_us", "compute_busy_us", "comm_busy_us",
//      "memory_busy_us", "overlap_us", "overlap_ratio", "exposed_comm_us", "idle_us", "serial_us",
//      "speedup_vs_serial", "lower_bound_us", "overlap_efficiency", "slowed_us",
//      "clock_moved_us", "clock_error_us", "kernels": {"compute", "comm", "memory"},
//      "components": {name: {"busy_us", "count", "median_us", "class", "phase", "layers": {n:
//      us}}}, "exposed_by_cause_us": {cause: us}, "streams": {label: {"compute_us", "comm_us",
//      "memory_us", "events"}}}],
//    "conflict_points": [{"kind": "exposed" | "slowed", "cause", "rank", "start_us", "end_us",
//      "lost_us", "comm", "comm_component", "waiting", "waiting_component", of a slowed one also
//      "samples_beside", "samples_alone"}], most lost first
//    "slack": [{"rank", "comm", "layer", "consumer", "duration_us", "slack_us"}],
//    "collectives": {name: {"count", "waiting_us", "skew_us", "transfer_us", "last": {rank: n},
//      "bandwidth": [{"bytes", "count", "gb_per_s"}]}},
//    "left_out": {what: n}, "warnings": [], "unclassified": [{"name", "busy_us", "count"}]}
// "start_us" counts from the first GPU event. "unclassified" lists what took the most time where
// nothing is communication.
//
// A cost profile (pipeline/schedule/profile.h says the format) has one stage: what the computation
// of one layer takes, and its pair as much as both parts of it, for communication is not in it. All
// are medians over a component's occurrences (its annotations, or events of duet's tracks), of all
// ranks. It says besides, in seconds too:
//   "from": [file...], "components": {"attention" | "experts" | "dispatch" | "combine" | name:
//      {"F", "I", "W"} or, without a phase, {"s"}}
// Of a rehearsal it has what its actions took. Without either there is no stage, and the profile
// serves no schedule.
// A backward that has a separate W is I; a B without one is split evenly.
// Read next: analyze_command.h.
#pragma once
#include <iosfwd>

#include "pipeline/insight/trace/analysis.h"

namespace duet {

void report_text(std::ostream& out, const Analysis& analysis, const AnalyzeOptions& options);
void report_json(std::ostream& out, const Analysis& analysis, int top);
std::string profile_json(const Analysis& analysis);

}  // namespace duet
