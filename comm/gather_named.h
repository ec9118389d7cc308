// gather_named: what each rank has under names, made known to all: by name, then by rank. The one
// way in which ranks exchange values of which not all have the same: a step's numbers, checksums,
// shapes, pieces of a dump.
//
//   const auto all = gather_named<std::vector<double>>(world, {{"loss", {0.5}}});
//   all.at("loss")[0].second                // of copies of one thing: those of the lowest rank
//   sum_over_ranks(all.at("loss"))          // of parts of one thing
//
// Walking through the result is walking in ascending order of names, on every rank alike, so sums
// over names have the same bits everywhere.
// Read next: transport.h.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/comm.h"

namespace duet {

template <class V> using ByRank = std::vector<std::pair<int, V>>;  // (rank, value), ascending
template <class V> using Gathered = std::map<std::string, ByRank<V>>;

// Collective. V: a string, or a vector of trivially copyable values.
template <class V> Gathered<V> gather_named(Comm& comm, const std::map<std::string, V>& mine) {
  std::string bytes;
  const auto put = [&](const auto& text) {  // its length in bytes, then itself
    const size_t size = text.size() * sizeof(text[0]);
    bytes.append(reinterpret_cast<const char*>(&size), sizeof size);
    bytes.append(reinterpret_cast<const char*>(text.data()), size);
  };
  for (const auto& [name, value] : mine) put(name), put(value);

  Gathered<V> all;
  const std::vector<std::string> of_ranks = comm.gather(bytes);
  for (size_t rank = 0; rank < of_ranks.size(); ++rank) {
    std::string_view rest = of_ranks[rank];
    const auto take = [&](auto& text) {
      size_t size;
      memcpy(&size, rest.data(), sizeof size);
      text.resize(size / sizeof(text[0]));
      if (size) memcpy(text.data(), rest.data() + sizeof size, size);
      rest.remove_prefix(sizeof size + size);
    };
    while (!rest.empty()) {
      std::string name;
      take(name);
      take(all[name].emplace_back(int(rank), V()).second);
    }
  }
  return all;
}

// Element by element, in the order of ranks. The parts are equally long.
template <class T> std::vector<T> sum_over_ranks(const ByRank<std::vector<T>>& parts) {
  std::vector<T> sum(parts.at(0).second.size(), 0);
  for (const auto& [rank, part] : parts) {
    DUET_CHECK(part.size() == sum.size(), "rank ", rank, ": expected ", sum.size(),
        " values to add up, found ", part.size());
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
  }
  return sum;
}

}  // namespace duet
