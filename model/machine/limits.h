// What this process may use of its machine: what there is, and no more than its control groups
// (Linux's, of version 1 or 2), its affinity and its resource limits allow.
// Read next: thread_pool.h.
#pragma once
#include <string>

namespace duet {

// root: the folder in which /proc and /sys are; another one is for tests.
int usable_cores(const std::string& root = "");       // at least 1
double usable_memory(const std::string& root = "");   // bytes
double last_cache(const std::string& root = "");      // bytes; 1 MiB where nobody says
double usable_threads(const std::string& root = "");  // infinite where nothing limits them

// glibc's malloc gives what is freed back to the system, when it is some 100 KB, and each of its
// pages is made anew when it is wanted again. Plans of a layer's exchange are such lists, and a GPU
// waits for them. From now on it is kept.
void keep_freed_memory();

}  // namespace duet
