// See input.h.
#include "pipeline/insight/trace/input.h"

#include <algorithm>
#include <array>

namespace duet {
namespace {

constexpr size_t kLongestString = 1 << 16;

constexpr std::array<bool, 256> kPlain = [] {  // inside a string
  std::array<bool, 256> plain{};
  for (int c = 0x20; c < 0x80; ++c) plain[size_t(c)] = c != '"' && c != '\\';
  return plain;
}();

// The length of the UTF-8 character that begins here; 0: there is none; -1: it may go on after the
// text. (Unicode 15, table 3-7.)
int utf8_length(std::string_view s) {
  const auto byte = [&](size_t i) { return uint8_t(s[i]); };
  const uint8_t first = byte(0);
  const int n = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  for (size_t i = 1; i < size_t(n); ++i) {
    if (i >= s.size()) return -1;
    uint8_t least = 0x80, most = 0xbf;
    if (i == 1 && first == 0xe0) least = 0xa0;
    if (i == 1 && first == 0xed) most = 0x9f;
    if (i == 1 && first == 0xf0) least = 0x90;
    if (i == 1 && first == 0xf4) most = 0x8f;
    if (byte(i) < least || byte(i) > most) return 0;
  }
  return n;
}

}  // namespace

size_t Input::clean(State& state, std::string_view raw, bool last, std::string& out, size_t limit) {
  size_t i = 0;
  const auto take = [&](size_t n) {
    if (state.length < kLongestString) out.append(raw, i, n);
    state.length += n, i += n;
  };
  while (i < raw.size() && out.size() < limit) {
    const char c = raw[i];
    if (!state.in_string) {
      const bool space = c == ' ' || c == '\n' || c == '\t' || c == '\r';
      if (!space)
        out += c == '\0' ? '\1' : c;  // the lexer takes a NUL for the end
      else if (!state.space)
        out += ' ';
      state = {c == '"', space, 0};
      ++i;
    } else if (kPlain[uint8_t(c)]) {
      size_t n = 1;
      const size_t most = std::min(raw.size() - i, limit - out.size());
      while (n < most && kPlain[uint8_t(raw[i + n])]) ++n;
      take(n);
    } else if (c == '"') {
      out += c, ++i;
      state.in_string = false;
    } else if (c == '\\') {
      const size_t n = i + 1 < raw.size() && raw[i + 1] == 'u' ? 6 : 2;
      if (i + n > raw.size() && !last) break;
      take(std::min(n, raw.size() - i));
    } else if (const int n = utf8_length(raw.substr(i)); n > 0) {
      take(size_t(n));
    } else {
      if (n < 0 && !last) break;
      if (state.length++ < kLongestString) out += uint8_t(c) < 0x20 ? ' ' : '?';
      ++i;
    }
  }
  return i;
}

void Input::fill() {
  start_ += int64_t(taken_);
  raw_.erase(0, taken_);
  taken_ = 0;
  over_ = !unpack_.append(raw_);
  filled_ = true;
}

bool Input::more() {
  clean_.clear();
  while (clean_.empty() && !over_) {
    if (!filled_) fill();
    filled_ = false;
    before_ = state_;
    taken_ = clean(state_, raw_, over_, clean_, SIZE_MAX);
  }
  at = clean_.data(), end = at + clean_.size();
  return !clean_.empty();
}

int64_t Input::offset() const {
  State state = before_;
  std::string again;
  const size_t taken = size_t(at - clean_.data());
  if (at == end && over_) return size();
  return start_ + std::max<int64_t>(0, int64_t(clean(state, raw_, over_, again, taken)) - 1);
}

std::string_view Input::head() {
  if (!at && !filled_) fill();
  return raw_;
}

}  // namespace duet
