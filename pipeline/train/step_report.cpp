// See step_report.h.
#include "pipeline/train/step_report.h"

#include <algorithm>
#include <sstream>

namespace duet {

StepReport::StepReport(Comm& world, const std::vector<std::string>& keys) : world_(world) {
  std::string mine;
  for (const std::string& key : keys) mine += key + "\n";
  const std::vector<std::string> all = world.gather(mine);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    std::istringstream lines(all[rank]);
    size_t index = 0;
    for (std::string key; std::getline(lines, key);) entries_.push_back({key, rank, index++});
  }
  std::sort(entries_.begin(), entries_.end());
}

void StepReport::exchange(const std::vector<double>& values) {
  values_ = world_.gather_vectors(values);
}

double StepReport::value(const Entry& e) const {
  DUET_CHECK(e.index < values_[e.rank].size(), "rank ", e.rank, ": expected a value of ", e.key,
      ", found none");
  return values_[e.rank][e.index];
}

}  // namespace duet
