// The answer of `duet plan`, as text (one screen) and as JSON.
//
// Read next: validate.h.
#pragma once
#include <iosfwd>

#include "pipeline/insight/plan/fields.h"
#include "pipeline/insight/plan/search.h"

namespace duet {

struct Answer {
  PlanJob job;
  Prediction now;
  std::vector<Change> changes;
  std::vector<Prediction> others;  // the next best layouts
  SearchResult found;              // what was tried, `now` among it
  std::string nearest;             // where `now` does not fit: what would
  double usd_per_gpu_hour = 2;
};

// The parts of a step, which sum to it: name and seconds.
using NamedValues = std::vector<std::pair<std::string, double>>;
NamedValues step_parts(const Prediction& prediction);

// A step as a clock on a rank sees it: all else is spread over its actions (of_first, of_mean).
NamedValues by_action(const Prediction& prediction, const ByAction& actions);

// Median error of published runs on such GPUs and models, as the README's table has it.
std::string known_error(const PlanJob& job);

void print_answer(const Answer& answer, std::ostream& out);
Json answer_json(const Answer& answer);

// Predictions side by side, one a line.
void print_table(const PlanJob& job, const std::vector<Prediction>& predictions, std::ostream& out);

}  // namespace duet
