// The safetensors file format: 8 bytes of little-endian header length, a JSON header, then the tensors' raw bytes without gaps.
//
// The header maps each name to {"dtype", "shape", "data_offsets": [begin, end]} and "__metadata__" to strings. Dtypes here:
// F64, I64, F32, I32, BF16. The writer puts larger dtypes first and sorts by name within one, so that every tensor lies at a
// multiple of its element size; it needs the shapes in advance and then takes the data piece by piece, so no copy of the model
// is made. The reader maps the file and trusts nothing: whatever does not fit is a UsageError naming the file and the tensor.
// Little-endian machines only. Read next: durable.h, where the bytes go.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "model/check.h"
#include "model/tensor.h"
#include "pipeline/durable.h"

namespace duet {

struct TensorSpec {
  std::string name;
  std::string dtype;           // "F32", ...
  std::vector<int64_t> shape;  // empty: a scalar
  int64_t elements() const;
  int64_t bytes() const;
  std::string text() const;  // "F32 [2, 3]"
};

// safetensors' name of a dtype: "F32", "F64", "BF16", "I32".
std::string safetensors_dtype(Dtype dtype);

class SafetensorsWriter {
 public:
  using Metadata = std::vector<std::pair<std::string, std::string>>;
  // Writes the header. `out` is at its first byte, outlives the writer, and is closed by its owner.
  SafetensorsWriter(FileWriter& out, std::vector<TensorSpec> tensors, const Metadata& metadata = {});

  const std::vector<TensorSpec>& tensors() const { return tensors_; }  // in the order in which write() wants them
  // The next bytes of tensor `name`: all of it, or a piece after which the rest follows.
  void write(const std::string& name, const void* data, size_t bytes);
  void finish();  // checks that every tensor was written

 private:
  FileWriter& out_;
  std::vector<TensorSpec> tensors_;
  size_t current_ = 0;   // index of the tensor being written
  int64_t written_ = 0;  // bytes of it so far
};

class SafetensorsReader {
 public:
  struct Entry : TensorSpec {
    const char* data = nullptr;  // bytes() of them; valid as long as the reader; aligned only as the file is
  };
  explicit SafetensorsReader(const std::string& path);
  ~SafetensorsReader();
  SafetensorsReader(const SafetensorsReader&) = delete;

  const std::string& path() const { return path_; }
  const std::map<std::string, Entry>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  const Entry* find(const std::string& name) const;
  // The tensor, which must exist with this shape, and this dtype unless that is empty.
  const Entry& at(const std::string& name, const std::vector<int64_t>& shape, const std::string& dtype = "") const;
  // Elements begin .. begin+count-1 of an F32, BF16 or F64 tensor as floats.
  void read_floats(const Entry& tensor, int64_t begin, int64_t count, float* out) const;

 private:
  void map_file();
  void parse_header();

  std::string path_;
  const char* map_ = nullptr;
  int64_t size_ = 0;
  std::map<std::string, Entry> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace duet
