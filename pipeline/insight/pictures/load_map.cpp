// See load_map.h. Steps become columns of whole pixels, ratios become a few colours, and neighbours
// of one colour one line of a path: so the picture of a long run stays small.
#include "pipeline/insight/pictures/load_map.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "moe/eplb.h"
#include "pipeline/insight/pictures/svg.h"

namespace duet {

using Tokens = LayerHistory::Tokens;

Tokens loads_in_order(const Tokens& experts, size_t ranks) {
  Tokens loads(experts.size(), std::vector<double>(ranks, 0));
  for (size_t step = 0; step < experts.size(); ++step)
    for (size_t e = 0, n = experts[step].size(); e < n; ++e)
      loads[step][e * ranks / n] += experts[step][e];
  return loads;
}

std::vector<std::vector<double>> heat(const Tokens& loads, int64_t per_column) {
  const size_t rows = loads[0].size(), per = size_t(per_column);
  std::vector<std::vector<double>> cells(
      rows, std::vector<double>((loads.size() + per - 1) / per, 0));
  for (size_t step = 0; step < loads.size(); ++step) {
    const double mean = std::accumulate(loads[step].begin(), loads[step].end(), 0.) / double(rows);
    const size_t column = step / per, steps = std::min(per, loads.size() - column * per);
    for (size_t row = 0; row < rows; ++row)
      cells[row][column] += (mean > 0 ? loads[step][row] / mean : 1) / double(steps);
  }
  return cells;
}

namespace {

// pixels; kWidth at most, for the columns
constexpr int kLeft = 138, kWidth = 800, kRight = 114, kTop = 62;
// colours on either side of the mean, and how many for a factor of two
constexpr int kLevels = 12, kOctave = 6;
constexpr size_t kLayers = 4;  // are drawn at most

int level_of(double ratio) {
  return ratio <= 0 ? -kLevels
                    : std::clamp(int(std::lround(kOctave * std::log2(ratio))), -kLevels, kLevels);
}

// White at the mean; blue below and orange to red above, darker with distance, which the
// colour-blind tell apart too.
std::string color_of(int level) {
  static constexpr Rgb kWhite{255, 255, 255}, kBlue[]{kWhite, {146, 192, 222}, {58, 108, 170}},
      kRed[]{kWhite, {244, 140, 90}, {150, 16, 38}};
  const Rgb* stops = level < 0 ? kBlue : kRed;
  const double at = 2. * std::abs(level) / kLevels;
  const int from = std::min(int(at), 1);
  return blend(stops[from], stops[from + 1], at - from);
}

struct Drawer : Svg {
  int64_t per_column, columns;  // steps of a column; columns
  int column;                   // its pixels
  int y = kTop;                 // everything above is drawn

