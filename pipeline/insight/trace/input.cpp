// See input.h.
#include "pipeline/insight/trace/input.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

namespace duet {
namespace {

constexpr size_t kLongestString = 1 << 16, kBlock = 1 << 18;

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
// After these a space tells nothing.
constexpr Set kEnding = [] {
  Set set{};
  for (const char c : {'{', '[', '}', ']', ',', ':'}) set[size_t(c)] = true;
  return set;
}();

// The length of the UTF-8 character that begins here; 0: there is none; -1: it may go on after the
// text. (Unicode 15, table 3-7.)
int utf8_length(std::string_view s) {
  const uint8_t first = uint8_t(s[0]);
  const int n = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  for (size_t i = 1; i < size_t(n); ++i) {
    if (i >= s.size()) return -1;
    const uint8_t byte = uint8_t(s[i]), second = i == 1 ? first : 0;
    if (byte < (second == 0xe0 ? 0xa0 : second == 0xf0 ? 0x90 : 0x80)) return 0;
    if (byte > (second == 0xed ? 0x9f : second == 0xf4 ? 0x8f : 0xbf)) return 0;
  }
  return n;
}

// The same of an escape: half of a surrogate pair is none.
int escape_length(std::string_view s) {
  const auto code = [&](size_t at) {
    unsigned value = 0;
    if (s.substr(at, 2) == "\\u") std::from_chars(&s[at + 2], &s[at] + 6, value, 16);
    return value;
  };
  if (s.size() < 2) return -1;
  if (s[1] != 'u') return 2;
  if (s.size() < 6) return -1;
  const unsigned half = code(0) >> 10;
  if (half != 0x36) return half == 0x37 ? 0 : 6;
  if (s.size() < 12) return -1;
  return code(6) >> 10 == 0x37 ? 12 : 0;
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
      state.space = kEnding[uint8_t(raw[i - 1])];
    } else if (c == '"') {
      *out++ = c, ++i;
      state = {.in_string = !state.in_string};
    } else if (!state.in_string) {  // the lexer takes a NUL for the end
      if (!c || !std::exchange(state.space, true)) *out++ = c ? ' ' : '\1';
      ++i;
    } else {
      const std::string_view rest = raw.substr(i);
      const int n = c == '\\' ? escape_length(rest) : utf8_length(rest);
      if (n < 0 && !last) break;
      if (n > 0)
        take(size_t(n));
      else if (++i, state.length++ < kLongestString)
        *out++ = uint8_t(c) < 0x20 ? ' ' : '?';
    }
  }
  return {i, size_t(out - begin)};
}

Input::Input(const std::string& file, ReadBytes read) : unpack_(file, std::move(read)) {
  fill(now_);
  if (!now_.last) reader_ = std::thread([this] { read_ahead(); });
}

Input::~Input() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  if (reader_.joinable()) reader_.join();
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
  block.clean.resize(block.raw.size());
  const Cleaned done = clean(state_, block.raw, block.last, block.clean.data(), SIZE_MAX);
  block.clean.resize(done.written);
  rest_.assign(block.raw, done.taken);
  start_ += int64_t(done.taken);
}

void Input::read_ahead() {
  Block block;
  for (bool last = false; !last;) {
    fill(block);
    last = block.last;
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !full_ || stopped_; });
    if (stopped_) return;
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
    if (begun_) {
      if (now_.error) std::rethrow_exception(now_.error);
      if (over_ = now_.last; over_) return false;
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return full_; });
      std::swap(now_, next_);
      full_ = false;
      changed_.notify_all();
    }
    begun_ = true;
    at = now_.clean.data(), end = at + now_.clean.size();
  } while (at == end);
  return true;
}

int64_t Input::offset() const {
  if (over_) return size();
  State state = now_.before;
  std::string again(now_.raw.size(), ' ');
  const size_t limit = size_t(at - now_.clean.data());
  const size_t taken = clean(state, now_.raw, now_.last, again.data(), limit).taken;
  return now_.start + std::max<int64_t>(0, int64_t(taken) - 1);
}

}  // namespace duet
