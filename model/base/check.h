// The one error idiom of duet: a check that throws.
//
//   DUET_CHECK(tokens % seq_len == 0, "tokens: expected a multiple of seq_len=", seq_len,
//       ", found ", tokens);
//
// The message says what was expected and what was found; file and line are added here, the rank by
// run_ranks (comm/).
// Read next: text.h.
#pragma once
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>

namespace duet {

// Something failed while running. The process ends with exit status 1.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The user's input is wrong: an option, a file. The message is one line that names it, what was
// found and what is allowed. The process ends with exit status 2 and nothing half-written.
struct UsageError : Error {
  using Error::Error;
};

template <class... Parts> std::string cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// As printf; at most 511 characters.
template <class... Args> std::string format(const char* pattern, Args... args) {
  char text[512];
  std::snprintf(text, sizeof text, pattern, args...);
  return text;
}

// After a path, why a call of the system failed: ": cannot be opened: No such file or directory".
inline std::string cannot_be(const char* done, int error = errno) {
  return cat(": cannot be ", done, ": ", std::strerror(error));
}

template <class... Parts>
[[noreturn]] void fail_check(
    const char* file, int line, const char* condition, const Parts&... parts) {
  throw Error(cat(file, ":", line, ": ", parts..., " [", condition, "]"));
}

// For input that comes from outside: throws UsageError with just the message.
template <class... Parts> void require(bool condition, const Parts&... parts) {
  if (!condition) throw UsageError(cat(parts...));
}

}  // namespace duet

#define DUET_CHECK(condition, ...)                                                     \
  do {                                                                                 \
    if (!(condition)) ::duet::fail_check(__FILE__, __LINE__, #condition, __VA_ARGS__); \
  } while (0)