  void frame(int64_t width, int height) {
    box(kLeft - .5, y - .5, double(width + 1), height + 1, "class='f'");
  }
  void strip(const std::string& label, const Tokens& loads) {
    const auto cells = heat(loads, per_column);
    const int height = std::clamp(128 / int(cells.size()), 1, 8), all = height * int(cells.size());
    std::string paths[2 * kLevels + 1];
    for (size_t row = 0; row < cells.size(); ++row)
      for (size_t x = 0, end; x < cells[row].size(); x = end) {
        const int level = level_of(cells[row][x]);
        for (end = x + 1; end < cells[row].size() && level_of(cells[row][end]) == level;) ++end;
        paths[level + kLevels] += cat('M', x, ' ', row, 'h', end - x);
      }
    paths[kLevels].clear();  // white
    begin_group(cat("transform='translate(", kLeft, ' ', y + height / 2., ")scale(", column, ' ',
        height, ")'"));
    for (int i = 0; i <= 2 * kLevels; ++i)
      if (!paths[i].empty()) path("stroke='" + color_of(i - kLevels) + "'", paths[i]);
    end_group();
    frame(columns * column, all);
    text(kLeft - 8, y + all / 2 + 4, "e", label);
    y += all + 5;
  }
  void strip_of_ranks(const char* when, const Tokens& loads) {
    const int top = y;
    strip(cat(loads[0].size(), " ranks, ", when), loads);
    double sum = 0;
    for (const std::vector<double>& step : loads) sum += balancedness(step);
    text(kLeft + int(columns) * column + 12, (top + y) / 2 + 2, "b",
        format("%.3f", sum / double(loads.size())));
  }
  void band(const LayerHistory& layer, int64_t first_step) {
    text(14, y + 12, "l", cat("layer ", layer.layer));
    strip(cat(layer.experts[0].size(), " experts"), layer.experts);
    if (!layer.ranks.empty()) {
      strip_of_ranks("before", loads_in_order(layer.experts, layer.ranks[0].size()));
      strip_of_ranks("after", layer.ranks);
    }
    for (int64_t step : layer.moved)
      path("class='m'",
          cat('M', kLeft + (step + 1 - first_step) * column / per_column, ' ', y - 3, "l3 5h-6z"));
    y += 24;
  }
  void axis(const RunLoads& run) {
    int64_t every = 1;
    for (bool five = true; every * 12 < run.steps; five = !five) every *= five ? 5 : 2;
    for (int64_t step = (run.first_step + every - 1) / every * every;
         step < run.first_step + run.steps; step += every) {
      const int x = kLeft + int((step - run.first_step) / per_column * column) + column / 2;
      path("class='f'", cat('M', x + .5, ' ', y - 22, "v4"));
      text(x, y - 6, "x", std::to_string(step));
    }
    text(kLeft - 8, y - 6, "e", "step");
  }
  void legend(bool moves) {
    y += 14;
    text(kLeft - 8, y + 11, "e", "load / mean");
    for (int level = -kLevels, x = kLeft; level <= kLevels; ++level, x += 14)
      box(x, y, 14, 14, "fill='" + color_of(level) + "'");
    frame(14 * (2 * kLevels + 1), 14);
    int x = kLeft + 7;
    for (const char* words : {"≤ 1/4", "1/2", "1", "2", "≥ 4"}) {
      text(x, y + 27, "x", words);
      x += 14 * kOctave;
    }
    if (moves) {
      path("class='m'", cat('M', kLeft + 400, ' ', y + 3, "l4 7h-8z"));
      text(kLeft + 410, y + 11, "c", "experts moved");
    }
    y += 42;
  }
};

}  // namespace

void paint_load_map(std::ostream& out, const RunLoads& run) {
  const int64_t per_column = (run.steps + kWidth / 2 - 1) / (kWidth / 2),
                columns = (run.steps + per_column - 1) / per_column;
  Drawer draw{{}, per_column, columns, int(kWidth / columns)};
  const size_t drawn = std::min(kLayers, run.layers.size());
  draw.text(14, 26, "t", cat("Expert load over ", run.steps, " steps"));
  const bool ranks = !run.layers[0].ranks.empty();
  draw.text(14, 46, "c",
      cat(drawn, " of ", run.layers.size(), " layers with experts; a row is an expert",
          ranks ? " or a rank; before: experts in order, each once; after: as computed" : "",
          per_column > 1 ? cat("; a column is ", per_column, " steps") : ""));
  if (ranks) draw.text(kLeft + int(columns) * draw.column + 12, 46, "c", "balancedness");
  for (size_t i = 0; i < drawn; ++i)
    draw.band(
        run.layers[drawn > 1 ? i * (run.layers.size() - 1) / (drawn - 1) : 0], run.first_step);
  draw.axis(run);
  draw.legend(ranks);
  draw.write(out, kLeft + kWidth + kRight, draw.y,
      ".m{fill:#22272e}.e,.x{font-size:12px;fill:#57606a}.e{text-anchor:end}"
      ".x{text-anchor:middle}.l,.b{font-size:13px;font-weight:bold;fill:#22272e}");
}

}  // namespace duet
