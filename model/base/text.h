// Text between people and duet. What they write in options and small files: lists with commas
// between, key=value, numbers with units, ranges; where it is not as it should be the answer is
// empty, and whoever asked, who knows the option or the file, says so. What they are shown: bars,
// and text of others that fits a line or a terminal. Not JSON (json.h), not the actions of a
// schedule (pipeline/schedule/action.h).
// Read next: read_file.h.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace CLI {
class App;  // that commands are added to
}

namespace duet {

// What a command writes on stdout.
enum class Format { text, json, csv, svg };
constexpr const char* format_name(Format f) {
  return f == Format::text ? "text" : f == Format::json ? "json" : f == Format::csv ? "csv" : "svg";
}

std::string_view trimmed(std::string_view text);  // without spaces, tabs and \r at either end

// The parts between commas, trimmed: "a, b,," has four; an empty text has none.
std::vector<std::string> split(std::string_view text, char at = ',');

// The whole text as a number: nothing but it, within T's limits, finite. T: int, int64_t, uint64_t,
// double.
template <class T> std::optional<T> parse_number(std::string_view text);

struct Unit {
  const char* name;
  double value;
};
inline constexpr Unit kBandwidths[] = {{"GB/s", 1e9}, {"MB/s", 1e6}, {"KB/s", 1e3}, {"B/s", 1}};
inline constexpr Unit kTimes[] = {{"s", 1}, {"ms", 1e-3}, {"us", 1e-6}, {"ns", 1e-9}};

// A number with one of the units after it, "40GB/s" or "1.5 ms", in multiples of the unit 1.
std::optional<double> parse_quantity(std::string_view text, std::span<const Unit> units);

// "2-5" or "3", which is 3-3; from 0, and the first may be after the last.
std::optional<std::pair<int64_t, int64_t>> parse_range(std::string_view text);

// "F=1,FB=2.4": hands each key with its value to `take`, which answers whether it knows the key and
// the value is good for it. Throws UsageError that names the option, the item and what is allowed
// where it is not, and where a key comes twice.
using TakeKey = std::function<bool(const std::string& key, const std::string& value)>;
void read_keys(
    const char* option, std::string_view text, const std::string& allowed, const TakeKey& take);

// For one line of a message: the middle of a long text left out, no line ends or other controls.
std::string shortened(std::string_view text, size_t most = 100);

// The same with its ASCII letters in lower case.
std::string lower(std::string_view text);

// A bar for a share of 1, drawn to an eighth of a column, and blanks up to `width` columns.
std::string bar(double share, int width);

// The bytes of the UTF-8 character that `text`, which is not empty, begins with: 0 where none does;
// more than there are where it is not whole.
size_t character_length(std::string_view text);

// What a model says, token after token, as a terminal may have it: bytes that are not UTF-8 and
// control characters, line ends and tabs apart, become \xNN. The bytes of a character that is not
// whole yet wait for the next ones, or for the last.
class Printable {
 public:
  std::string add(std::string_view bytes, bool last = false);

 private:
  std::string waiting_;
};

// One printable line: a name that somebody's file gives.
std::string one_line(std::string_view text);

// At most `most` bytes of it, cut between characters; ".." stands for the rest.
std::string fitted(std::string_view text, size_t most);

// A message's lines, each ended, none too long, and printable.
std::string for_terminal(const std::string& message);

}  // namespace duet
