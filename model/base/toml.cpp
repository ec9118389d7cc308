// See toml.h. A reader that goes once through the text.
#include "model/base/toml.h"

#include <algorithm>

#include "model/base/check.h"
#include "model/base/text.h"

namespace duet {
namespace {

constexpr std::string_view kEscapes = "btnfr\"\\", kEscaped = "\b\t\n\f\r\"\\";

// "" where there is no such character.
std::string utf8(uint32_t code) {
  if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return "";
  if (code < 0x80) return {char(code)};
  std::string bytes;
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  for (int i = 0; i < more; ++i, code >>= 6) bytes.insert(0, 1, char(0x80 | (code & 0x3F)));
  return char((0xF0 << (3 - more) & 0xFF) | int(code)) + bytes;
}

class Reader {
 public:
  Reader(std::string_view text, const std::string& where) : left_(text), where_(where) {}

  std::vector<TomlItem> read() {
    std::vector<TomlItem> items;
    std::string section;
    for (skip_lines(); !left_.empty(); skip_lines()) {
      const Reader line = *this;
      if (take('[')) {
        section = key();
        if (!take(']')) line.refuse("[section]");
      } else {
        TomlItem item{section, key(), {}};
        if (const size_t dot = item.key.rfind('.'); section.empty() && dot != item.key.npos)
          item.section = item.key.substr(0, dot), item.key.erase(0, dot + 1);
        if (!take('=')) line.refuse("key = value");
        item.values = values();
        items.push_back(item);
      }
      skip_blanks();
      if (!left_.empty() && left_[0] != '\n') refuse("the line's end");
    }
    return items;
  }

 private:
  [[noreturn]] void refuse(const std::string& expected) const {
    const std::string_view found = left_.substr(0, left_.find('\n'));
    throw UsageError(cat(where_, ": line ", line_, ": expected ", expected, ", found ",
        found.empty() ? "nothing" : cat("'", shortened(found), "'")));
  }
  bool take(char c) {
    if (!left_.starts_with(c)) return false;
    line_ += c == '\n';
    left_.remove_prefix(1);
    return true;
  }
  // Up to the next of `ends`, or the end.
  std::string_view take_until(const char* ends) {
    const std::string_view taken = left_.substr(0, left_.find_first_of(ends));
    left_.remove_prefix(taken.size());
    return taken;
  }
  void skip_blanks() {
    while (take(' ') || take('\t') || take('\r')) continue;
    if (left_.starts_with('#')) take_until("\n");
  }
  void skip_lines() {
    do skip_blanks();
    while (take('\n'));
  }

  std::string key() {
    skip_blanks();
    std::string word;
    if (left_.starts_with('"') || left_.starts_with('\''))
      word = string(), skip_blanks();
    else
      word = trimmed(take_until("=]#\n"));
    if (word.empty()) refuse("a name");
    return word;
  }
  std::vector<std::string> values() {
    skip_blanks();
    if (!take('[')) return {value("#\n")};
    std::vector<std::string> all;
    for (skip_lines(); !take(']'); skip_lines()) {
      if (!all.empty() && !take(',')) refuse("a comma or ]");
      skip_lines();
      if (take(']')) break;  // after the last comma
      all.push_back(value(",]#\n"));
    }
    return all;
  }
  std::string value(const char* ends) {
    if (left_.starts_with('"') || left_.starts_with('\'')) return string();
    if (left_.starts_with('{')) refuse("a string, a number, true, false or a list of them");
    const std::string word(trimmed(take_until(ends)));
    if (word.empty()) refuse("a value");
    return word;
  }
  std::string string() {
    const char quote = left_[0];
    if (left_.starts_with(std::string(3, quote))) refuse("a string of one line");
    const Reader start = *this;
    take(quote);
    std::string text;
    while (!take(quote)) {
      if (left_.empty() || left_[0] == '\n') start.refuse("a string that ends on its line");
      if (quote == '"' && take('\\'))
        text += escaped(start);
      else
        text += left_[0], left_.remove_prefix(1);
    }
    return text;
  }
  std::string escaped(const Reader& start) {
    const char c = left_.empty() ? '\n' : left_[0];
    if (const size_t known = kEscapes.find(c); known != kEscapes.npos) {
      take(c);
      return {kEscaped[known]};
    }
    const size_t digits = c == 'u' ? 4 : c == 'U' ? 8 : 0;
    const std::string hex(left_.substr(std::min<size_t>(1, left_.size()), digits));
    const bool whole = digits && hex.size() == digits &&
        hex.find_first_not_of("0123456789abcdefABCDEF") == hex.npos;
    const std::string character =
        whole ? utf8(uint32_t(std::stoul(hex, nullptr, 16))) : std::string();
    if (character.empty()) start.refuse("escapes that TOML has, such as \\n and \\u00e9");
    left_.remove_prefix(1 + digits);
    return character;
  }

  std::string_view left_;
  const std::string& where_;
  int line_ = 1;
};

}  // namespace

std::vector<TomlItem> read_toml(std::string_view text, const std::string& where) {
  return Reader(text, where).read();
}

}  // namespace duet
