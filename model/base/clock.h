// The one clock: steady, of this machine, from an arbitrary beginning; all threads and processes of
// a node read the same.
// Read next: command_line.h.
#pragma once
#include <chrono>
#include <cstdint>

namespace duet {

inline int64_t nanoseconds_now() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}
inline double seconds_now() { return double(nanoseconds_now()) * 1e-9; }

}  // namespace duet
