// The safetensors file format: 8 bytes of little-endian header length, a JSON header, then the
// tensors' raw bytes without gaps.
//
// The header maps each name to {"dtype", "shape", "data_offsets": [begin, end]} and "__metadata__"
// to strings. Dtypes here: F64, F32, BF16, F16; only to be compared also integers and F8; tensors
// of others may be in a file and are refused where they are read. The writer puts larger dtypes
// first and sorts by name within one, so that every tensor lies at a multiple of its element size;
// it needs the shapes in advance and then takes tensor after tensor, so no copy of the model is
// made. The reader keeps the file open, reads what is asked for and trusts nothing: whatever does
// not fit is a UsageError naming the file and the tensor. Little-endian machines only.
// Read next: checkpoint.h.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/open_file.h"
#include "model/machine/tensor.h"
#include "pipeline/checkpoint/durable.h"

namespace duet {

struct TensorSpec {
  std::string name;
  std::string dtype;           // "F32", ...
  std::vector<int64_t> shape;  // empty: a scalar
  int64_t elements() const;
  int64_t bytes() const;
  bool readable() const;     // of a dtype that duet reads, if only to compare
  std::string text() const;  // "F32 [2, 3]"
};

class SafetensorsWriter {
 public:
  // Writes the header. `out` is at its first byte, outlives the writer, and is closed by its owner.
  SafetensorsWriter(FileWriter& out, std::vector<TensorSpec> tensors);

  // in the order in which write() wants them
  const std::vector<TensorSpec>& tensors() const { return tensors_; }
  void write(const std::string& name, const void* data, size_t bytes);
  void finish();  // checks that every tensor was written

 private:
  FileWriter& out_;
  std::vector<TensorSpec> tensors_;
  size_t written_ = 0;  // tensors so far
};

class SafetensorsReader {
 public:
  struct Entry : TensorSpec {
    int64_t begin = 0, size = 0;  // bytes: where it lies in the file, and how many
  };
  explicit SafetensorsReader(const std::string& path);

  const std::map<std::string, Entry>& tensors() const { return tensors_; }
  const Entry* find(const std::string& name) const;
  // which must exist with this shape
  const Entry& at(const std::string& name, const std::vector<int64_t>& shape) const;
  // Its bytes `begin` .. begin+count-1.
  std::string bytes(const Entry& tensor, int64_t begin, int64_t count) const {
    return file_->read(tensor.begin + begin, count);
  }
  // Its elements begin .. begin+count-1, of an F32, BF16, F16 or F64 tensor as T float or long
  // double, which holds those of integers and F8 as well.
  template <class T> std::vector<T> values(const Entry& tensor, int64_t begin, int64_t count) const;
  std::vector<float> floats(const Entry& t) const { return values<float>(t, 0, t.elements()); }
  std::vector<float> finite(const Entry& tensor) const;  // where NaN and infinity are refused

 private:
  std::string path_;
  std::shared_ptr<const OpenFile> file_;
  std::map<std::string, Entry> tensors_;
};

}  // namespace duet
