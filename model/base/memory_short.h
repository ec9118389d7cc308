// What an exception says; for std::bad_alloc, what is short, and who has how much.
// Read next: clock.h.
#pragma once
#include <sys/resource.h>

#include <string>

#include "model/base/check.h"

namespace duet {

inline std::string what_of(const std::exception& error) {
  if (!dynamic_cast<const std::bad_alloc*>(&error)) return error.what();
  rusage used;
  getrusage(RUSAGE_SELF, &used);
  return cat("memory is short: the system gave this process no more, which had up to ",
      used.ru_maxrss >> 10,
      " MiB (see free and ulimit -v); fewer ranks, a smaller model and shorter ",
      "sequences need less");
}

}  // namespace duet
