// See text.h.
#include "model/base/text.h"

#include <algorithm>
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
      s.begin(), s.end(), [](unsigned char c) { return c < ' '; }, '?');
  return s;
}

}  // namespace duet
