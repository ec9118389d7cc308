// See dataset.h. Tokens: slicing, copying and hashing a sequence of ids that lies in several
// places.
#include <algorithm>
#include <utility>

#include "data/dataset.h"
#include "model/base/check.h"
#include "model/base/hash.h"

namespace duet {
namespace {

// Calls f with a part's ids as a pointer to the type in which they are stored.
template <class F> auto with_ids(const TokenPart& part, F f) {
  switch (part.width) {
    case 1: return f(static_cast<const uint8_t*>(part.data));
    case 2: return f(static_cast<const uint16_t*>(part.data));
    default: return f(static_cast<const uint32_t*>(part.data));
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
    part.data = static_cast<const char*>(part.data) + from * part.width;
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
    with_ids(part, [&](const auto* ids) {
      for (int64_t i = 0; i < n; i++) {
        const int64_t id = ids[from + i];
        require(id < vocab_size, part.name, ": token ", id, " at offset ", part.offset + from + i,
            " is beyond the model's vocabulary, allowed: 0 to ", vocab_size - 1);
        out[size_t(done + i)] = int32_t(id);
      }
    });
    done += n;
  }
}

uint64_t token_hash(const Tokens& train, const Tokens& val) {
  constexpr int64_t budget = int64_t(1) << 28;
  const int64_t total = train.size() + val.size();
  const int64_t share =
      total <= budget ? total : budget / int64_t(train.parts().size() + val.parts().size());
  uint64_t hash = kFnvStart;
  for (const Tokens* t : {&train, &val})
    for (const TokenPart& part : t->parts())
      hash = with_ids(part, [h = hash, n = std::min(part.count, share)](const auto* ids) mutable {
        for (int64_t i = 0; i < n; i++) h = fnv1a(h, ids[i]);
        return h;
      });
  return hash;
}

}  // namespace duet
