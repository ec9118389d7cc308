// MappedFile: a whole file, mapped into memory and never copied. It must not be changed while it is
// in use.
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

// Throws UsageError that names the file and ends with `allowed` where it is missing, unreadable, a
// directory or a device.
MappedFile map_file(const std::string& path, const char* allowed = "");

}  // namespace duet
