// Options in a TOML file: key = value, [sections], comments; strings, numbers, booleans and lists
// of these. What TOML has beyond that (tables in tables, strings of several lines) is refused with
// its line. Not refused is a word without quotes: schedule = dualpipe.
//
// Read next: json.h.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace duet {

struct TomlItem {
  std::string section, key;  // of "a.b" the section is a, too
  std::vector<std::string> values;
};

// In the order of the text. Throws UsageError naming `where` and the line.
std::vector<TomlItem> read_toml(std::string_view text, const std::string& where);

}  // namespace duet
