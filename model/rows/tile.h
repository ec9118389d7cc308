// Sums over rows, for a tile of columns at a time: a row of the launch owns the tile and keeps its
// sums in registers, so that on a GPU neither sums nor tiles wait for one another.
//
//   A sum[kTileColumns / Group::size] = {};
//   each_column(g, n, [&](int j, int i) { sum[j] += x[i]; });   for each row of x
//
// Read next: math.h.
#pragma once
#include "model/machine/group.h"

namespace duet {

inline constexpr int kTileColumns = 64;

HD int64_t tiles_of(int64_t cols) { return (cols + kTileColumns - 1) / kTileColumns; }
HD int columns_of_tile(int64_t cols, int64_t first) {
  return int(cols - first < kTileColumns ? cols - first : kTileColumns);
}

// This lane's columns i of the n <= kTileColumns of a tile; the j-th is where its sum[j] is.
template <class Group, class Visit> HD void each_column(Group g, int n, Visit visit) {
  if constexpr (Group::size == 1) {
    for (int i = 0; i < n; ++i) visit(i, i);
  } else {
    for (int j = 0; j < kTileColumns / Group::size; ++j) {
      const int i = g.lane() + j * Group::size;
      if (i < n) visit(j, i);
    }
  }
}

}  // namespace duet
