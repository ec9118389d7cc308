// Dataset: what a run learns from, as two long sequences of token ids, train and val.
//
// `--data` may name
//   nothing      the project's own sources and READMEs, compiled into the binary; always there, no
//                network needed
//   a text file  byte tokens, vocabulary 256
//   a folder     if it directly holds *.bin files: those token shards, in order of name; else all
//                text files in it and below, in order of path, joined without separators (.git and
//                files with a zero byte among the first 8192 are skipped)
//   a .bin file  llm.c's token shard: 256 little-endian int32 (magic, version, number of tokens),
//                then the tokens: magic 20240520 version 1, uint16, GPT-2's 50257 tokens; magic
//                20240801 version 7, uint32, Llama 3's 128256
//
// Files stay where they are: ids are read, and widened to int32, only for the sequence that is
// asked for. A file must not be changed while a run uses it; one that shrinks is an Error. A window
// of tokens may run from one file into the next.
//
// Validation: in a folder of shards those with `val` in the name (llm.c's *_train_*.bin,
// *_val_*.bin), if there are any; otherwise the last tenth of all tokens, and at least one
// sequence.
//
// Errors: UsageError, one line that names the file, what was found and what is allowed.
// Read next: open_file.h.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/open_file.h"

namespace duet {

// A run of tokens that lies in one file (or in the binary).
struct TokenPart {
  std::string name;                      // the file's path, for messages
  std::shared_ptr<const OpenFile> file;  // null: the embedded text
  int64_t begin = 0;                     // bytes of the file before its first token
  int width = 1;                         // bytes per token: 1, 2 or 4
  int64_t offset = 0;                    // number of tokens before these in the file
  int64_t count = 0;
};

// Several runs seen as one sequence. A cheap value; immutable, so usable from any thread.
class Tokens {
 public:
  Tokens() = default;
  explicit Tokens(std::vector<TokenPart> parts);  // none of them empty

  int64_t size() const { return parts_.empty() ? 0 : starts_.back() + parts_.back().count; }
  const std::vector<TokenPart>& parts() const { return parts_; }
  Tokens slice(int64_t begin, int64_t end) const;  // tokens begin .. end-1, begin < end

  // Ids of tokens begin .. begin+out.size()-1. Throws UsageError that names the file and the place
  // of an id >= vocab_size.
  void copy(int64_t begin, std::span<int32_t> out, int64_t vocab_size) const;
  // Reads the first kLabelled, throwing likewise.
  void check(int64_t vocab_size) const;

 private:
  std::vector<TokenPart> parts_;
  std::vector<int64_t> starts_;  // of each part: number of tokens before it
};

inline constexpr int64_t kBytes = 256;  // the vocabulary of text

struct Dataset {
  std::string source;           // the path, or "embedded"
  Tokens train, val;            // each at least seq_len + 1 tokens
  int64_t vocab_size = kBytes;  // that the format implies; a model's may be larger
  // llm.c's tokenizer file if one lies in the shards' folder, else empty
  std::string tokenizer_path;
  uint64_t hash = 0;  // token_hash of train and val

  int64_t tokens() const { return train.size() + val.size(); }
};

// seq_len >= 1: the length of a training sequence, in tokens. except: a folder that is no data
// though it may lie in `path`, the run's own.
Dataset load_dataset(const std::string& path, int64_t seq_len, const std::string& except = "");

// A line for the start of a run: source, size, split, vocabulary, hash.
std::string describe(const Dataset& dataset);

// 64-bit FNV-1a with one step per token, train then val, so that the same ids give the same hash in
// any file format (for text: FNV-1a of its bytes). Above 2^28 tokens (half a second) each part
// contributes only its share of 2^28, from its start: a label of the data then, no longer a check
// of every token.
inline constexpr int64_t kLabelled = int64_t(1) << 28;
uint64_t token_hash(const Tokens& train, const Tokens& val);

std::string_view embedded_text();

}  // namespace duet
