// See mapped_file.h.
#include "data/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "model/base/check.h"

namespace duet {

MappedFile map_file(const std::string& path, const char* allowed) {
  // so that a pipe is refused, not waited for
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  require(fd >= 0, path, cannot_be("opened"), allowed);
  struct stat info;
  const bool regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  const size_t size = regular ? size_t(info.st_size) : 0;
  void* map = size > 0 ? mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0) : nullptr;
  const int error = errno;
  close(fd);
  require(regular, path, ": expected a file, found a directory or device", allowed);
  require(map != MAP_FAILED, path, cannot_be("mapped into memory", error), allowed);
  if (size == 0) return {};
  return {std::shared_ptr<const char>(
              static_cast<char*>(map), [map, size](const char*) { munmap(map, size); }),
      int64_t(size)};
}

}  // namespace duet
