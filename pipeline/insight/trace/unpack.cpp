// See input.h. Bytes, out of gzip where they are.
#include "pipeline/insight/trace/input.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "model/base/check.h"

namespace duet {

constexpr size_t kChunk = 1 << 16;

ReadBytes read_trace_file(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  require(!exists(status) || is_regular_file(status), path,
      ": expected a file, found a folder, pipe or device");
  const auto file = std::make_shared<std::ifstream>(path, std::ios::binary);
  require(file->good(), path, ": expected a file that can be read, found: ", std::strerror(errno));
  return [file, path](char* to, size_t most) {
    file->read(to, std::streamsize(most));
    require(!file->bad(), path, ": expected to read on, found: ", std::strerror(errno));
    return size_t(file->gcount());
  };
}

ReadBytes read_memory(std::string_view bytes) {
  return [bytes](char* to, size_t most) mutable {
    const size_t n = bytes.copy(to, most);
    bytes.remove_prefix(n);
    return n;
  };
}

Unpack::Unpack(std::string file, ReadBytes read) : file_(std::move(file)), read_(std::move(read)) {
  DUET_CHECK(inflateInit2(&stream_, 15 + 16) == Z_OK, "zlib: expected to start");
}

Unpack::~Unpack() { inflateEnd(&stream_); }

// After this, bytes of the file are at packed_[at_], or the file is over.
bool Unpack::refill() {
  if (at_ < packed_.size()) return true;
  packed_.resize(kChunk);
  size_t n = 0;
  for (size_t more = 1; more > 0 && n < 2; n += more) more = read_(&packed_[n], kChunk - n);
  packed_.resize(n);  // two bytes at least, for the magic, unless the file is over
  bytes_ += int64_t(packed_.size());
  at_ = 0;
  return !packed_.empty();
}

bool Unpack::append(std::string& out) {
  if (!refill()) {
    require(state_ != State::inside, file_, ": expected gzip data to go on, found their end after ",
        bytes_, " bytes (", unpacked_, " unpacked): the file is cut off");
    return false;
  }
  if (state_ == State::start)
    state_ = packed_.starts_with("\x1f\x8b") ? State::between : State::plain;
  if (state_ == State::between) {  // members
    state_ = packed_[at_] == '\x1f' ? State::inside : State::over;
    inflateReset(&stream_);
    if (state_ == State::over)
      warnings.push_back(cat("what follows the gzip data is left out, from byte ",
          bytes_ - int64_t(packed_.size() - at_), " on"));
  }
  if (state_ == State::inside) {
    inflate_some(out);
    return true;
  }
  if (state_ == State::plain) out.append(packed_);
  at_ = packed_.size();
  return true;
}

void Unpack::inflate_some(std::string& out) {
  const size_t before = out.size();
  out.resize(before + kChunk);
  stream_.next_in = reinterpret_cast<Bytef*>(packed_.data() + at_);
  stream_.avail_in = uInt(packed_.size() - at_);
  stream_.next_out = reinterpret_cast<Bytef*>(out.data() + before);
  stream_.avail_out = uInt(kChunk);
  const int status = inflate(&stream_, Z_NO_FLUSH);
  at_ = packed_.size() - stream_.avail_in;
  out.resize(before + kChunk - stream_.avail_out);
  unpacked_ += int64_t(out.size() - before);
  if (status == Z_STREAM_END) state_ = State::between;
  const std::string_view reason = stream_.msg ? stream_.msg : "zlib knows no more";
  if (status == Z_DATA_ERROR && reason.starts_with("incorrect")) {  // its checksum or length
    state_ = State::over;
    return warnings.push_back(cat(
        "the gzip data are not those that were packed (", reason, "): any figure may be wrong"));
  }
  require(status == Z_OK || status == Z_STREAM_END || status == Z_BUF_ERROR, file_,
      ": expected gzip data, found damage near byte ", bytes_ - int64_t(packed_.size() - at_), " (",
      reason, ")");
}

}  // namespace duet
