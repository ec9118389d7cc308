// Files that survive a kill, a power cut and a full disk: how checkpoints are written.
//
// A directory appears complete or not at all. Its files are written into TARGET.duet-writing beside
// it and fsynced; last comes DONE, with size and checksum of every file; then one rename makes the
// whole appear under its name. What an interrupted write left is not there for any reader, and the
// next directory written beside it removes it. So the newest directory with DONE is whole.
//
//   DurableDir dir("out/step-000100");
//   dir.file("config.json").write(text);
//   SafetensorsWriter weights(dir.file("model.safetensors"), specs);
//   ...
//   dir.publish();
//
// One thread writes; one process writes into a parent folder at a time. Errors name the path and
// the reason: UsageError if the directory cannot be made; Error, with the free space, when a write
// fails; Error or std::filesystem_error when a rename or the reading of a folder does.
// Read next: safetensors.h.
#pragma once
#include <cstdint>
#include <cstdio>
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "model/base/check.h"

namespace duet {

// Writes one file from its first byte to its last.
class FileWriter {
 public:
  explicit FileWriter(const std::string& path);  // creates the file, or empties it
  // closes; a file that close() has not seen is not durable
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void close();  // to the disk (fsync); a second call does nothing
  const std::string& path() const { return path_; }
  int64_t bytes() const { return bytes_; }

 private:
  [[noreturn]] void fail(const char* verb) const;

  std::string path_;
  std::FILE* file_;
  int64_t bytes_ = 0;
};

class DurableDir {
 public:
  // Makes the folders above it; removes what interrupted writes left there. A complete directory is
  // never replaced.
  explicit DurableDir(const std::string& target);
  ~DurableDir();  // unpublished: removes what was written
  DurableDir(const DurableDir&) = delete;

  // a new file of the directory; closes the one before. Valid until publish().
  FileWriter& file(const std::string& name);
  void publish();  // all at once

 private:
  std::string target_, tmp_;
  std::deque<FileWriter> files_;
  bool published_ = false;
};

// Makes a folder and those above it; what was made is on the disk. Returns the system's error.
std::error_code make_folders(const std::string& path);
void sync(const std::string& path);  // a file's content, or a folder's list of names, to the disk
// Refuses, with UsageError, what write_file could not write.
void require_writable(const std::string& path);
// A file that somebody asked for: replaced, or, where it is a pipe or a device, written to.
void write_file(const std::string& path, std::string_view content);
// The file has this content, on the disk, or after a kill the one it had; PATH.duet-writing, which
// a kill may leave, the next call overwrites.
void replace_file(const std::string& path, const std::function<void(FileWriter&)>& write);
void replace_file(const std::string& path, std::string_view content);
// Whatever has this name gets another, beside it, which is returned.
std::string put_aside(const std::string& path);
// A directory with all in it; to any reader it disappears at once.
void remove_dir(const std::string& dir);

// Whether `dir` has a DONE file.
bool is_complete(const std::string& dir);

// The complete directories in `parent`, as paths in ascending order of name (so zero-padded steps:
// the newest last).
std::vector<std::string> complete_dirs(const std::string& parent);

// Reads every file of a complete directory; throws UsageError naming the one that is missing,
// truncated or altered.
void verify(const std::string& dir);

}  // namespace duet
