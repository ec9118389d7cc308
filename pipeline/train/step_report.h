// StepReport: the numbers of a step that all ranks must agree on, exchanged once a step.
//
// Every rank contributes values under keys that it names once, at the start. A key may come from
// several ranks: copies of one thing (a replicated parameter's sum of squares: any of them counts)
// or parts of one (an expert's tokens: they add up). Each rank then walks through all keys in
// ascending order, so that sums over them have the same bits on every rank and for every layout.
#pragma once
#include <string>
#include <vector>

#include "comm/comm.h"

namespace duet {

class StepReport {
 public:
  StepReport(Comm& world, const std::vector<std::string>& keys);  // collective
  // collective; in the order of the keys
  void exchange(const std::vector<double>& values);

  // Calls fn(key, first, sum) for each distinct key that begins with `prefix`, ascending: the value
  // of the lowest rank that has it, and the sum of all ranks' values in rank order.
  template <class Fn> void for_each(const std::string& prefix, Fn fn) const {
    for (size_t i = 0; i < entries_.size();) {
      const std::string& key = entries_[i].key;
      const double first = value(entries_[i]);
      double sum = 0;
      size_t j = i;
      for (; j < entries_.size() && entries_[j].key == key; ++j) sum += value(entries_[j]);
      if (key.compare(0, prefix.size(), prefix) == 0) fn(key, first, sum);
      i = j;
    }
  }

 private:
  struct Entry {
    std::string key;
    size_t rank, index;
    auto operator<=>(const Entry&) const = default;
  };
  double value(const Entry& e) const;

  Comm& world_;
  std::vector<Entry> entries_;               // ascending
  std::vector<std::vector<double>> values_;  // of each rank
};

}  // namespace duet
