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
#include <iosfwd>
#include <map>
#include <string>
#include <vector>

namespace duet {

struct RecordResult {
  std::string id, suite, scan, kind;
  double predicted = 0, measured = 0;
  double step = 0;           // predicted seconds
  double measured_step = 0;  // in proportion: 1 / speed where a speed was measured
  bool fits = true, ran = true;
  double memory_gib = 0, measured_memory_gib = 0;
};

struct SuiteErrors {
  int n = 0;
  double mape = 0, median = 0, bias = 0;
  // -1 where there is nothing to say it from
  double fit_accuracy = -1, pick_regret = -1, memory_mape = -1, bubble_error = -1;
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
