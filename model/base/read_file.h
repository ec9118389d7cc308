// Reading a small file whole: text, CSV, JSON. Not what is large (data/open_file.h).
// Read next: temporary_folder.h.
#pragma once
#include <string>

namespace duet {

// What is in a file, without the byte order mark that some editors put first; "-" is standard
// input. Throws UsageError that names the file where it is missing, unreadable, a folder, larger
// than 2 GiB, or a pipe or device, which is never waited for.
std::string read_file(const std::string& path);

// How messages call it.
inline std::string file_name(const std::string& path) {
  return path == "-" ? "standard input" : path;
}

}  // namespace duet
