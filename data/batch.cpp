// See batch.h. The permutation and the arithmetic of epochs.
#include "data/batch.h"

#include <algorithm>
#include <bit>

#include "model/base/check.h"
#include "model/base/hash.h"

namespace duet {

int64_t permute(int64_t index, int64_t n, uint64_t key) {
  DUET_CHECK(0 <= index && index < n && n <= int64_t(1) << 62, "expected an index below ", n,
      ", found ", index);
  const int half = (std::bit_width(uint64_t(n - 1)) + 1) / 2;  // bits of either side
  const uint64_t mask = (uint64_t(1) << half) - 1;
  auto x = uint64_t(index);
  do {
    uint64_t left = x >> half, right = x & mask;
    for (uint64_t round = 0; round < 4; round++) {
      const uint64_t next = left ^ (splitmix(splitmix(key + round) ^ right) & mask);
      left = right;
      right = next;
    }
    x = left << half | right;
  } while (x >= uint64_t(n));
  return int64_t(x);
}

BatchSource::BatchSource(
    const Dataset& dataset, int64_t seq_len, int64_t global_batch, int64_t vocab_size)
    : train_(dataset.train), val_(dataset.val), seq_len_(seq_len), global_batch_(global_batch),
      vocab_size_(vocab_size) {
  DUET_CHECK(seq_len >= 1 && global_batch >= 1, "expected positive sizes, found seq_len ", seq_len,
      ", batch ", global_batch);
  DUET_CHECK(
      std::min(train_.size(), val_.size()) > seq_len, "expected data loaded for seq_len ", seq_len);
  require(dataset.vocab_size > kBytes || vocab_size >= kBytes, "the model's vocab_size: found ",
      vocab_size, ", expected at least ", kBytes, ": the text of ", dataset.source,
      " is read as bytes");
  if (dataset.vocab_size > kBytes)
    for (const Tokens* tokens : {&train_, &val_}) tokens->check(vocab_size);
  // One window fewer than fit (if that leaves one), so that every epoch has room to move them, by
  // up to all that remains.
  windows_ = std::max(train_.size() / seq_len - 1, int64_t(1));
  offsets_ = train_.size() - windows_ * seq_len;
}

int64_t BatchSource::position(uint64_t seed, int64_t step, int64_t i) const {
  DUET_CHECK(step >= 0 && 0 <= i && i < global_batch_, "expected a sequence below ", global_batch_,
      ", found ", i);
  const int64_t n = step * global_batch_ + i, epoch = n / windows_;
  const uint64_t key = splitmix(splitmix(seed) ^ uint64_t(epoch));
  const auto offset = int64_t(splitmix(key) % uint64_t(offsets_));
  return offset + permute(n % windows_, windows_, key) * seq_len_;
}

void BatchSource::sequence(
    uint64_t seed, int64_t step, int64_t i, std::span<int32_t> tokens) const {
  DUET_CHECK(int64_t(tokens.size()) == seq_len_ + 1, "expected room for ", seq_len_ + 1,
      " tokens, found ", tokens.size());
  train_.copy(position(seed, step, i), tokens, vocab_size_);
}

void BatchSource::val_sequence(int64_t i, std::span<int32_t> tokens) const {
  DUET_CHECK(int64_t(tokens.size()) == seq_len_ + 1, "expected room for ", seq_len_ + 1,
      " tokens, found ", tokens.size());
  DUET_CHECK(0 <= i && i < val_sequences(), "expected a validation sequence below ",
      val_sequences(), ", found ", i);
  val_.copy(i * seq_len_, tokens, vocab_size_);
}

}  // namespace duet
