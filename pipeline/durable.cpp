// Durable files and directories on POSIX calls. What may fail is named; what fails leaves the older directories as they were.
// Read next: durable.h has the contract, test/durable_test.cpp kills a writer at random moments.
#include "pipeline/durable.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include "model/json.h"

namespace duet {

namespace fs = std::filesystem;

namespace {

constexpr size_t kBuffer = 1 << 20;  // a multiple of 8, as Checksum wants it
constexpr const char* kTmp = ".duet-writing";
constexpr const char* kReplaced = ".duet-replaced";
// DONE is complete and on the disk under this name before the directory takes its own, so that one rename makes it appear.
constexpr const char* kPending = "DONE.pending";

bool ends_with(const std::string& s, std::string_view suffix) {
  return s.size() > suffix.size() && std::string_view(s).substr(s.size() - suffix.size()) == suffix;
}

std::string hex(uint64_t x) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", (unsigned long long)x);
  return text;
}

void fsync_dir(const std::string& dir) {
  const int fd = open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) throw Error(cat(dir, ": cannot be opened: ", std::strerror(errno)));
  const int status = fsync(fd), error = errno;
  close(fd);
  if (status != 0 && error != EINVAL)  // EINVAL: a file system that does not sync directories
    throw Error(cat(dir, ": cannot be synced: ", std::strerror(error)));
}

void rename_path(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0)
    throw Error(cat(from, ": cannot be renamed to ", to, ": ", std::strerror(errno)));
}

std::string parent_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

}  // namespace

// --- Checksum: as FNV, xor and multiply, over words; multiplied before as well, and rotated, so that high bits spread too ----

void Checksum::add(const void* data, size_t bytes) {
  constexpr uint64_t p = 0x9fb21c651e98df25u, q = 0xd6e8feb86659fd93u;
  const char* at = static_cast<const char*>(data);
  uint64_t h = hash_, word = 0;
  size_t left = bytes;
  for (; left >= 8; left -= 8, at += 8) {
    std::memcpy(&word, at, 8);
    h = std::rotl(h ^ (word * p), 29) * q;
  }
  if (left > 0) {
    word = 0;
    std::memcpy(&word, at, left);
    h = std::rotl(h ^ (word * p), 29) * q;
  }
  hash_ = h;
  bytes_ += bytes;
}

uint64_t Checksum::value() const {
  uint64_t h = hash_ ^ bytes_;  // the size tells trailing zeros from the last word's padding
  h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93u;
  return h ^ (h >> 32);
}

// --- FileWriter --------------------------------------------------------------------------------------------------------------

FileWriter::FileWriter(const std::string& path) : path_(path) {
  buffer_.reserve(kBuffer);
  fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("created");
}

FileWriter::~FileWriter() {
  if (fd_ >= 0) ::close(fd_);
}

void FileWriter::fail(const char* verb) const {
  const int error = errno;
  struct statvfs disk;
  const bool known = statvfs(parent_of(path_).c_str(), &disk) == 0;
  throw Error(cat(path_, ": cannot be ", verb, " (", bytes_, " bytes so far): ", std::strerror(error),
                  known ? cat("; ", (uint64_t(disk.f_bavail) * disk.f_frsize) >> 20, " MiB free there") : ""));
}

void FileWriter::write(const void* data, size_t bytes) {
  DUET_CHECK(fd_ >= 0, path_, ": written after close()");
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const size_t n = std::min(bytes, kBuffer - buffer_.size());
    buffer_.insert(buffer_.end(), p, p + n);
    p += n;
    bytes -= n;
    bytes_ += int64_t(n);
    if (buffer_.size() == kBuffer) flush();
  }
}

void FileWriter::flush() {
  checksum_.add(buffer_.data(), buffer_.size());
  for (size_t done = 0; done < buffer_.size();) {
    const ssize_t n = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("written");
    done += size_t(n);
  }
  buffer_.clear();
}

void FileWriter::close() {
  if (fd_ < 0) return;
  flush();
  if (fsync(fd_) != 0) fail("synced to the disk");
  const int status = ::close(fd_);
  fd_ = -1;
  if (status != 0) fail("closed");
  buffer_ = std::vector<char>();
}

// --- DurableDir --------------------------------------------------------------------------------------------------------------

