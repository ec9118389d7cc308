// See safetensors.h. The format, written and read; test/safetensors_test.cpp damages files in every
// way.
#include "pipeline/checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "model/base/json.h"
#include "model/base/text.h"

namespace duet {

static_assert(
    std::endian::native == std::endian::little, "safetensors holds little-endian numbers");

namespace {

constexpr int64_t kMaxHeader = 100'000'000;  // the format's own limit

// A small float, as it lies in a file: IEEE's half precision, and the two of 8 bits ("FP8 Formats
// for Deep Learning", 2022), of which E4M3 has no infinity and one NaN.
template <class Bits, int kExponent, int kFraction> struct Small {
  Bits bits;
  operator float() const {
    constexpr int kLast = (1 << kExponent) - 1, kOne = 1 << kFraction,
                  kShift = kLast / 2 + kFraction;
    const int exponent = bits >> kFraction & kLast, fraction = bits & (kOne - 1);
    const bool finite = kExponent == 4 ? fraction < kOne - 1 : false;
    const float size = exponent == kLast && !finite
        ? (fraction ? NAN : INFINITY)
        : std::ldexp(float(fraction + (exponent ? kOne : 0)), std::max(exponent, 1) - kShift);
    return bits >> (8 * sizeof(Bits) - 1) ? -size : size;
  }
};

// Calls fn with a value of the type of such a dtype's elements; returns whether there is one. Those
// that weights have ...
template <class Fn> bool with_float(const std::string& dtype, const Fn& fn) {
  const auto is = [&](const char* name, auto value) { return dtype == name && (fn(value), true); };
  return is("F32", float()) || is("BF16", bf16()) || is("F16", Small<uint16_t, 5, 10>()) ||
      is("F64", double());
}
// ... and those that `duet diff` reads besides.
template <class Fn> bool with_other(const std::string& dtype, const Fn& fn) {
  const auto is = [&](const char* name, auto value) { return dtype == name && (fn(value), true); };
  return is("F8_E4M3", Small<uint8_t, 4, 3>()) || is("F8_E5M2", Small<uint8_t, 5, 2>()) ||
      is("BOOL", uint8_t()) || is("U8", uint8_t()) || is("I8", int8_t()) || is("U16", uint16_t()) ||
      is("I16", int16_t()) || is("U32", uint32_t()) || is("I32", int32_t()) ||
      is("U64", uint64_t()) || is("I64", int64_t());
}

// Bytes of an element; 0 for a dtype that duet does not read.
int64_t element_size(const std::string& dtype) {
  int64_t size = 0;
  const auto take = [&](auto value) { size = sizeof value; };
  if (!with_float(dtype, take)) with_other(dtype, take);
  return size;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (int64_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return shortened(text + "]");
}

}  // namespace

int64_t TensorSpec::elements() const {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

bool TensorSpec::readable() const { return element_size(dtype) > 0; }

int64_t TensorSpec::bytes() const { return elements() * element_size(dtype); }

std::string TensorSpec::text() const { return shortened(dtype) + " " + shape_text(shape); }

// --- Writer --------------------------------------------------------------------------------------

SafetensorsWriter::SafetensorsWriter(FileWriter& out, std::vector<TensorSpec> tensors)
    : out_(out), tensors_(std::move(tensors)) {
  std::ranges::sort(
      tensors_, {}, [](const TensorSpec& t) { return std::pair(-element_size(t.dtype), t.name); });
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

// The tensor that a header's member describes, within the `data_size` bytes at `data_begin`.
SafetensorsReader::Entry parse_entry(
    const std::string& name, const Json& j, int64_t data_begin, int64_t data_size) {
  SafetensorsReader::Entry t;
  t.name = name;
  t.dtype = j.at("dtype").string();
  int64_t bytes = std::max<int64_t>(1, element_size(t.dtype));
  for (const Json& d : j.at("shape").items()) {
    t.shape.push_back(d.integer(0));
    const bool overflow = __builtin_mul_overflow(bytes, t.shape.back(), &bytes);
    require(!overflow, j.where(), ": the shape overflows 64 bits: ", shape_text(t.shape));
  }
  const auto offsets = j.at("data_offsets").items();
  require(offsets.size() == 2, j.where(), ": expected two data_offsets, found ", offsets.size());
  const int64_t begin = offsets[0].integer(0), end = offsets[1].integer(begin);
  t.size = end - begin;  // of a dtype that is not known, and not read, whatever it is
  require(t.size == bytes || element_size(t.dtype) == 0, j.where(), ": ", t.text(), " needs ",
      bytes, " bytes, data_offsets give ", t.size);
  require(end <= data_size, j.where(), ": the data ends at byte ", end, ", but the file has only ",
      data_size, " bytes of data: truncated?");
  t.begin = data_begin + begin;
  return t;
}

}  // namespace

SafetensorsReader::SafetensorsReader(const std::string& path)
    : path_(path), file_(std::make_shared<const OpenFile>(path)) {
  const int64_t size = file_->size(), most = std::min(size - 8, kMaxHeader);
  require(size >= 8, path_, ": expected a safetensors file, found only ", size, " bytes");
  uint64_t length;
  file_->read(0, 8, &length);
  require(length <= uint64_t(most), path_, ": expected a header of at most ", most,
      " bytes, found ", length, ": truncated, or not a safetensors file");
  const int64_t data = 8 + int64_t(length);
  const Json header = Json::parse(file_->read(8, int64_t(length)), path_);
  for (const auto& [name, member] : header.members())
    if (name != "__metadata__")
      tensors_.emplace(name, parse_entry(name, member, data, size - data));

  std::vector<const Entry*> in_order;
  for (const auto& [name, tensor] : tensors_) in_order.push_back(&tensor);
  std::ranges::sort(in_order, {}, [](const Entry* t) { return std::pair(t->begin, t->size); });
  int64_t end = data;
  for (const Entry* t : in_order) {
    const std::string name = shortened(t->name);
    require(t->begin >= end, path_, ": ", name, ": overlaps the tensor before it by ",
        end - t->begin, " bytes");
    require(t->begin == end, path_, ": ", name, ": a gap of ", t->begin - end, " bytes before it");
    end = t->begin + t->size;
  }
  require(end == size, path_, ": ", size - end, " bytes after the last tensor");
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

template <class T>
std::vector<T> SafetensorsReader::values(const Entry& t, int64_t begin, int64_t count) const {
  constexpr int64_t kPiece = 1 << 16;
  std::vector<T> out;
  const auto convert = [&]<class From>(From) {
    std::vector<From> piece;
    out.reserve(size_t(count));
    for (int64_t at = begin, end = begin + count; at < end; at += kPiece) {
      piece.resize(size_t(std::min(kPiece, end - at)));
      const int64_t size = int64_t(sizeof(From));
      file_->read(t.begin + at * size, int64_t(piece.size()) * size, piece.data());
      out.insert(out.end(), piece.begin(), piece.end());
    }
  };
  const bool whole = std::is_same_v<T, long double>;
  require(with_float(t.dtype, convert) || (whole && with_other(t.dtype, convert)), path_, ": ",
      t.name, ": expected dtype F32, BF16, F16 or F64",
      whole ? ", F8_E4M3, F8_E5M2 or an integer" : "", ", found ", shortened(t.dtype));
  return out;
}
template std::vector<float> SafetensorsReader::values(const Entry&, int64_t, int64_t) const;
template std::vector<long double> SafetensorsReader::values(const Entry&, int64_t, int64_t) const;

std::vector<float> SafetensorsReader::finite(const Entry& t) const {
  std::vector<float> out = floats(t);
  for (size_t i = 0; i < out.size(); ++i)
    require(std::isfinite(out[i]), path_, ": ", t.name, ": found ", out[i], " at element ", i,
        ", allowed: finite numbers");
  return out;
}

}  // namespace duet
