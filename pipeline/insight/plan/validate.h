// `duet plan --validate RUNS.json`: predicts every record of a file of published training runs and
// says how far off it is.
//
// The error of a record is |predicted / measured - 1| of the quantity that its source states
// (records.h); of a bubble rate it is the difference, apart; of memory it is apart too. Fits are
// counted as balanced accuracy, the mean over the classes "ran" and "out of memory" of the share
// called right. The regret of a scan (layouts of the same job) is how much longer the step of the
// layout is that the prediction would pick than the fastest one's; a pick that was measured out of
// memory counts 100%.
//
// Read next: measure.h.
#pragma once
#include <cmath>
#include <iosfwd>
#include <map>
#include <string>
#include <vector>

#include "pipeline/insight/plan/records.h"

namespace duet {

struct RecordResult {
  Record record;
  double predicted = 0;
  double step = 0;  // predicted seconds
  bool fits = true;
  double memory_gib = 0;
};

// NaN where there is nothing to say it from.
struct SuiteErrors {
  int64_t n = 0;
  double mape = 0, median = 0, bias = 0;
  double fit_accuracy = NAN, pick_regret = NAN, memory_mape = NAN, bubble_error = NAN;
  std::vector<std::pair<double, std::string>> worst;  // error, id
};

struct Validation {
  std::vector<RecordResult> records;
  std::vector<std::pair<std::string, std::string>> unpredicted;  // id, reason
  std::map<std::string, SuiteErrors> suites;
  SuiteErrors all;
  double macro_mape = 0;
};

// Throws UsageError where the file is none of its kind.
Validation validate(const std::string& path);
void print_validation(const Validation& validation, bool json, std::ostream& out);

}  // namespace duet
