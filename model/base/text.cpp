// See text.h.
#include "model/base/text.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <charconv>
#include <cmath>
#include <set>

#include "model/base/check.h"

namespace duet {

std::string_view trimmed(std::string_view text) {
  constexpr const char* kSpaces = " \t\r";
  const size_t begin = std::min(text.find_first_not_of(kSpaces), text.size());
  return text.substr(begin, text.find_last_not_of(kSpaces) + 1 - begin);
}

std::vector<std::string> split(std::string_view text, char at) {
  std::vector<std::string> parts;
  if (text.empty()) return parts;
  for (;;) {
    const size_t end = text.find(at);
    parts.emplace_back(trimmed(text.substr(0, end)));
    if (end == text.npos) return parts;
    text.remove_prefix(end + 1);
  }
}

// A number off the front of `text`.
template <class T> static std::optional<T> take_number(std::string_view& text) {
  T value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !std::isfinite(double(value))) return std::nullopt;
  text.remove_prefix(size_t(stop - text.data()));
  return value;
}

template <class T> std::optional<T> parse_number(std::string_view text) {
  const std::optional<T> value = take_number<T>(text);
  return text.empty() ? value : std::nullopt;
}
template std::optional<int> parse_number(std::string_view);
template std::optional<int64_t> parse_number(std::string_view);
template std::optional<uint64_t> parse_number(std::string_view);
template std::optional<double> parse_number(std::string_view);

std::optional<double> parse_quantity(std::string_view text, std::span<const Unit> units) {
  const std::optional<double> value = take_number<double>(text);
  for (const Unit& unit : units)
    if (value && trimmed(text) == unit.name) return *value * unit.value;
  return std::nullopt;
}

std::optional<std::pair<int64_t, int64_t>> parse_range(std::string_view text) {
  const size_t dash = text.find('-');
  const auto first = parse_number<int64_t>(text.substr(0, dash)),
             last = dash == text.npos ? first : parse_number<int64_t>(text.substr(dash + 1));
  if (!first || !last || *last < 0) return std::nullopt;
  return std::pair(*first, *last);
}

void read_keys(
    const char* option, std::string_view text, const std::string& allowed, const TakeKey& take) {
  std::set<std::string> seen;
  for (const std::string& item : split(text)) {
    const size_t equals = std::min(item.find('='), item.size());
    const std::string key(trimmed(item.substr(0, equals))),
        value(trimmed(item.substr(std::min(equals + 1, item.size()))));
    require(take(key, value) && seen.insert(key).second, option, ": found '", shortened(item),
        "', allowed: ", allowed, ", each once");
  }
}

std::string shortened(std::string_view text, size_t most) {
  std::string s(text);
  if (text.size() > most) {
    const size_t end = most / 3;
    s = cat(text.substr(0, most - end), "...", text.substr(text.size() - end), " (", text.size(),
        " characters)");
  }
  std::replace_if(
      s.begin(), s.end(), [](unsigned char c) { return c < ' ' || c == 127; }, '?');
  return s;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = char(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

std::string bar(double share, int width) {
  constexpr const char* kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int eighths = int(std::clamp(share, 0.0, 1.0) * width * 8 + 0.5);
  std::string text;
  for (int i = 0; i < eighths / 8; ++i) text += "█";
  const int used = eighths / 8 + (eighths % 8 > 0);
  return text + kEighths[eighths % 8] + std::string(size_t(width - used), ' ');
}

size_t character_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (byte(0) < 0x80) return 1;
  const size_t length = size_t(std::countl_one(byte(0)));
  if (length < 2 || length > 4) return 0;
  uint32_t code = byte(0) & (0x7Fu >> length);
  size_t i = 1;
  for (; i < std::min(length, text.size()); ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3F);
  }
  // what it is, or may still become: not a shorter one's, a surrogate, or beyond U+10FFFF
  const uint32_t least = code << 6 * (length - i), most = least | ((1u << 6 * (length - i)) - 1);
  constexpr uint32_t kFirst[] = {0, 0, 0x80, 0x800, 0x10000};  // of this length
  const bool surrogate = least >= 0xD800 && most <= 0xDFFF;
  return most < kFirst[length] || surrogate || least > 0x10FFFF ? 0 : length;
}

std::string Printable::add(std::string_view bytes, bool last) {
  waiting_ += bytes;
  std::string out;
  std::string_view left = waiting_;
  while (!left.empty()) {
    size_t length = character_length(left);
    if (length > left.size() && !last) break;
    const unsigned char first = left[0], second = left.size() > 1 ? left[1] : 0;
    const bool control = length == 1
        ? first == 127 || (first < ' ' && first != '\n' && first != '\t')
        : length == 2 && first == 0xC2 && second < 0xA0;
    const bool good = length > 0 && length <= left.size() && !control;
    if (!good) length = 1;
    out += good ? std::string(left.substr(0, length)) : format("\\x%02x", first);
    left.remove_prefix(length);
  }
  waiting_ = left;
  return out;
}

std::string one_line(std::string_view text) {
  std::string line(text);
  const auto plain = [](unsigned char c) { return c >= ' ' && c < 127; };
  if (std::ranges::all_of(line, plain)) return line;
  std::ranges::replace_if(
      line, [](char c) { return c == '\n' || c == '\t'; }, ' ');
  return Printable().add(line, true);
}

std::string fitted(std::string_view text, size_t most) {
  if (text.size() <= most) return std::string(text);
  size_t end = most - 2;
  while (end > 0 && (text[end] & 0xC0) == 0x80) --end;
  return cat(text.substr(0, end), "..");
}

std::string for_terminal(const std::string& message) {
  std::istringstream lines(message);
  std::string text;
  for (std::string line; std::getline(lines, line);)
    text += Printable().add(shortened(line, 1400), true) + "\n";
  return text;
}

}  // namespace duet
