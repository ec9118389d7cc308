// See dataset.h. Tokens: slicing, copying and hashing a sequence of ids that lies in several
// places.
#include <algorithm>
#include <utility>

#include "data/dataset.h"
#include "model/base/check.h"
#include "model/base/hash.h"

namespace duet {
namespace {

// Calls f(ids, n, at) with a part's tokens first .. first+count-1, a piece after the other: n ids
// in the type in which they are stored, from token `at` of the part.
template <class F> void with_ids(const TokenPart& part, int64_t first, int64_t count, const F& f) {
  constexpr int64_t kPiece = 1 << 18;
  std::vector<uint32_t> memory;
  for (int64_t at = first, end = first + count; at < end; at += kPiece) {
    const int64_t n = std::min(kPiece, end - at), begin = (part.offset + at) * part.width;
    const void* ids = embedded_text().data() + begin;
    if (part.file) {
      memory.resize(size_t(n * part.width + 3) / 4);
      part.file->read(part.begin + begin, n * part.width, memory.data());
      ids = memory.data();
    }
    switch (part.width) {
      case 1: f(static_cast<const uint8_t*>(ids), n, at); break;
      case 2: f(static_cast<const uint16_t*>(ids), n, at); break;
      default: f(static_cast<const uint32_t*>(ids), n, at);
    }
  }
}

}  // namespace

Tokens::Tokens(std::vector<TokenPart> parts) : parts_(std::move(parts)) {
  int64_t start = 0;
  for (const TokenPart& part : parts_) {
    DUET_CHECK(part.count > 0, part.name, ": expected tokens, found none");
    starts_.push_back(start);
    start += part.count;
  }
}

Tokens Tokens::slice(int64_t begin, int64_t end) const {
  DUET_CHECK(0 <= begin && begin < end && end <= size(), "expected tokens of ", size(), ", found ",
      begin, " .. ", end);
  std::vector<TokenPart> kept;
  for (size_t p = 0; p < parts_.size(); p++) {
    const int64_t from = std::max(begin - starts_[p], int64_t(0)),
                  to = std::min(end - starts_[p], parts_[p].count);
    if (from >= to) continue;
    TokenPart part = parts_[p];
    part.offset += from;
    part.count = to - from;
    kept.push_back(std::move(part));
  }
  return Tokens(std::move(kept));
}

void Tokens::copy(int64_t begin, std::span<int32_t> out, int64_t vocab_size) const {
  const int64_t count = int64_t(out.size());
  DUET_CHECK(0 <= begin && begin + count <= size(), "expected tokens of ", size(), ", found ",
      begin, " and ", count, " more");
  auto p = size_t(std::upper_bound(starts_.begin(), starts_.end(), begin) - starts_.begin()) - 1;
  for (int64_t done = 0; done < count; p++) {
    const TokenPart& part = parts_[p];
    const int64_t from = begin + done - starts_[p], n = std::min(part.count - from, count - done);
    with_ids(part, from, n, [&](const auto* ids, int64_t piece, int64_t at) {
      for (int64_t i = 0; i < piece; i++) {
        const int64_t id = ids[i];
        require(id < vocab_size, part.name, ": token ", id, " at offset ", part.offset + at + i,
            " is beyond the model's vocabulary, allowed: 0 to ", vocab_size - 1);
        out[size_t(done + at - from + i)] = int32_t(id);
      }
    });
    done += n;
  }
}

void Tokens::check(int64_t vocab_size) const {
  std::vector<int32_t> some(1 << 18);
  for (int64_t at = 0, end = std::min(size(), kLabelled); at < end; at += int64_t(some.size()))
    copy(at, std::span(some).first(size_t(std::min(int64_t(some.size()), end - at))), vocab_size);
}

uint64_t token_hash(const Tokens& train, const Tokens& val) {
  const int64_t total = train.size() + val.size();
  const int64_t share =
      total <= kLabelled ? total : kLabelled / int64_t(train.parts().size() + val.parts().size());
  uint64_t hash = kFnvStart;
  for (const Tokens* t : {&train, &val})
    for (const TokenPart& part : t->parts())
      with_ids(part, 0, std::min(part.count, share), [&](const auto* ids, int64_t n, int64_t) {
        for (int64_t i = 0; i < n; i++) hash = fnv1a(hash, ids[i]);
      });
  return hash;
}

}  // namespace duet
