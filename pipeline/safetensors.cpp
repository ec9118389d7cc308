// safetensors, written and read. Read next: safetensors.h has the format; test/safetensors_test.cpp damages files in every way.
#include "pipeline/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "model/json.h"

namespace duet {

static_assert(std::endian::native == std::endian::little, "safetensors holds little-endian numbers");

namespace {

constexpr int64_t kMaxHeader = 100'000'000;  // the format's own limit

// Bytes of an element; 0 for a dtype that duet does not read.
int64_t element_size(const std::string& dtype) {
  if (dtype == "F64" || dtype == "I64") return 8;
  if (dtype == "F32" || dtype == "I32") return 4;
  return dtype == "BF16" ? 2 : 0;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (int64_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

}  // namespace

int64_t TensorSpec::elements() const {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

int64_t TensorSpec::bytes() const { return elements() * element_size(dtype); }

std::string TensorSpec::text() const { return dtype + " " + shape_text(shape); }

std::string safetensors_dtype(Dtype dtype) {
  return dtype == Dtype::f64 ? "F64" : dtype == Dtype::bf16 ? "BF16" : dtype == Dtype::i32 ? "I32" : "F32";
}

// --- Writer ------------------------------------------------------------------------------------------------------------------

SafetensorsWriter::SafetensorsWriter(FileWriter& out, std::vector<TensorSpec> tensors, const Metadata& metadata)
    : out_(out), tensors_(std::move(tensors)) {
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorSpec& a, const TensorSpec& b) {
    return std::pair(-element_size(a.dtype), a.name) < std::pair(-element_size(b.dtype), b.name);
  });
  Json::Object header;
  if (!metadata.empty()) {
    Json::Object strings;
    for (const auto& [key, value] : metadata) strings.emplace_back(key, value);
    header.emplace_back("__metadata__", Json::object(std::move(strings)));
  }
  int64_t end = 0;
  for (const TensorSpec& t : tensors_) {
    DUET_CHECK(element_size(t.dtype) > 0, t.name, ": no such dtype: ", t.dtype);
    const int64_t begin = end;
    end += t.bytes();
    header.emplace_back(t.name, Json::object({{"dtype", t.dtype},
                                              {"shape", Json(t.shape)},
                                              {"data_offsets", Json(std::vector<int64_t>{begin, end})}}));
  }
  std::string text = Json::object(std::move(header)).dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data begins at a multiple of 8
  const uint64_t length = text.size();
  out_.write(&length, 8);
  out_.write(text);
}

void SafetensorsWriter::write(const std::string& name, const void* data, size_t bytes) {
  while (current_ < tensors_.size() && written_ == tensors_[current_].bytes() && tensors_[current_].name != name) {
    ++current_;
    written_ = 0;
  }
  DUET_CHECK(current_ < tensors_.size() && tensors_[current_].name == name, out_.path(), ": expected tensor ",
             current_ < tensors_.size() ? tensors_[current_].name : "none", ", got ", name);
  written_ += int64_t(bytes);
  DUET_CHECK(written_ <= tensors_[current_].bytes(), out_.path(), ": ", name, " is ", tensors_[current_].text(), ", got ",
             written_, " bytes");
  out_.write(data, bytes);
}

void SafetensorsWriter::finish() {
  for (; current_ < tensors_.size(); ++current_, written_ = 0) {
    const TensorSpec& t = tensors_[current_];
    DUET_CHECK(written_ == t.bytes(), out_.path(), ": ", t.name, " is ", t.text(), ", got ", written_, " bytes");
  }
}

// --- Reader ------------------------------------------------------------------------------------------------------------------

SafetensorsReader::SafetensorsReader(const std::string& path) : path_(path) {
  map_file();
  try {
    parse_header();
  } catch (...) {
    munmap(const_cast<char*>(map_), size_t(size_));
    throw;
  }
}

SafetensorsReader::~SafetensorsReader() { munmap(const_cast<char*>(map_), size_t(size_)); }

void SafetensorsReader::map_file() {
  const int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  require(fd >= 0, path_, ": cannot be opened: ", std::strerror(errno));
  struct stat info;
  const bool regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  size_ = regular ? int64_t(info.st_size) : 0;
  void* map = size_ >= 8 ? mmap(nullptr, size_t(size_), PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
  const int error = errno;
  close(fd);
  require(regular, path_, ": expected a safetensors file, found a directory or device");
  require(size_ >= 8, path_, ": expected a safetensors file, found only ", size_, " bytes");
  require(map != MAP_FAILED, path_, ": cannot be mapped into memory: ", std::strerror(error));
  map_ = static_cast<const char*>(map);
}

namespace {

// The tensor that a header's member describes, its data somewhere in the `size` bytes at `data`.
SafetensorsReader::Entry parse_entry(const std::string& name, const Json& j, const char* data, int64_t size) {
  SafetensorsReader::Entry t;
  t.name = name;
  t.dtype = j.at("dtype").string();
  const int64_t element = element_size(t.dtype);
  require(element > 0, j.where(), ": expected dtype F64, F32, BF16, I64 or I32, found ", t.dtype);
  int64_t bytes = element;
  for (const Json& d : j.at("shape").items()) {
    t.shape.push_back(d.integer(0));
    const bool overflow = __builtin_mul_overflow(bytes, t.shape.back(), &bytes);
    require(!overflow, j.where(), ": the shape overflows 64 bits: ", shape_text(t.shape));
  }
  const auto& offsets = j.at("data_offsets").items();
  require(offsets.size() == 2, j.where(), ": expected two data_offsets, found ", offsets.size());
  const int64_t begin = offsets[0].integer(0), end = offsets[1].integer(begin);
  require(end - begin == bytes, j.where(), ": ", t.text(), " needs ", bytes, " bytes, data_offsets give ", end - begin);
  require(end <= size, j.where(), ": the data ends at byte ", end, ", but the file has only ", size,
          " bytes of data: truncated?");
  t.data = data + begin;
  return t;
}

}  // namespace

void SafetensorsReader::parse_header() {
  uint64_t length;
  std::memcpy(&length, map_, 8);
  require(length <= uint64_t(size_ - 8) && length <= uint64_t(kMaxHeader), path_, ": expected a header of at most ",
          std::min(size_ - 8, kMaxHeader), " bytes, found ", length, ": truncated, or not a safetensors file");
  const char* data = map_ + 8 + length;
  const int64_t data_size = size_ - 8 - int64_t(length);
  const Json header = Json::parse({map_ + 8, size_t(length)}, path_);
  for (const auto& [name, member] : header.members()) {
    if (name != "__metadata__") tensors_.emplace(name, parse_entry(name, member, data, data_size));
    else for (const auto& [key, value] : member.members()) metadata_.emplace(key, value.string());
  }

  std::vector<const Entry*> in_order;
  for (const auto& [name, tensor] : tensors_) in_order.push_back(&tensor);
  std::sort(in_order.begin(), in_order.end(),
            [](const Entry* a, const Entry* b) { return std::pair(a->data, a->bytes()) < std::pair(b->data, b->bytes()); });
  const char* end = data;
  for (const Entry* t : in_order) {
    require(t->data >= end, path_, ": ", t->name, ": overlaps the tensor before it by ", end - t->data, " bytes");
    require(t->data == end, path_, ": ", t->name, ": a gap of ", t->data - end, " bytes before it");
    end = t->data + t->bytes();
  }
  require(end == map_ + size_, path_, ": ", map_ + size_ - end, " bytes after the last tensor");
}

const SafetensorsReader::Entry* SafetensorsReader::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

const SafetensorsReader::Entry& SafetensorsReader::at(const std::string& name, const std::vector<int64_t>& shape,
                                                      const std::string& dtype) const {
  const Entry* t = find(name);
  require(t != nullptr, path_, ": tensor ", name, " is missing (the file has ", tensors_.size(), " tensors)");
  require(t->shape == shape, path_, ": ", name, ": expected shape ", shape_text(shape), ", found ", shape_text(t->shape));
  require(dtype.empty() || t->dtype == dtype, path_, ": ", name, ": expected dtype ", dtype, ", found ", t->dtype);
  return *t;
}

void SafetensorsReader::read_floats(const Entry& t, int64_t begin, int64_t count, float* out) const {
  DUET_CHECK(begin >= 0 && count >= 0 && begin + count <= t.elements(), t.name, ": ", count, " elements from ", begin);
  const char* from = t.data + begin * element_size(t.dtype);
  auto convert = [&]<class T>(T x) {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(&x, from + i * int64_t(sizeof x), sizeof x);
      out[i] = float(x);
    }
  };
  if (t.dtype == "F32") std::memcpy(out, from, size_t(count) * 4);
  else if (t.dtype == "BF16") convert(bf16());
  else if (t.dtype == "F64") convert(double());
  else throw UsageError(cat(path_, ": ", t.name, ": expected dtype F32, BF16 or F64, found ", t.dtype));
}

}  // namespace duet
