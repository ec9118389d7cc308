// Files that are read: OpenFile, where others may change it meanwhile, and MappedFile, a whole file
// mapped into memory and never copied, which must not be changed while it is in use.
// Read next: embedded.cpp.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace duet {

struct MappedFile {
  std::shared_ptr<const char> data;  // [size]; null where the file is empty
  int64_t size = 0;
  std::string_view text() const { return {data.get(), size_t(size)}; }
};

class OpenFile {
 public:
  // Throws as map_file does.
  OpenFile(const std::string& path, const char* allowed);
  OpenFile(const OpenFile&) = delete;
  ~OpenFile();
  int64_t size() const { return size_; }  // when it was opened
  int handle() const { return handle_; }
  // Bytes begin .. begin+bytes-1. Throws Error where they are no longer there.
  void read(int64_t begin, int64_t bytes, void* to) const;

 private:
  std::string path_;
  int handle_;
  int64_t size_ = 0;
};

// Throws UsageError that names the file and ends with `allowed` where it is missing, unreadable, a
// directory or a device.
MappedFile map_file(const std::string& path, const char* allowed = "");

}  // namespace duet
