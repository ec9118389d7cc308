// Files that survive a kill, a power cut and a full disk: how checkpoints are written.
//
// A directory appears complete or not at all. Its files are written into TARGET.duet-writing beside it and fsynced; then it is
// renamed to TARGET; last, DONE appears in it, with size and checksum of every file. A directory without DONE is not there
// for any reader, and the next write beside it removes it. So whatever happens, the newest directory with DONE is whole.
//
//   DurableDir dir("out/step-000100");
//   dir.file("config.json").write(text);
//   SafetensorsWriter weights(dir.file("model.safetensors"), specs, {{"format", "pt"}});
//   ...
//   dir.publish();
//
// One thread writes; one process writes into a parent folder at a time. Errors: UsageError if the directory cannot be made;
// Error, naming the path, the reason and the free space, when a write fails (also where the disk fills only at fsync or close).
// Read next: safetensors.h.
#pragma once
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "model/check.h"

namespace duet {

// A 64-bit checksum against accidents, not against intent: any change within one aligned 8-byte word changes it, other damage
// almost surely. Fed in pieces, each but the last a multiple of 8 bytes.
class Checksum {
 public:
  void add(const void* data, size_t bytes);
  uint64_t value() const;

 private:
  uint64_t hash_ = 0x9e3779b97f4a7c15u, bytes_ = 0;
};

// Writes one file from its first byte to its last, through a buffer, with the checksum taken on the way.
class FileWriter {
 public:
  explicit FileWriter(const std::string& path);  // creates the file, or empties it
  ~FileWriter();                                 // closes; a file that close() has not seen is not durable
  FileWriter(const FileWriter&) = delete;

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void close();  // to the disk (fsync); a second call does nothing

  const std::string& path() const { return path_; }
  int64_t bytes() const { return bytes_; }
  uint64_t checksum() const { return checksum_.value(); }  // after close()

 private:
  void flush();
  [[noreturn]] void fail(const char* verb) const;

  std::string path_;
  int fd_ = -1;
  std::vector<char> buffer_;
  int64_t bytes_ = 0;
  Checksum checksum_;
};

class DurableDir {
 public:
  explicit DurableDir(const std::string& target);  // makes the folders above it; removes what interrupted writes left there
  ~DurableDir();                                   // unpublished: removes what was written
  DurableDir(const DurableDir&) = delete;

  FileWriter& file(const std::string& name);  // a new file of the directory; closes the one before. Valid until publish().
  void publish();                             // all at once; a complete directory of the same name is replaced

 private:
  std::string target_, tmp_;
  std::deque<FileWriter> files_;
  bool published_ = false;
};

// Whether `dir` has a DONE file.
bool is_complete(const std::string& dir);

// The complete directories in `parent`, as paths in ascending order of name (so zero-padded steps: the newest last).
std::vector<std::string> complete_dirs(const std::string& parent);

// Reads every file of a complete directory; throws UsageError naming the one that is missing, truncated or altered.
void verify(const std::string& dir);

// Removes what interrupted writes left in `parent`, and brings back a directory whose replacement did not become complete.
void remove_leftovers(const std::string& parent);

}  // namespace duet
