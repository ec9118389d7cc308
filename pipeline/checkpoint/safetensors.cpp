// See safetensors.h. The format, written and read; test/safetensors_test.cpp damages files in every
// way.
#include "pipeline/checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "model/base/json.h"

namespace duet {

static_assert(
    std::endian::native == std::endian::little, "safetensors holds little-endian numbers");

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

// --- Writer --------------------------------------------------------------------------------------

SafetensorsWriter::SafetensorsWriter(FileWriter& out, std::vector<TensorSpec> tensors)
    : out_(out), tensors_(std::move(tensors)) {
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorSpec& a, const TensorSpec& b) {
    return std::pair(-element_size(a.dtype), a.name) < std::pair(-element_size(b.dtype), b.name);
  });
  // transformers wants it
  Json header = Json::object({{"__metadata__", Json::object({{"format", "pt"}})}});
  int64_t end = 0;
  for (const TensorSpec& t : tensors_) {
    DUET_CHECK(element_size(t.dtype) > 0, t.name, ": no such dtype: ", t.dtype);
    const int64_t begin = end;
    end += t.bytes();
    const Json offsets(std::vector<int64_t>{begin, end});
    header.set(t.name,
        Json::object({{"dtype", t.dtype}, {"shape", Json(t.shape)}, {"data_offsets", offsets}}));
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data begins at a multiple of 8
  const uint64_t length = text.size();
  out_.write(&length, 8);
  out_.write(text);
}

void SafetensorsWriter::write(const std::string& name, const void* data, size_t bytes) {
  const TensorSpec expected =
      written_ < tensors_.size() ? tensors_[written_] : TensorSpec{"no more"};
  DUET_CHECK(expected.name == name && expected.bytes() == int64_t(bytes), out_.path(),
      ": expected tensor ", expected.name, ", ", expected.text(), ", got ", name, " of ", bytes,
      " bytes");
  out_.write(data, bytes);
  ++written_;
}

void SafetensorsWriter::finish() {
  DUET_CHECK(written_ == tensors_.size(), out_.path(), ": expected ", tensors_.size(),
      " tensors, got ", written_);
}

// --- Reader --------------------------------------------------------------------------------------

namespace {

// The tensor that a header's member describes, its bytes somewhere in `data`.
SafetensorsReader::Entry parse_entry(
    const std::string& name, const Json& j, std::string_view data) {
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
  const auto offsets = j.at("data_offsets").items();
  require(offsets.size() == 2, j.where(), ": expected two data_offsets, found ", offsets.size());
  const int64_t begin = offsets[0].integer(0), end = offsets[1].integer(begin);
  require(end - begin == bytes, j.where(), ": ", t.text(), " needs ", bytes,
      " bytes, data_offsets give ", end - begin);
  require(end <= int64_t(data.size()), j.where(), ": the data ends at byte ", end,
      ", but the file has only ", data.size(), " bytes of data: truncated?");
  t.data = data.data() + begin;
  return t;
}

}  // namespace

SafetensorsReader::SafetensorsReader(const std::string& path) : path_(path), file_(map_file(path)) {
  require(
      file_.size >= 8, path_, ": expected a safetensors file, found only ", file_.size, " bytes");
  uint64_t length;
  std::memcpy(&length, file_.data.get(), 8);
  const int64_t most = std::min(file_.size - 8, kMaxHeader);
  require(length <= uint64_t(most), path_, ": expected a header of at most ", most,
      " bytes, found ", length, ": truncated, or not a safetensors file");
  const std::string_view data = file_.text().substr(8 + length);
  const Json header = Json::parse(file_.text().substr(8, length), path_);
  for (const auto& [name, member] : header.members())
    if (name != "__metadata__") tensors_.emplace(name, parse_entry(name, member, data));

  std::vector<const Entry*> in_order;
  for (const auto& [name, tensor] : tensors_) in_order.push_back(&tensor);
  std::sort(in_order.begin(), in_order.end(), [](const Entry* a, const Entry* b) {
    return std::pair(a->data, a->bytes()) < std::pair(b->data, b->bytes());
  });
  const char* end = data.data();
  for (const Entry* t : in_order) {
    require(t->data >= end, path_, ": ", t->name, ": overlaps the tensor before it by ",
        end - t->data, " bytes");
    require(t->data == end, path_, ": ", t->name, ": a gap of ", t->data - end, " bytes before it");
    end = t->data + t->bytes();
  }
  const int64_t left = data.data() + data.size() - end;
  require(left == 0, path_, ": ", left, " bytes after the last tensor");
}

const SafetensorsReader::Entry* SafetensorsReader::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

const SafetensorsReader::Entry& SafetensorsReader::at(
    const std::string& name, const std::vector<int64_t>& shape) const {
  const Entry* t = find(name);
  require(t, path_, ": tensor ", name, " is missing (the file has ", tensors_.size(), " tensors)");
  require(t->shape == shape, path_, ": ", name, ": expected shape ", shape_text(shape), ", found ",
      shape_text(t->shape));
  return *t;
}

std::vector<float> SafetensorsReader::floats(const Entry& t) const {
  std::vector<float> out(size_t(t.elements()));
  const auto convert = [&]<class T>(T x) {
    for (size_t i = 0; i < out.size(); ++i) {
      std::memcpy(&x, t.data + i * sizeof x, sizeof x);
      out[i] = float(x);
    }
  };
  require(t.dtype == "F32" || t.dtype == "BF16" || t.dtype == "F64", path_, ": ", t.name,
      ": expected dtype F32, BF16 or F64, found ", t.dtype);
  t.dtype == "F32" ? convert(float()) : t.dtype == "BF16" ? convert(bf16()) : convert(double());
  return out;
}

}  // namespace duet
