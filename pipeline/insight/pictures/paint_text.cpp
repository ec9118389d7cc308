// The grid in the terminal (paint.h).
// Read next: paint_svg.cpp.
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <ostream>

#include "model/base/text.h"
#include "pipeline/insight/pictures/paint.h"

namespace duet {
namespace {

struct Glyph {
  char c = '.';
  int color = 0;  // of the background, one of xterm's 256; 0: none
};

int color_of(Kind kind, bool darker) {
  static constexpr int kColors[][2] = {{222, 215}, {117, 74}, {183, 140}, {114, 71}};  // by Kind
  return kColors[size_t(kind)][darker];
}

// Columns for one unit of time: so many that every action's label fits, unless that made the
// average one much too wide.
double columns_per_unit(const Schedule& s, const Timing& timing) {
  const double digits = std::to_string(s.microbatches - 1).size();
  double needed = 0, longest = 0;
  for (int rank = 0; rank < s.pp; ++rank)
    for (size_t i = 0; i < s.ranks[rank].size(); ++i) {
      const double cost = timing.spans[rank][i].end - timing.spans[rank][i].start;
      const double width =
          s.ranks[rank][i].overlapped() ? 2 * (1 + digits) + 2 : std::max(3.0, 1 + digits);
      needed = std::max(needed, width / cost);
      longest = std::max(longest, cost);
    }
  return std::min(needed, 24 / longest);
}

void paint_action(std::vector<Glyph>& row, const Action& action, const std::vector<int>& chunks,
    int begin, int end) {
  const bool pair = action.overlapped();
  std::vector<Glyph> glyphs;
  if (pair) glyphs.push_back({'[', color_of(Kind::F, chunks[action.stage] > 0)});
  for_parts(action, [&](const Action& part) {
    const bool later = chunks[part.stage] > 0;
    const std::string label = cat(kind_name(part.kind), part.microbatch);
    for (char c : later ? lower(label) : label) glyphs.push_back({c, color_of(part.kind, later)});
  });
  const int color = glyphs.back().color;
  glyphs.resize(std::max(int(glyphs.size()), end - begin - pair), {' ', color});
  if (pair) glyphs.push_back({']', color});
  std::copy_n(glyphs.begin(), end - begin, row.begin() + begin);
}

void print(std::ostream& out, const std::vector<Glyph>& row, size_t begin, size_t end, bool color) {
  int now = 0;
  for (size_t i = begin; i < end; ++i) {
    if (color && row[i].color != now) {
      now = row[i].color;
      out << (now ? cat("\033[38;5;16;48;5;", now, "m") : "\033[0m");
    }
    out << (color && !now ? ' ' : row[i].c);
  }
  if (color) out << "\033[0m";
}

}  // namespace

Terminal terminal_of_stdout() {
  if (!isatty(STDOUT_FILENO)) return {};
  const char* no_color = std::getenv("NO_COLOR");
  winsize size{};
  const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0;
  return {!no_color || !*no_color, known ? size.ws_col : 0};
}

std::vector<int> chunk_of_stage(const Schedule& s) {
  std::vector<int> chunk(s.stages(), 0), held(s.pp, 0);
  for (int stage = 0; stage < s.stages(); ++stage)
    chunk[stage] = s.two_directions ? stage / s.model_stages() : held[s.rank_of[stage]]++;
  return chunk;
}

std::string title_of(const Schedule& s) {
  for (const ScheduleKind& kind : schedule_kinds())
    if (s.name == kind.name) return kind.title;
  return s.name;
}

void paint_text(
    std::ostream& out, const Schedule& s, const Timing& timing, const Terminal& terminal) {
  const double scale = columns_per_unit(s, timing);
  const auto column = [&](double time) { return int(std::lround(time * scale)); };
  const size_t columns = column(timing.makespan);
  const std::vector<int> chunks = chunk_of_stage(s);
  std::vector<std::vector<Glyph>> rows(s.pp, std::vector<Glyph>(columns));
  for (int rank = 0; rank < s.pp; ++rank)
    for (size_t i = 0; i < s.ranks[rank].size(); ++i) {
      const Span span = timing.spans[rank][i];
      paint_action(rows[rank], s.ranks[rank][i], chunks, column(span.start), column(span.end));
    }
  const size_t label = 6 + std::to_string(s.pp - 1).size();  // "rank 0 "
  const size_t band =
      terminal.columns > int(label) + 20 ? terminal.columns - label : std::max<size_t>(columns, 1);
  for (size_t begin = 0; begin < columns; begin += band) {
    if (begin > 0) out << "\n";
    for (int rank = 0; rank < s.pp; ++rank) {
      const std::string number = std::to_string(rank);
      out << "rank " << std::string(label - 6 - number.size(), ' ') << number << " ";
      print(out, rows[rank], begin, std::min(columns, begin + band), terminal.color);
      out << "\n";
    }
  }
}

}  // namespace duet
