// Disk: what of a folder survives a power cut. POSIX promises a file's bytes after its fsync, and a
// folder's names after the fsync of the folder; whatever came later may be there or not.
//
// Disk keeps what was promised and writes, for a cut at this moment, the folders that it could
// leave behind, as far apart as they can be:
//   kept     nothing is lost: the process was killed, the machine lives
//   lost     everything that was not synced is lost, names and bytes
//   emptied  names are there, bytes that were not synced are not: files end early, or are empty
//   torn     names and sizes are there, the second half of the bytes that were not synced are zeros
// What it is not: a file system. Blocks do not move, and all bytes of a file are synced together.
// Read next: shim.cpp, which calls it.
#pragma once
#include <sys/types.h>

#include <map>
#include <optional>
#include <set>
#include <string>

namespace faults {

class Disk {
 public:
  // What lies in `root` now is safe. `trees`: a folder on the same file system, outside of root.
  Disk(std::string root, std::string trees);

  void synced(int fd);  // a file or a folder
  // Writes trees/0001-lost and so on, as many as differ from all before; at the end of the program
  // trees/done-lost and so on, in any case.
  void cut(bool at_end = false);
  // Where to move what is removed from root: its inode must not be given to another file.
  std::string grave();

 private:
  struct Node {
    bool folder = false;
    std::map<std::string, ino_t> names;  // of a folder
    std::string bytes;                   // of a file
  };
  using Nodes = std::map<ino_t, Node>;
  // By path below root; nothing: a folder.
  using Tree = std::map<std::string, std::optional<std::string>>;
  enum class Cut { kept, lost, emptied, torn };

  static ino_t read(const std::string& path, Nodes& nodes);
  std::string bytes_after(Cut cut, ino_t inode, const Nodes& now) const;
  void collect(Cut cut, ino_t inode, const std::string& path, const Nodes& now, Tree& tree) const;
  static void write(const Tree& tree, const std::string& top);

  const std::string root_, trees_;
  Nodes durable_;
  std::set<size_t> seen_;  // hashes of trees
  int written_ = 0, buried_ = 0;
};

}  // namespace faults
