// See open_file.h.
#include "data/open_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "model/base/check.h"
#include "model/base/hash.h"

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

std::string OpenFile::read(int64_t begin, int64_t bytes) const {
  std::string text(size_t(bytes), '\0');
  read(begin, bytes, text.data());
  return text;
}

uint64_t OpenFile::checksum() const {
  constexpr int64_t kPiece = 1 << 20;
  Checksum sum;
  for (int64_t at = 0; at < size_; at += kPiece) sum.add(read(at, std::min(kPiece, size_ - at)));
  return sum.value();
}

}  // namespace duet
