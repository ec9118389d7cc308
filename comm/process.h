// Around a command: room for its threads, and how a process ends. Errors become the exit status:
// 0 done, 1 failed while running, 2 wrong input, 128 + a signal that stopped it. An error is one
// line on stderr (a checker's picture has several), without the bytes of an input that a terminal
// would obey, and none too long for one.
// Read next: rows.h.
#pragma once
#include <functional>

namespace duet {

// Calls `command`, which returns the exit status, and returns the process's. Output that has not
// arrived, because a disk is full or a pipe closed, is a failure.
int run_process(const std::function<int()>& command);

}  // namespace duet
