// See durable.h. Durable files and directories on POSIX calls: what may fail is named, and what
// fails leaves the older directories as they were. test/durable_test.cpp kills a writer at random
// moments.
#include "pipeline/checkpoint/durable.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "data/open_file.h"
#include "model/base/hash.h"
#include "model/base/json.h"

namespace duet {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kWriting = ".duet-writing";

std::string parent_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

// The folders in `parent`, whose existence is not required.
std::vector<std::string> folders(const std::string& parent) {
  std::vector<std::string> paths;
  std::error_code none;
  if (!fs::is_directory(parent, none)) return paths;
  for (const auto& entry : fs::directory_iterator(parent))  // throws where it cannot be read
    if (entry.is_directory()) paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

void sync(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw Error(path + cannot_be("opened"));
  const int status = fsync(fd), error = errno;
  close(fd);
  if (status != 0 && error != EINVAL)  // EINVAL: a file system that does not sync directories
    throw Error(path + cannot_be("synced", error));
}

std::error_code make_folders(const std::string& path) {
  std::error_code error;
  fs::path folder;
  for (const fs::path& part : fs::absolute(path)) {
    folder /= part;
    const fs::file_status there = fs::status(folder, error);
    if (fs::is_directory(there)) continue;
    if (fs::exists(there)) return std::make_error_code(std::errc::not_a_directory);
    if (fs::create_directory(folder, error)) sync(folder.parent_path().string());
    if (error) break;
  }
  return error;
}

void replace_file(const std::string& path, const std::function<void(FileWriter&)>& write) try {
  FileWriter file(cat(path, kWriting));
  write(file);
  file.close();
  fs::rename(file.path(), path);
  sync(parent_of(path));
} catch (...) {
  std::error_code ignored;
  fs::remove(cat(path, kWriting), ignored);
  throw;
}

void replace_file(const std::string& path, std::string_view content) {
  replace_file(path, [&](FileWriter& file) { file.write(content); });
}

void require_writable(const std::string& path) {
  require(!fs::is_directory(path), path, ": expected a file to write, found a folder");
  const std::string target = fs::exists(path) ? path : parent_of(path);
  const bool writable = access(target.c_str(), W_OK) == 0;
  require(writable, path, cannot_be("written"));
}

void write_file(const std::string& path, std::string_view content) {
  require_writable(path);
  if (!fs::exists(path) || fs::is_regular_file(path))
    return replace_file(fs::weakly_canonical(path), content);
  std::ofstream file(path);
  file << content << std::flush;
  if (!file) throw Error(path + cannot_be("written"));
}

std::string put_aside(const std::string& path) {
  std::string aside = path + ".aside";
  for (int n = 2; fs::exists(fs::symlink_status(aside)); ++n) aside = cat(path, ".aside-", n);
  fs::rename(path, aside);
  return aside;
}

void remove_dir(const std::string& dir) {
  std::error_code error;
  fs::rename(dir, cat(dir, kWriting), error);
  if (!error) fs::remove_all(cat(dir, kWriting), error);
  if (error) throw Error(cat(dir, ": cannot be removed: ", error.message()));
}

// --- FileWriter ----------------------------------------------------------------------------------

FileWriter::FileWriter(const std::string& path)
    : path_(path), file_(std::fopen(path.c_str(), "wbe")) {
  if (!file_) fail("created");
}

FileWriter::~FileWriter() {
  if (file_) std::fclose(file_);
}

void FileWriter::fail(const char* verb) const {
  const int error = errno;
  struct statvfs disk;
  const bool known = statvfs(parent_of(path_).c_str(), &disk) == 0;
  throw Error(cat(path_, ": cannot be ", verb, " (", bytes_,
      " bytes so far): ", std::strerror(error),
      known ? cat("; ", (uint64_t(disk.f_bavail) * disk.f_frsize) >> 20, " MiB free there") : ""));
}

void FileWriter::write(const void* data, size_t bytes) {
  DUET_CHECK(file_, path_, ": written after close()");
  if (bytes == 0) return;  // of nothing, data may be null
  if (std::fwrite(data, 1, bytes, file_) != bytes) fail("written");
  bytes_ += int64_t(bytes);
}

void FileWriter::close() {
  if (!file_) return;
  if (std::fflush(file_) != 0) fail("written");
  if (fsync(fileno(file_)) != 0) fail("synced to the disk");
  if (std::fclose(std::exchange(file_, nullptr)) != 0) fail("closed");
}

// --- DurableDir ----------------------------------------------------------------------------------

DurableDir::DurableDir(const std::string& target) : target_(target), tmp_(cat(target, kWriting)) {
  DUET_CHECK(
      !is_complete(target), target, ": expected no complete directory of this name, found one");
  std::error_code error = make_folders(parent_of(target));
  for (const std::string& path : folders(parent_of(target)))
    if (!error && path.ends_with(kWriting)) fs::remove_all(path, error);
  if (!error) fs::create_directory(tmp_, error);
  require(!error, target, ": cannot be created: ", error.message());
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
    const OpenFile content(f.path());
    DUET_CHECK(content.size() == f.bytes(), f.path(), ": expected the ", f.bytes(),
        " bytes that were written, found ", content.size());
    const std::string name = fs::path(f.path()).filename().string();
    list.push(Json::object(
        {{"name", name}, {"bytes", content.size()}, {"checksum", hash_text(content.checksum())}}));
  }
  FileWriter done(tmp_ + "/DONE");
  done.write(Json::object({{"files", list}}).dump(2) + "\n");
  done.close();
  sync(tmp_);
  std::error_code error;
  if (fs::exists(fs::symlink_status(target_))) put_aside(target_);  // not a complete one
  fs::rename(tmp_, target_, error);
  if (error) throw Error(cat(tmp_, ": cannot be renamed to ", target_, ": ", error.message()));
  published_ = true;
  sync(parent_of(target_));
}

// --- Readers -------------------------------------------------------------------------------------

bool is_complete(const std::string& dir) {
  return !dir.ends_with(kWriting) && fs::exists(dir + "/DONE");
}

std::vector<std::string> complete_dirs(const std::string& parent) {
  std::vector<std::string> dirs = folders(parent);
  std::erase_if(dirs, [](const std::string& dir) { return !is_complete(dir); });
  return dirs;
}

void verify(const std::string& dir) {
  require(is_complete(dir), dir, ": not a complete checkpoint: it has no DONE file");
  for (const Json& entry : Json::load(dir + "/DONE").at("files").items()) {
    const std::string path = dir + "/" + entry.at("name").string();
    require(fs::exists(path), path, ": missing, but DONE lists it");
    const OpenFile content(path);
    const int64_t expected = entry.at("bytes").integer(0);
    require(content.size() >= expected, path, ": truncated: ", content.size(), " bytes, DONE says ",
        expected);
    const std::string found = hash_text(content.checksum()), listed = entry.at("checksum").string();
    require(content.size() == expected && found == listed, path, ": altered: ", content.size(),
        " bytes with checksum ", found, ", DONE says ", expected, " with ", listed);
  }
}

}  // namespace duet
