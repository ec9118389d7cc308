// Input: the characters of a trace file, in chunks. It unpacks gzip (known by its magic bytes, any
// number of members) and makes the text one that a strict JSON lexer accepts wherever nothing is
// lost by it: inside strings, control characters become spaces and bytes that are not UTF-8 become
// question marks; what is beyond 64 KiB of one string is dropped; white space shrinks to one space.
// Everything else is left as it is.
// Read next: unpack.h.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "pipeline/insight/trace/unpack.h"

namespace duet {

class Input {
 public:
  Input(const std::string& file, ReadBytes read) : unpack_(file, std::move(read)) {}

  // The next characters are [at, end). False: the text is over.
  bool more();
  const char *at = nullptr, *end = nullptr;

  // Of the last character taken (at[-1]) in the unpacked text, from 0; at the end, the text's size.
  int64_t offset() const;
  int64_t size() const { return start_ + int64_t(raw_.size()); }  // of the text so far
  std::string_view head();                                        // the first bytes of the text
  const std::vector<std::string>& warnings() const { return unpack_.warnings; }

 private:
  struct State {
    bool in_string = false, space = false;
    size_t length = 0;  // of the string
  };
  struct Cleaned {
    size_t taken, written;
  };
  // Writes until there are `limit` characters. What may be half a character is left for the next
  // chunk, unless this is the last one.
  static Cleaned clean(State& state, std::string_view raw, bool last, char* out, size_t limit);
  void fill();

  Unpack unpack_;
  std::string raw_, clean_;  // the current chunk
  size_t taken_ = 0;         // of raw_
  int64_t start_ = 0;        // of raw_ in the text
  State state_, before_;     // now, and when the chunk began
  bool over_ = false, filled_ = false;
};

// What nlohmann's parser reads an Input through: a pair of iterators, the second one empty.
class InputIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;
  explicit InputIterator(Input* input = nullptr) : input_(input) {}
  const char& operator*() const { return *input_->at; }
  InputIterator& operator++() { return ++input_->at, *this; }
  bool operator==(const InputIterator&) const {  // only ever compared with the end
    return input_->at == input_->end && !input_->more();
  }

 private:
  Input* input_;
};

}  // namespace duet
