// The time that this thread has had a processor: what remains comparable on a machine that others
// use too.
#pragma once
#include <ctime>

namespace duet {

inline double processor_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

}  // namespace duet