DurableDir::DurableDir(const std::string& target) : target_(target), tmp_(target + kTmp) {
  std::error_code error;
  fs::create_directories(parent_of(target_), error);
  if (!error) remove_leftovers(parent_of(target_));
  if (!error) fs::create_directory(tmp_, error);
  require(!error, target_, ": cannot be created: ", error.message());
}

DurableDir::~DurableDir() {
  if (published_) return;
  std::error_code ignored;
  files_.clear();
  fs::remove_all(tmp_, ignored);
}

FileWriter& DurableDir::file(const std::string& name) {
  if (!files_.empty()) files_.back().close();
  return files_.emplace_back(tmp_ + "/" + name);
}

void DurableDir::publish() {
  Json list = Json::array();
  for (FileWriter& f : files_) {
    f.close();
    const std::string name = fs::path(f.path()).filename().string();
    list.push(Json::object({{"name", name}, {"bytes", f.bytes()}, {"checksum", hex(f.checksum())}}));
  }
  FileWriter done(tmp_ + "/" + kPending);
  done.write(Json::object({{"files", list}}).dump(2) + "\n");
  done.close();
  fsync_dir(tmp_);

  const bool replaces = fs::exists(target_);
  if (replaces) rename_path(target_, target_ + kReplaced);
  rename_path(tmp_, target_);
  published_ = true;
  fsync_dir(parent_of(target_));
  rename_path(target_ + "/" + kPending, target_ + "/DONE");
  fsync_dir(target_);
  if (replaces) fs::remove_all(target_ + kReplaced);
  files_.clear();
}

// --- Readers -----------------------------------------------------------------------------------------------------------------

bool is_complete(const std::string& dir) { return fs::exists(dir + "/DONE"); }

std::vector<std::string> complete_dirs(const std::string& parent) {
  std::vector<std::string> dirs;
  std::error_code none;  // a parent that does not exist holds nothing
  for (const auto& entry : fs::directory_iterator(parent, none)) {
    const std::string path = entry.path().string();
    // A replaced directory counts until its replacement is complete.
    const bool replaced = ends_with(path, kReplaced) && is_complete(path.substr(0, path.size() - std::strlen(kReplaced)));
    if (is_complete(path) && !replaced) dirs.push_back(path);
  }
  std::sort(dirs.begin(), dirs.end());
  return dirs;
}

void verify(const std::string& dir) {
  require(is_complete(dir), dir, ": not a complete checkpoint: it has no DONE file");
  std::vector<char> block(kBuffer);
  for (const Json& entry : Json::load(dir + "/DONE").at("files").items()) {
    const std::string path = dir + "/" + entry.at("name").string();
    const int64_t expected = entry.at("bytes").integer(0);
    const std::unique_ptr<FILE, int (*)(FILE*)> in(std::fopen(path.c_str(), "rb"), [](FILE* f) { return std::fclose(f); });
    require(in != nullptr, path, ": missing, but DONE lists it: ", std::strerror(errno));
    Checksum sum;
    int64_t found = 0;
    for (size_t n; (n = std::fread(block.data(), 1, kBuffer, in.get())) > 0; found += int64_t(n)) sum.add(block.data(), n);
    require(!std::ferror(in.get()), path, ": cannot be read: ", std::strerror(errno));
    require(found >= expected, path, ": truncated: ", found, " bytes, DONE says ", expected);
    const std::string& checksum = entry.at("checksum").string();
    require(found == expected && hex(sum.value()) == checksum, path, ": altered: ", found, " bytes with checksum ",
            hex(sum.value()), ", DONE says ", expected, " with ", checksum);
  }
}

void remove_leftovers(const std::string& parent) {
  std::vector<std::string> paths;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(parent, none))
    if (entry.is_directory()) paths.push_back(entry.path().string());
  for (const std::string& path : paths)
    if (ends_with(path, kTmp) || (!is_complete(path) && fs::exists(path + "/" + kPending))) fs::remove_all(path);
  for (const std::string& path : paths) {
    if (!ends_with(path, kReplaced)) continue;
    const std::string target = path.substr(0, path.size() - std::strlen(kReplaced));
    if (is_complete(target)) fs::remove_all(path);
    else rename_path(path, target);
  }
}

}  // namespace duet
