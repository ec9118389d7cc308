// See input.h.
#include "pipeline/insight/trace/input.h"

#include <algorithm>
#include <array>

namespace duet {
namespace {

constexpr size_t kLongestString = 1 << 16;

// Characters that stay as they are, inside strings and outside: most of them, so they go in runs.
using Set = std::array<bool, 256>;
constexpr Set kInside = [] {
  Set set{};
  for (int c = 0x20; c < 0x80; ++c) set[size_t(c)] = c != '"' && c != '\\';
  return set;
}();
constexpr Set kOutside = [] {
  Set set{};
  for (int c = 1; c < 0x100; ++c)
    set[size_t(c)] = c != '"' && c != ' ' && c != '\n' && c != '\t' && c != '\r';
  return set;
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

// Writes no more than raw.size() characters.
Input::Cleaned Input::clean(
    State& state, std::string_view raw, bool last, char* out, size_t limit) {
  size_t i = 0;
  char* const begin = out;
  const auto take = [&](size_t n) {
    if (!state.in_string || state.length < kLongestString)
      out = std::copy_n(raw.data() + i, n, out);
    state.length += n, i += n;
  };
  while (i < raw.size() && size_t(out - begin) < limit) {
    const char c = raw[i];
    const Set& same = state.in_string ? kInside : kOutside;
    if (same[uint8_t(c)]) {
      size_t n = 1;
      const size_t most = std::min(raw.size() - i, limit - size_t(out - begin));
      while (n < most && same[uint8_t(raw[i + n])]) ++n;
      take(n);
      state.space = false;
    } else if (!state.in_string) {
      state.length = 0;
      const bool quote = c == '"', nul = c == '\0';
      if (quote || nul)  // the lexer takes a NUL for the end
        *out++ = quote ? c : '\1';
      else if (!state.space)
        *out++ = ' ';
      state.space = !quote && !nul;
      state.in_string = quote;
      ++i;
    } else if (c == '"') {
      *out++ = c, ++i;
      state.in_string = false;
    } else if (c == '\\') {
      const size_t n = i + 1 < raw.size() && raw[i + 1] == 'u' ? 6 : 2;
      if (i + n > raw.size() && !last) break;
      take(std::min(n, raw.size() - i));
    } else if (const int n = utf8_length(raw.substr(i)); n > 0) {
      take(size_t(n));
    } else {
      if (n < 0 && !last) break;
      if (state.length++ < kLongestString) *out++ = uint8_t(c) < 0x20 ? ' ' : '?';
      ++i;
    }
  }
  return {i, size_t(out - begin)};
}

void Input::fill() {
  start_ += int64_t(taken_);
  raw_.erase(0, taken_);
  taken_ = 0;
  over_ = !unpack_.append(raw_);
  filled_ = true;
}

bool Input::more() {
  size_t n = 0;
  while (n == 0 && (filled_ || !over_)) {
    if (!filled_) fill();
    filled_ = false;
    before_ = state_;
    clean_.resize(std::max(clean_.size(), raw_.size()));
    const Cleaned done = clean(state_, raw_, over_, clean_.data(), SIZE_MAX);
    taken_ = done.taken, n = done.written;
  }
  at = clean_.data(), end = at + n;
  return n > 0;
}

int64_t Input::offset() const {
  if (at == end && over_) return size();
  State state = before_;
  std::string again(raw_.size(), ' ');
  const size_t taken = clean(state, raw_, over_, again.data(), size_t(at - clean_.data())).taken;
  return start_ + std::max<int64_t>(0, int64_t(taken) - 1);
}

std::string_view Input::head() {
  while (!at && raw_.size() < 64 && !over_) fill();
  return raw_;
}

}  // namespace duet
