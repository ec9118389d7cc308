// Analysis: everything that is said of a trace, in one value; reports and painters decide nothing.
//
//   files -> read -> attribute -> classify -> ranks, measured -> collectives -> conflicts
//
// Read next: report.h.
#pragma once
#include "pipeline/insight/trace/conflicts.h"

namespace duet {

struct AnalyzeOptions {
  std::vector<std::string> traces;  // files or folders; none: a demonstration
  Format format = Format::text;     // or json, svg
  std::string rules;                // --classify
  bool by_annotation = false;       // classify.h
  int top = 0;                      // conflict points listed; 0: ten in text, all in JSON
  std::string profile;              // file; empty: none
};

struct Analysis {
  Names names;
  std::vector<Recording> recordings;
  std::vector<RankTrace> ranks;
  Matched matched;
  std::vector<Conflict> conflicts;  // most lost first
  std::vector<Slack> slacks;        // by rank and time
  std::map<std::string, int64_t> left_out;
  std::vector<std::string> warnings;
  int64_t origin = 0;  // the first GPU event, on the common clock
  double seconds = 0;  // it took to read and analyse

  bool nothing_is_comm() const;
  // Names that took the most time, with time and count.
  std::vector<std::tuple<int32_t, int64_t, int64_t>> most_time(size_t n) const;
  double since_origin_us(size_t rank, int64_t time) const {
    return us(time + ranks[rank].to_common - origin);
  }
};

// Throws UsageError for what cannot be read, and where a file has no GPU events.
Analysis analyze(const AnalyzeOptions& options);
// The same of one file in memory: where a fuzzer begins.
Analysis analyze_bytes(std::string_view bytes);

}  // namespace duet
