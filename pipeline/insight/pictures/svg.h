// Svg: the one writer of pictures. Plain rectangles, text and paths, so that browsers, GitHub and
// converters all draw the same; the white ground is there for dark pages. Drawn first and written
// last, for what is drawn decides the size.
//
// Units are pixels; coordinates are printed to a hundredth of one, without trailing zeros. `style`
// names a class of the picture's own style sheet, or one of these: t the title, c what is said
// beside it, f a frame.
// Read next: paint.h.
#pragma once
#include <array>
#include <cmath>
#include <ostream>
#include <string>

#include "model/base/check.h"
#include "model/base/text.h"

namespace duet {

using Rgb = std::array<int, 3>;

// "#rrggbb" between two colours: `from` at 0, `to` at 1.
inline std::string blend(const Rgb& from, const Rgb& to, double at) {
  std::string hex = "#";
  for (size_t i = 0; i < 3; ++i)
    hex += format("%02x", int(std::lround(from[i] + at * (to[i] - from[i]))));
  return hex;
}

class Svg {
 public:
  static std::string px(double value) { return cat(std::round(value * 100) / 100); }

  void box(double x, double y, double width, double height, const std::string& attributes) {
    body_ += cat("<rect x='", px(x), "' y='", px(y), "' width='", px(width), "' height='",
        px(height), "' ", attributes, "/>\n");
  }
  void text(double x, double y, const char* style, const std::string& words) {
    body_ += cat("<text x='", px(x), "' y='", px(y), "' class='", style, "'>");
    for (char c : one_line(words))
      body_ += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
    body_ += "</text>\n";
  }
  void path(const std::string& attributes, const std::string& d) {
    body_ += cat("<path ", attributes, " d='", d, "'/>\n");
  }
  // What is drawn until end_group() has these attributes.
  void begin_group(const std::string& attributes) { body_ += cat("<g ", attributes, ">\n"); }
  void end_group() { body_ += "</g>\n"; }

  // The whole picture; classes: CSS, after `common`; definitions: of patterns.
  void write(std::ostream& out, double width, double height, const char* classes,
      const char* definitions = "", const char* common = kCommon) const {
    Svg ground;
    ground.box(0, 0, width, height, "rx='8' fill='#fff'");
    out << "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 " << px(width) << " " << px(height)
        << "' width='" << px(width) << "' height='" << px(height)
        << "' font-family='Helvetica, Arial, sans-serif'>\n<style>" << common << classes
        << "</style>\n"
        << definitions << ground.body_ << body_ << "</svg>\n";
  }

 private:
  static constexpr const char* kCommon =
      ".t{font-size:17px;font-weight:bold;fill:#22272e}.c{font-size:12.5px;fill:#57606a}"
      ".f{fill:none;stroke:#8c959f}";
  std::string body_;
};

}  // namespace duet
