// Unpack: bytes as they are, or out of gzip. zlib does the work; here are its loop and what is said
// of a damaged file.
// Read next: reader.h.
#pragma once
#include <zlib.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace duet {

// Writes up to `most` bytes and returns how many; 0: the end.
using ReadBytes = std::function<size_t(char* to, size_t most)>;
ReadBytes read_trace_file(const std::string& path);  // throws UsageError if it cannot be opened
ReadBytes read_memory(std::string_view bytes);       // which outlive the reading

class Unpack {
 public:
  Unpack(std::string file, ReadBytes read);
  ~Unpack();
  Unpack(const Unpack&) = delete;

  // Appends the next bytes; false at the end. Throws UsageError where gzip is cut off or damaged.
  bool append(std::string& out);
  std::vector<std::string> warnings;

 private:
  bool refill();
  void inflate_some(std::string& out);
  std::string file_;
  ReadBytes read_;
  std::string packed_;
  size_t at_ = 0;  // in packed_
  int64_t bytes_ = 0, unpacked_ = 0;
  enum class State { start, plain, inside, between, over } state_ = State::start;
  z_stream stream_{};
};

}  // namespace duet
