// OpenFile: a file that is read where and when it is wanted. It is read, not mapped: others may
// change it meanwhile, and where it has become shorter that is an error with its name, not a
// signal.
// Read next: embedded.cpp.
#pragma once
#include <cstdint>
#include <string>

namespace duet {

class OpenFile {
 public:
  // Throws UsageError that names the file and ends with `allowed` where it is missing, unreadable,
  // a directory or a device.
  explicit OpenFile(const std::string& path, const char* allowed = "");
  OpenFile(const OpenFile&) = delete;
  ~OpenFile();
  int64_t size() const { return size_; }  // when it was opened
  // Bytes begin .. begin+bytes-1. Throws Error where they are no longer there.
  void read(int64_t begin, int64_t bytes, void* to) const;
  std::string read(int64_t begin, int64_t bytes) const;
  uint64_t checksum() const;  // hash.h's, of all bytes

 private:
  std::string path_;
  int handle_;
  int64_t size_ = 0;
};

}  // namespace duet
