// Sums over rows, for a tile of columns at a time: a row of the launch owns the tile and keeps its
// sums in registers, so that on a GPU neither sums nor tiles wait for one another.
//
//   const ColumnTile<Group> tile(r, x.cols);
//   A sum[ColumnTile<Group>::columns / Group::size] = {};
//   down_columns(g, tile, begin, end, [&](t, c) { return x.row<T>(t)[c]; },
//       [&](int j, T xi) { sum[j] += xi; });
//
// Read next: math.h.
#pragma once
#include <type_traits>

#include "model/machine/group.h"
#include "model/machine/launch.h"

namespace duet {

HD int64_t tiles_of(int64_t cols, int tile) { return (cols + tile - 1) / tile; }
HD int columns_of_tile(int64_t cols, int64_t first, int tile) {
  return int(cols - first < tile ? cols - first : tile);
}

// Row r of a launch of tiles: the n columns from `first` on of row `row`. On a GPU a lane has one.
template <class Group> struct ColumnTile {
  static constexpr int columns = Group::size == 1 ? 64 : Group::size;
  int64_t row;
  int first, n;
  HD ColumnTile(int64_t r, int64_t cols)
      : row(r / tiles_of(cols, columns)), first(int(r % tiles_of(cols, columns)) * columns),
        n(columns_of_tile(cols, first, columns)) {}
};

// A launch of the tiles of so many rows, which have as many columns as x.
template <class Op> void launch_tiles(Stream& stream, int64_t rows, const typename Op::Args& args) {
  const int tile = stream.device().is_cuda() ? 32 : ColumnTile<Serial>::columns;
  launch<Op>(stream, rows * tiles_of(args.x.cols, tile), args);
}

// The tile of an operation that loops over its row's tiles itself: on a GPU 8 columns a lane.
template <class Group>
inline constexpr int kWideTile = Group::size == 1 ? ColumnTile<Group>::columns : 8 * Group::size;

// visit(j, i, x[i], ...) for this lane's columns i of the n <= tile of a tile; the j-th is where
// its sum[j] is. A lane's are neighbours, read and written at once where the arrays' places allow
// it.
template <int tile, class Group, class Visit, class... T>
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

template <class Group, class Visit, class... T>
HD void each_column(Group g, const ColumnTile<Group>& tile, Visit visit, T*... x) {
  each_column<ColumnTile<Group>::columns>(g, tile.n, visit, (x + tile.first)...);
}

// add(j, read(t, c)) for the rows t of begin .. end-1, ascending, and this lane's columns c of a
// tile; the j-th is where its sum[j] is. On a GPU a lane reads `ahead` rows before it adds the
// first, since a load takes as long as a hundred additions; sync() keeps the compiler from putting
// it off until then.
template <int ahead = 32, class Group, class Read, class Add>
HD void down_columns(
    Group g, const ColumnTile<Group>& tile, int64_t begin, int64_t end, Read read, Add add) {
  if constexpr (Group::size == 1) {
    const auto rows = [&](auto n) {
      for (int64_t t = begin; t < end; ++t)
        for (int i = 0; i < int(n); ++i) add(i, read(t, tile.first + i));
    };
    constexpr std::integral_constant<int, ColumnTile<Group>::columns> whole{};
    tile.n == whole ? rows(whole) : rows(tile.n);
  } else {
    const int c = tile.first + (g.lane() < tile.n ? g.lane() : 0);
    ROW_UNROLL(1)
    for (; begin + ahead <= end; begin += ahead) {
      decltype(read(begin, c)) values[ahead];
      ROW_UNROLL(ahead)
      for (int k = 0; k < ahead; ++k) values[k] = read(begin + k, c);
      g.sync();
      ROW_UNROLL(ahead)
      for (int k = 0; k < ahead; ++k) add(0, values[k]);
    }
    if constexpr (ahead > 1) down_columns<ahead / 2>(g, tile, begin, end, read, add);
  }
}

}  // namespace duet
