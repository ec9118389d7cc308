// Tokenizer: token ids to text and back, for sampling and for prompts. Training data arrives as ids
// (dataset.h).
//
// A tokenizer here is one table: the bytes of each token. Two tables exist. The byte tokenizer has
// 256 tokens, id = byte, and is what text is trained with. The other is read from the tokenizer
// file that llm.c writes for GPT-2 (gpt2_tokenizer.bin):
//
//   256 little-endian int32: magic 20240328, version 1 or 2, vocabulary size; the rest is not used
//     here
//   then for each token one byte with its length (1..255) and its bytes
//
// What it is not: a byte-pair encoder. The file holds no merges, so encode takes the longest token
// that matches at each place. The result decodes to the same text, but is often not the sequence
// GPT-2's own encoder would give: fit for a prompt, not for making training data.
//
// Immutable after construction, so usable from any thread.
// Read next: dataset.h.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace duet {

inline constexpr int32_t kTokenizerMagic = 20240328;

class Tokenizer {
 public:
  // The byte tokenizer.
  Tokenizer();
  // From llm.c's file. Throws UsageError where the file is missing, is not such a file, is of
  // another version or truncated.
  explicit Tokenizer(const std::string& path);

  int64_t vocab_size() const { return int64_t(tokens_.size()); }

  // Ids outside the vocabulary (a model's may be larger, padded) become U+FFFD.
  std::string decode(std::span<const int32_t> ids) const;

  // Longest match, see above; of equal tokens the lowest id. Throws UsageError where no token
  // matches, which neither the byte table nor GPT-2's can cause: both hold every single byte.
  std::vector<int32_t> encode(std::string_view text) const;

 private:
  void add(const std::string& token);

  std::vector<std::string> tokens_;
  std::map<std::string, int32_t, std::less<>> ids_;
  size_t longest_ = 0;  // bytes of the longest token
};

}  // namespace duet
