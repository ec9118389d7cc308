// Sums over rows, for a tile of columns at a time: a row of the launch owns the tile and keeps its
// sums in registers, so that on a GPU neither sums nor tiles wait for one another.
//
//   A sum[kTileColumns / Group::size] = {};
//   each_column(g, n, [&](int j, int, const T& xi) { sum[j] += xi; }, x);   for each row of x
//
// Read next: math.h.
#pragma once
#include "model/machine/group.h"

namespace duet {

inline constexpr int kTileColumns = 64;
// Of a row that goes through its own tiles: on a GPU a lane has 16 bytes of bf16.
template <class Group>
inline constexpr int kWideTile = Group::size == 1 ? kTileColumns : 8 * Group::size;

HD int64_t tiles_of(int64_t cols) { return (cols + kTileColumns - 1) / kTileColumns; }
HD int columns_of_tile(int64_t cols, int64_t first, int tile = kTileColumns) {
  return int(cols - first < tile ? cols - first : tile);
}

// visit(j, i, x[i], ...) for this lane's columns i of the n <= tile of a tile; the j-th is where
// its sum[j] is. A lane's are neighbours, read and written at once where the arrays' places allow
// it.
template <int tile = kTileColumns, class Group, class Visit, class... T>
HD void each_column(Group g, int n, Visit visit, T* __restrict... x) {
  if constexpr (Group::size == 1) {
    for (int i = 0; i < n; ++i) visit(i, i, x[i]...);
  } else {
    constexpr int each = tile / Group::size;
    const int first = g.lane() * each;
    if (first + each <= n && begin_packs<each>((x + first)...))
      visit_packs<each>([&](int j, auto&... xi) { visit(j, first + j, xi...); }, (x + first)...);
    else
      for (int j = 0; j < each; ++j)
        if (first + j < n) visit(j, first + j, x[first + j]...);
  }
}

}  // namespace duet
