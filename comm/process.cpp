// See process.h.
#include "comm/process.h"

#include <fcntl.h>
#include <pthread.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <thread>

#include "comm/comm.h"
#include "model/base/memory_short.h"
#include "model/base/text.h"

namespace duet {
namespace {

// Of processes that all have been given the same wrong option the first one speaks: when it ends,
// the others are ended, unless theirs is another mistake.
int report(const std::string& error, int status) {
  if (find_launcher().rank > 0) std::this_thread::sleep_for(std::chrono::seconds(2));
  std::cerr << "duet: " << for_terminal(error);
  return status;
}

// What fails where nothing may fail (destructors of the JSON library need memory) ends in one line.
[[noreturn]] void report_and_exit() {
  try {
    if (std::current_exception()) throw;
  } catch (const std::exception& error) {
    std::cerr << "duet: " << for_terminal(error.what());
    std::_Exit(1);
  } catch (...) {
    // not duet's
  }
  std::abort();
}

// Where standard input, output or error is closed, the first files that are opened would take its
// place, and get what is meant for it.
void keep_standard_streams_apart() {
  for (int stream : {0, 1, 2})
    if (fcntl(stream, F_GETFD) < 0 && open("/dev/null", O_RDONLY) != stream)
      throw Error(cat("/dev/null", cannot_be("opened")));
}

// Ranks are threads, whose stacks glibc otherwise makes as small as `ulimit -s` says.
void give_threads_room() {
#ifdef __GLIBC__
  pthread_attr_t usual;
  pthread_attr_init(&usual);
  pthread_attr_setstacksize(&usual, 8 << 20);
  pthread_setattr_default_np(&usual);
  pthread_attr_destroy(&usual);
#endif
}

}  // namespace

int run_process(const std::function<int()>& command) try {
  std::set_terminate(report_and_exit);
  keep_standard_streams_apart();
  std::signal(SIGPIPE, SIG_IGN);  // a run whose reader has gone keeps its work
  std::signal(SIGXFSZ, SIG_IGN);  // a file beyond `ulimit -f` is a write that fails
  give_threads_room();
  const int status = command();
  if (std::cout.flush().good()) return status;
  return report("standard output: expected to write it all, found it full or closed", 1);
} catch (const UsageError& error) {
  return report(error.what(), 2);
} catch (const std::exception& error) {
  return report(what_of(error), 1);
}

}  // namespace duet
