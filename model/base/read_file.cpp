// See read_file.h.
#include "model/base/read_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/base/check.h"

namespace duet {

constexpr int64_t kMostBytes = int64_t(1) << 31;

std::string read_file(const std::string& path) {
  const bool standard = path == "-";
  // so that a pipe is refused, not waited for
  const int fd = standard ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  require(fd >= 0, path, cannot_be("opened"));
  struct stat info = {};
  const bool special = !standard && fstat(fd, &info) == 0 && !S_ISREG(info.st_mode) &&
      !S_ISDIR(info.st_mode);  // a folder's error is the system's
  std::string text;
  char block[1 << 16];
  bool large = info.st_size > kMostBytes;
  ssize_t n = special || large ? 0 : 1;
  while (n > 0 && !large && (n = read(fd, block, sizeof block)) > 0)
    large = int64_t(text.append(block, size_t(n)).size()) > kMostBytes;
  const int error = errno;
  if (!standard) close(fd);
  require(!special, path, ": expected a file, found a pipe or device");
  require(!large, file_name(path), ": expected at most ", kMostBytes, " bytes, found more");
  require(n == 0, file_name(path), cannot_be("read", error));
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  return text;
}

}  // namespace duet
