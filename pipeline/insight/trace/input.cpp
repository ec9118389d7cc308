// See input.h.
#include "pipeline/insight/trace/input.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "model/base/text.h"

namespace duet {
namespace {

constexpr size_t kLongestString = 1 << 16, kBlock = 1 << 18;

// Characters that stay as they are, inside strings and outside: most of them, so they go in runs.
using Set = std::array<bool, 256>;
constexpr Set set_of(int from, int to, std::string_view without) {
  Set set{};
  for (int c = from; c < to; ++c) set[size_t(c)] = without.find(char(c)) == without.npos;
  return set;
}
constexpr Set kInside = set_of(0x20, 0x80, "\"\\"), kOutside = set_of(1, 0x100, "\" \n\t\r");
constexpr Set kGoingOn = set_of(0, 0x100, "{[}],:");  // after others a space tells nothing

// As character_length() of an escape: half of a surrogate pair is none.
size_t escape_length(std::string_view s) {
  const auto code = [&](size_t at) {
    unsigned value = 0;
    if (s.substr(at, 2) == "\\u") std::from_chars(&s[at + 2], &s[at] + 6, value, 16);
    return value;
  };
  if (s.size() < 2 || s[1] != 'u') return 2;
  const unsigned half = s.size() < 6 ? 0 : code(0) >> 10;
  if (half != 0x36) return half == 0x37 ? 0 : 6;
  return s.size() < 12 || code(6) >> 10 == 0x37 ? 12 : 0;
}

}  // namespace

// Writes no more than raw.size() characters.
size_t Input::clean(State& state, std::string_view raw, bool last, std::string& to, size_t limit) {
  to.resize(raw.size());
  size_t i = 0;
  char *out = to.data(), *const begin = out;
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
      state.space = !kGoingOn[uint8_t(raw[i - 1])];
    } else if (c == '"') {
      *out++ = c, ++i;
      state = {.in_string = !state.in_string};
    } else if (!state.in_string) {  // the lexer takes a NUL for the end
      if (!c || !std::exchange(state.space, true)) *out++ = c ? ' ' : '\1';
      ++i;
    } else {
      const std::string_view rest = raw.substr(i);
      const size_t n = c == '\\' ? escape_length(rest)
          : uint8_t(c) < 0x20    ? 0
                                 : character_length(rest);
      const bool whole = n <= rest.size();
      if (!whole && !last) break;
      if (n > 0 && whole)
        take(n);
      else if (++i, state.length++ < kLongestString)
        *out++ = uint8_t(c) < 0x20 ? ' ' : '?';
    }
  }
  to.resize(size_t(out - begin));
  return i;
}

Input::Input(const std::string& file, ReadBytes read) : unpack_(file, std::move(read)) {
  fill(now_);
  if (!now_.last) reader_ = std::jthread([this](std::stop_token stop) { read_ahead(stop); });
}

void Input::fill(Block& block) {
  block.raw = std::exchange(rest_, "");
  block.start = start_, block.before = state_;
  try {
    while (!block.last && block.raw.size() < kBlock) block.last = !unpack_.append(block.raw);
  } catch (...) {
    block.error = std::current_exception(), block.last = true;
  }
  block.warnings = unpack_.warnings;
  const size_t taken = clean(state_, block.raw, block.last, block.clean, SIZE_MAX);
  rest_.assign(block.raw, taken);
  start_ += int64_t(taken);
}

void Input::read_ahead(const std::stop_token& stop) {
  Block block;
  for (bool last = false; !last;) {
    fill(block);
    last = block.last;
    std::unique_lock lock(mutex_);
    if (!changed_.wait(lock, stop, [&] { return !full_; })) return;
    std::swap(next_, block);  // the parser's old one comes back
    full_ = true;
    changed_.notify_all();
  }
}

std::string_view Input::head() const {
  if (now_.raw.empty() && now_.error) std::rethrow_exception(now_.error);
  return now_.raw;
}

bool Input::more() {
  do {
    if (at) {  // not the first time
      if (now_.error) std::rethrow_exception(now_.error);
      if (over_ = now_.last; over_) return false;
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return full_; });
      std::swap(now_, next_);
      full_ = false;
      changed_.notify_all();
    }
    at = now_.clean.data(), end = at + now_.clean.size();
  } while (at == end);
  return true;
}

int64_t Input::offset() const {
  if (over_) return size();
  State state = now_.before;
  std::string again;
  const size_t taken = clean(state, now_.raw, now_.last, again, size_t(at - now_.clean.data()));
  return now_.start + std::max<int64_t>(0, int64_t(taken) - 1);
}

}  // namespace duet
