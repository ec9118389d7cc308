// The SVG of schedules (paint.h): one row of boxes a rank, hatched where it idles.
// Read next: schedule_command.h.
#include <algorithm>
#include <array>
#include <ostream>

#include "pipeline/insight/pictures/paint.h"
#include "pipeline/insight/pictures/svg.h"

namespace duet {
namespace {

constexpr double kLabel = 66, kMargin = 14, kTitle = 34, kRow = 20, kRowGap = 3, kPictureGap = 16,
                 kLegend = 40;
constexpr double kDigit = 5.6;  // width of a digit of the boxes' text

struct Paint {
  const char* what;
  Rgb light, dark;
};
constexpr std::array<Paint, 4> kPaints = {{{"forward", {255, 220, 130}, {244, 167, 80}},  // by Kind
    {"backward for inputs", {176, 217, 245}, {99, 168, 222}},
    {"backward for weights", {219, 203, 241}, {173, 145, 217}},
    {"full backward", {174, 224, 186}, {100, 184, 133}}}};

std::string color_of(Kind kind, int chunk, int chunks) {
  const Paint& paint = kPaints[size_t(kind)];
  return blend(paint.light, paint.dark, chunks > 1 ? double(chunk) / (chunks - 1) : 0);
}

int chunks_of(const Schedule& s) {
  const std::vector<int> chunk = chunk_of_stage(s);
  return *std::max_element(chunk.begin(), chunk.end()) + 1;
}

// scale: pixels for one unit of time.
void draw_rank(Svg& draw, double scale, const Picture& picture, int rank, double y) {
  const Schedule& s = picture.schedule;
  const std::vector<int> chunk = chunk_of_stage(s);
  const int chunks = chunks_of(s);
  const double B_of_pair = picture.costs.B() / (picture.costs.F + picture.costs.B());
  draw.text(kMargin, y + kRow / 2 + 4, "r", cat("rank ", rank));
  draw.box(kLabel, y, picture.timing.makespan * scale, kRow, "fill='url(#idle)'");
  for (size_t i = 0; i < s.ranks[rank].size(); ++i) {
    const Action& action = s.ranks[rank][i];
    const double x = kLabel + picture.timing.spans[rank][i].start * scale;
    const double width = kLabel + picture.timing.spans[rank][i].end * scale - x;
    for_parts(action, [&](const Action& part) {
      const bool is_B = action.overlapped() && part.kind == Kind::B;
      const double share = !action.overlapped() ? 1 : is_B ? B_of_pair : 1 - B_of_pair;
      const double left = is_B ? x + width * (1 - share) : x, wide = width * share;
      draw.box(left, y, wide, kRow,
          "class='a' fill='" + color_of(part.kind, chunk[part.stage], chunks) + "'");
      const std::string number = std::to_string(part.microbatch);
      if (number.size() * kDigit <= wide)
        draw.text(left + wide / 2, y + kRow / 2 + 3.3, "n", number);
    });
    if (action.overlapped()) draw.box(x + 0.7, y + 0.7, width - 1.4, kRow - 1.4, "class='p'");
  }
}

void draw_legend(Svg& draw, std::span<const Picture> pictures, double y) {
  std::array<int, 4> shades{};  // by Kind: the most chunks of a picture that has such actions
  bool pairs = false, directions = true;
  for (const Picture& picture : pictures) {
    const int chunks = chunks_of(picture.schedule);
    if (chunks > 1) directions &= picture.schedule.two_directions;
    for_all_parts(picture.schedule, [&](int rank, int i, const Action& part) {
      pairs |= picture.schedule.ranks[rank][i].overlapped();
      shades[size_t(part.kind)] = std::max(shades[size_t(part.kind)], chunks);
    });
  }
  double x = kLabel;
  const auto entry = [&](const std::string& words, auto swatch) {
    swatch();
    draw.text(x + 5, y + 10, "k", words);
    x += 5 + 5.7 * words.size() + 16;
  };
  const auto square = [&](const std::string& attributes) {
    draw.box(x, y, 13, 13, attributes), x += 13;
  };
  for (const Kind kind : {Kind::F, Kind::B, Kind::I, Kind::W}) {
    const int chunks = shades[size_t(kind)];
    if (chunks == 0) continue;
    entry(kPaints[size_t(kind)].what, [&] {
      for (int chunk = 0; chunk < chunks; ++chunk)
        square("class='a' fill='" + color_of(kind, chunk, chunks) + "'");
    });
  }
  if (pairs) entry("overlapped pair", [&] { square("class='p'"); });
  entry("idle", [&] { square("fill='url(#idle)'"); });
  if (*std::max_element(shades.begin(), shades.end()) > 1)
    draw.text(x, y + 10, "k",
        directions ? "darker: the second direction" : "darker: a rank's later chunk");
}

// So wide that the narrowest action shows its number, unless the whole became too wide to look at.
double choose_scale(std::span<const Picture> pictures) {
  double narrowest = 1e300, makespan = 0;
  size_t digits = 1;
  for (const Picture& picture : pictures) {
    makespan = std::max(makespan, picture.timing.makespan);
    digits = std::max(digits, std::to_string(picture.schedule.microbatches - 1).size());
    for (const auto& row : picture.timing.spans)
      for (const Span& span : row) narrowest = std::min(narrowest, span.end - span.start);
  }
  return std::max(std::min((digits * kDigit + 4) / narrowest, 2400 / makespan), 880 / makespan);
}

}  // namespace

void paint_svg(std::ostream& out, std::span<const Picture> pictures) {
  Svg draw;
  const double scale = choose_scale(pictures);
  double longest = 0, height = kMargin + kLegend;
  for (const Picture& picture : pictures) {
    longest = std::max(longest, picture.timing.makespan);
    height += kTitle + picture.schedule.pp * (kRow + kRowGap) + kPictureGap;
  }
  const double width = std::max(kLabel + longest * scale + kMargin, 960.0);
  double y = kMargin;
  for (const Picture& picture : pictures) {
    const std::string title = title_of(picture.schedule);
    draw.text(kLabel, y + 16, "t", title);
    draw.text(kLabel + 10.2 * title.size() + 14, y + 16, "c", picture.caption);
    y += kTitle - 6;
    for (int rank = 0; rank < picture.schedule.pp; ++rank, y += kRow + kRowGap)
      draw_rank(draw, scale, picture, rank, y);
    y += kPictureGap + 6;
  }
  draw_legend(draw, pictures, y + 4);
  draw.write(out, width, height,
      ".a{stroke:#fff;stroke-width:.8}.p{fill:none;stroke:#22272e;stroke-width:1.4}"
      ".n{font-size:9px;text-anchor:middle;fill:#22272e}.r{font-size:12px;fill:#57606a}"
      ".k{font-size:11px;fill:#424a53}",
      "<defs><pattern id='idle' width='6' height='6' patternUnits='userSpaceOnUse'>"
      "<rect width='6' height='6' fill='#eff1f4'/>"
      "<path d='M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2' stroke='#cfd5dc' stroke-width='.8'/>"
      "</pattern></defs>\n");
}

}  // namespace duet
