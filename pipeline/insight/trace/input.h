// Input: the characters of a trace file, in blocks. It unpacks gzip (known by its magic bytes, any
// number of members) and makes the text one that a strict JSON lexer accepts wherever nothing is
// lost by it: inside strings, control characters become spaces, bytes that are not UTF-8 and the
// backslashes of halved surrogate pairs question marks; what is beyond 64 KiB of one string is
// dropped; white space goes where a bracket, comma, colon or quote ends what is before it, and
// shrinks to one space elsewhere. Everything else is left as it is. All that happens on a thread of
// its own, a block or two ahead of the parser, whose time is what reading takes.
// Read next: reader.h.
#pragma once
#include <zlib.h>

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace duet {

// Writes up to `most` bytes and returns how many; 0: the end.
using ReadBytes = std::function<size_t(char* to, size_t most)>;
ReadBytes read_trace_file(const std::string& path);  // throws UsageError if it cannot be opened
ReadBytes read_memory(std::string_view bytes);       // which outlive the reading

// Bytes as they are, or out of gzip. zlib does the work; unpack.cpp has its loop and what is said
// of a damaged file.
class Unpack {
 public:
  Unpack(std::string file, ReadBytes read);
  ~Unpack();
  Unpack(const Unpack&) = delete;

  // Appends the next bytes, or none so far; false at the end. Throws UsageError where gzip is cut
  // off or damaged.
  bool append(std::string& out);
  std::vector<std::string> warnings;

 private:
  bool refill();
  void inflate_some(std::string& out);
  std::string file_;
  ReadBytes read_;
  std::string packed_;
  size_t at_ = 0;  // in packed_
  int64_t bytes_ = 0, unpacked_ = 0;
  enum class State { start, plain, inside, between, over } state_ = State::start;
  z_stream stream_{};
};

class Input {
 public:
  Input(const std::string& file, ReadBytes read);
  Input(const Input&) = delete;

  // The next characters are [at, end). False: the text is over. Throws what reading threw, once all
  // that was read before is used up.
  bool more();
  const char *at = nullptr, *end = nullptr;

  // Of the last character taken (at[-1]) in the unpacked text, from 0; at the end, the text's size.
  int64_t offset() const;
  int64_t size() const { return now_.start + int64_t(now_.raw.size()); }  // of the text so far
  std::string_view head() const;  // the first bytes, before more() was called
  const std::vector<std::string>& warnings() const { return now_.warnings; }

 private:
  struct State {
    bool in_string = false, space = true;  // space: one more would tell nothing
    size_t length = 0;                     // of the string
  };
  struct Block {
    std::string raw, clean;  // some of the text, and what is to be parsed of it
    int64_t start = 0;       // of raw in the text
    State before;            // when it began
    bool last = false;
    std::exception_ptr error;  // that reading ended with
    std::vector<std::string> warnings;
  };
  // Writes until there are `limit` characters; returns how many of `raw` that took. What may be
  // half a character is left for the next block, unless this is the last one.
  static size_t clean(State& state, std::string_view raw, bool last, std::string& to, size_t limit);
  void fill(Block& block);
  void read_ahead(const std::stop_token& stop);

  Block now_;  // the parser's
  bool over_ = false;

  // The reading thread's, if the text has more than one block.
  Unpack unpack_;
  std::string rest_;   // of the last block
  int64_t start_ = 0;  // of rest_ in the text
  State state_;

  std::mutex mutex_;
  std::condition_variable_any changed_;
  Block next_;  // handed over: the reader's while not full_, else the parser's
  bool full_ = false;
  std::jthread reader_;  // last, for it uses the others until it is stopped
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
