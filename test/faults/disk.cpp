// See disk.h.
#include "test/faults/disk.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

namespace faults {

namespace fs = std::filesystem;

Disk::Disk(std::string root, std::string trees) : root_(std::move(root)), trees_(std::move(trees)) {
  fs::create_directories(trees_ + "/graves");
  read(root_, durable_);
}

ino_t Disk::read(const std::string& path, Nodes& nodes) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) return 0;
  Node& node = nodes[info.st_ino] = {S_ISDIR(info.st_mode), {}, {}};
  if (node.folder) {
    for (const auto& entry : fs::directory_iterator(path))
      node.names[entry.path().filename().string()] = read(entry.path().string(), nodes);
  } else {
    std::ifstream in(path, std::ios::binary);
    node.bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  return info.st_ino;
}

void Disk::synced(int fd) {
  const std::string path = fs::read_symlink("/proc/self/fd/" + std::to_string(fd)).string();
  Nodes now;
  const ino_t inode = read(path, now);
  durable_[inode] = now[inode];  // the names of a folder, not what they name
}

std::string Disk::grave() { return trees_ + "/graves/" + std::to_string(++buried_); }

std::string Disk::bytes_after(Cut cut, ino_t inode, const Nodes& now) const {
  const auto safe = durable_.find(inode);
  const std::string old = safe == durable_.end() ? "" : safe->second.bytes;
  if (cut == Cut::lost) return old;
  std::string bytes = now.at(inode).bytes;
  if (cut == Cut::kept || bytes == old) return bytes;
  const size_t same = bytes.starts_with(old) ? old.size() : 0;
  if (cut == Cut::emptied) return bytes.substr(0, same);
  std::fill(bytes.begin() + long(same + (bytes.size() - same) / 2), bytes.end(), '\0');
  return bytes;
}

void Disk::collect(
    Cut cut, ino_t inode, const std::string& path, const Nodes& now, Tree& tree) const {
  const Nodes& source = cut == Cut::lost ? durable_ : now;
  const auto node = source.find(inode), alive = now.find(inode);
  const bool folder =
      alive != now.end() ? alive->second.folder : node != source.end() && node->second.folder;
  if (!folder) {
    tree[path] = bytes_after(cut, inode, now);
    return;
  }
  tree[path] = std::nullopt;
  if (node == source.end()) return;  // its names were never synced
  for (const auto& [name, child] : node->second.names)
    collect(cut, child, path + "/" + name, now, tree);
}

void Disk::write(const Tree& tree, const std::string& top) {
  for (const auto& [path, bytes] : tree) {
    if (bytes)
      std::ofstream(top + path, std::ios::binary) << *bytes;
    else
      fs::create_directories(top + path);
  }
}

void Disk::cut(bool at_end) {
  Nodes now;
  const ino_t top = read(root_, now);
  constexpr std::pair<Cut, const char*> cuts[] = {
      {Cut::kept, "kept"}, {Cut::lost, "lost"}, {Cut::emptied, "emptied"}, {Cut::torn, "torn"}};
  for (const auto& [cut, name] : cuts) {
    Tree tree;
    collect(cut, top, "", now, tree);
    std::string text;
    for (const auto& [path, bytes] : tree) text += path + '\0' + bytes.value_or("/") + '\0';
    if (!seen_.insert(std::hash<std::string>()(text)).second && !at_end) continue;
    std::string number = std::to_string(++written_);
    number.insert(0, 4 - std::min<size_t>(4, number.size()), '0');
    write(tree, trees_ + "/" + (at_end ? "done" : number) + "-" + name);
  }
}

}  // namespace faults
