// See tokenizer.h. The two tables and what is done with them.
#include "data/tokenizer.h"

#include <algorithm>
#include <cstring>

#include "data/open_file.h"
#include "model/base/check.h"

namespace duet {

constexpr size_t kHeader = 256 * sizeof(int32_t);     // bytes
constexpr const char* kReplacement = "\xEF\xBF\xBD";  // U+FFFD in UTF-8

Tokenizer::Tokenizer() {
  for (int byte = 0; byte < 256; byte++) add(std::string(1, char(byte)));
}

Tokenizer::Tokenizer(const std::string& path) {
  const OpenFile opened(path);
  const std::string file = opened.read(0, opened.size());
  require(file.size() >= kHeader, path, ": truncated: a tokenizer file starts with ", kHeader,
      " bytes, found ", file.size());
  int32_t header[3];
  memcpy(header, file.data(), sizeof header);
  const auto [magic, version, vocab] = header;
  require(magic == kTokenizerMagic, path, ": not llm.c's tokenizer file: expected magic ",
      kTokenizerMagic, ", found ", magic);
  require(version == 1 || version == 2, path, ": unknown tokenizer version ", version,
      ", expected 1 or 2");
  require(vocab > 0, path, ": expected tokens, found a vocabulary of ", vocab);
  size_t at = kHeader;
  for (int32_t id = 0; id < vocab; id++) {
    const size_t length = at < file.size() ? uint8_t(file[at]) : 1;
    require(length > 0, path, ": token ", id, " has length 0, expected 1 to 255");
    require(at + 1 + length <= file.size(), path, ": truncated in token ", id, " of ", vocab);
    add(file.substr(at + 1, length));
    at += 1 + length;
  }
}

void Tokenizer::add(const std::string& token) {
  ids_.try_emplace(token, int32_t(tokens_.size()));
  longest_ = std::max(longest_, token.size());
  tokens_.push_back(token);
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids)
    text += id >= 0 && id < vocab_size() ? tokens_[size_t(id)] : kReplacement;
  return text;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  while (!text.empty()) {
    size_t length = std::min(longest_, text.size());
    auto found = ids_.find(text.substr(0, length));
    while (found == ids_.end() && length > 1) found = ids_.find(text.substr(0, --length));
    require(found != ids_.end(), "--prompt: the tokenizer has no token for byte ",
        int(uint8_t(text[0])));
    ids.push_back(found->second);
    text.remove_prefix(length);
  }
  return ids;
}

}  // namespace duet
