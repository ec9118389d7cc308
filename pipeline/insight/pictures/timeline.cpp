// See timeline.h.
#include "pipeline/insight/pictures/timeline.h"

#include <algorithm>

#include "pipeline/insight/pictures/svg.h"

namespace duet {
namespace {

constexpr double kLabel = 96, kWidth = 1000, kMargin = 14, kRow = 22, kRowGap = 3, kMarks = 10,
                 kRankGap = 16, kTop = 44, kLetter = 5.4;
constexpr size_t kMostRanks = 16;

constexpr const char* kShades[][4] = {  // by Work, light to dark, dealt to components in turn
    {"#ffdc82", "#f4a750", "#aedeba", "#64b885"}, {"#b0d9f5", "#63a8de", "#dbcbf1", "#ad91d9"},
    {"#d0d7de", "#d0d7de", "#d0d7de", "#d0d7de"}};
constexpr const char* kCauseColors[] = {
    "#8c959f", "#bf3989", "#cf222e", "#8250df", "#57606a", "#bc4c00"};  // by Cause

// By stream; events of one component that follow one another with less than a pixel between them
// are one.
std::map<int32_t, std::vector<GpuEvent>> runs_of(const RankTrace& rank, int64_t pixel) {
  std::map<int32_t, std::vector<GpuEvent>> streams;
  for (const GpuEvent& e : rank.events) {
    if (e.work >= Work::wait) continue;
    std::vector<GpuEvent>& runs = streams[e.stream];
    const bool near = !runs.empty() && e.begin <= runs.back().end + pixel;
    const bool same = near && runs.back().component == e.component && runs.back().work == e.work &&
        runs.back().layer == e.layer;
    const bool both_tiny = near && e.end - runs.back().begin < pixel;
    if (same || both_tiny)
      runs.back().end = std::max(runs.back().end, e.end);
    else
      runs.push_back(e);
  }
  return streams;
}

class Timeline {
 public:
  explicit Timeline(const Analysis& a) : a_(a) {
    int64_t last = INT64_MIN;
    for (const RankTrace& rank : a.ranks)
      for (const GpuEvent& e : rank.events) last = std::max(last, e.end + rank.to_common);
    span_ = std::max<int64_t>(1, last - a.origin);
    shown_ = std::min(kMostRanks, a.ranks.size());
  }

  void paint(std::ostream& out) {
    draw_.text(kMargin, 24, "t", title());
    double y = kTop;
    for (size_t r = 0; r < shown_; ++r) y = paint_rank(r, y);
    paint_legend(y);
    draw_.write(out, kLabel + kWidth + kMargin, y + kMargin + 2 * 22,
        ".n{font-size:9.5px;text-anchor:middle;fill:#22272e}.r{font-size:11.5px;fill:#57606a}"
        ".k{font-size:11px;fill:#424a53}.t{font-size:15px;font-weight:bold;fill:#22272e}",
        "", "");
  }

 private:
  double x_of(size_t rank, int64_t time) const {
    const int64_t since = time + a_.ranks[rank].to_common - a_.origin;
    return kLabel + kWidth * double(since) / double(span_);
  }

  std::string title() const {
    Overlap sum;
    for (const RankTrace& rank : a_.ranks) sum += rank.measure.overlap;
    std::string text = format("%.1f ms", ms(span_));
    if (sum.comm > 0) text += format(", %.1f%% of communication covered", 100 * sum.fraction());
    if (shown_ < a_.ranks.size()) text += cat(", ", shown_, " of ", a_.ranks.size(), " ranks");
    return text;
  }

  const char* color_of(const GpuEvent& run) {
    std::map<int32_t, size_t>& dealt = dealt_[int(run.work)];
    const size_t shade = dealt.emplace(run.component, dealt.size()).first->second % 4;
    return kShades[int(run.work)][shade];
  }

  double paint_rank(size_t r, double y) {
    const RankTrace& rank = a_.ranks[r];
    for (const auto& [stream, runs] : runs_of(rank, span_ / 2000)) {
      const std::string& name = rank.recording->streams[size_t(stream)].label;
      draw_.text(kMargin, y + kRow / 2 + 4, "r", cat(rank.number, ": ", fitted(name, 10)));
      draw_.box(kLabel, y, kWidth, kRow, "fill='#f3f4f6'");
      for (const GpuEvent& run : runs) {
        const double x = x_of(r, run.begin), width = x_of(r, run.end) - x;
        draw_.box(x, y, std::max(width, 0.4), kRow, cat("fill='", color_of(run), "'"));
        const std::string& words = a_.names[run.component];
        if (kLetter * double(words.size()) < width)
          draw_.text(x + width / 2, y + kRow / 2 + 3.4, "n", words);
      }
      y += kRow + kRowGap;
    }
    for (const Conflict& c : a_.conflicts) {
      if (c.rank != r) continue;
      const double x = x_of(r, c.time.begin), width = x_of(r, c.time.end) - x;
      if (width < 0.2) continue;
      draw_.box(
          x, y + (c.slowed() ? 5 : 0), width, 4, cat("fill='", kCauseColors[int(c.cause)], "'"));
    }
    return y + kMarks + kRankGap;
  }

  void paint_legend(double y) {
    double x = kLabel;
    const auto entry = [&](const std::string& words, const std::string& color, double height) {
      draw_.box(x, y + 11 - height, 12, height, cat("fill='", color, "'"));
      draw_.text(x + 17, y + 10, "k", words);
      x += 17 + 6.4 * double(words.size()) + 14;
    };
    for (int work = 0; work < 3; ++work)
      if (!dealt_[work].empty()) entry(kWorks[work], kShades[work][1], 12);
    y += 20, x = kLabel;
    int64_t sums[6] = {};
    for (const Conflict& c : a_.conflicts) sums[int(c.cause)] += c.lost;
    for (int cause = 0; cause < 6; ++cause)
      if (sums[cause] > 0)
        entry(cat(cause < 5 ? "exposed, " : "slowed, ", kCauses[cause],
                  format(" %.2f ms", ms(sums[cause]))),
            kCauseColors[cause], 4);
  }

  Svg draw_;
  const Analysis& a_;
  int64_t span_ = 1;
  size_t shown_ = 0;
  std::map<int32_t, size_t> dealt_[3];  // shades, by Work
};

}  // namespace

void paint_timeline(std::ostream& out, const Analysis& analysis) { Timeline(analysis).paint(out); }

}  // namespace duet
