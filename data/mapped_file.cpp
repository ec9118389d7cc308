// See mapped_file.h.
#include "data/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "model/base/check.h"

namespace duet {

// O_NONBLOCK, so that a pipe is refused, not waited for.
OpenFile::OpenFile(const std::string& path, const char* allowed)
    : path_(path), handle_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  require(handle_ >= 0, path, cannot_be("opened"), allowed);
  struct stat info;
  const bool regular = fstat(handle_, &info) == 0 && S_ISREG(info.st_mode);
  if (!regular) close(handle_);
  require(regular, path, ": expected a file, found a directory or device", allowed);
  size_ = info.st_size;
}

OpenFile::~OpenFile() { close(handle_); }

void OpenFile::read(int64_t begin, int64_t bytes, void* to) const {
  for (int64_t done = 0; done < bytes;) {
    const ssize_t n =
        pread(handle_, static_cast<char*>(to) + done, size_t(bytes - done), begin + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error(path_ + cannot_be("read"));
    if (n == 0)
      throw Error(cat(path_, ": expected ", size_, " bytes, found ", lseek(handle_, 0, SEEK_END),
          ": the file became shorter while it was in use"));
    done += n;
  }
}

MappedFile map_file(const std::string& path, const char* allowed) {
  const OpenFile file(path, allowed);
  const auto size = size_t(file.size());
  if (size == 0) return {};
  void* map = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.handle(), 0);
  require(map != MAP_FAILED, path, cannot_be("mapped into memory"), allowed);
  return {std::shared_ptr<const char>(
              static_cast<char*>(map), [map, size](const char*) { munmap(map, size); }),
      int64_t(size)};
}

}  // namespace duet
