// BatchSource: which tokens a step trains on, a pure function of (seed, step). README.md says why,
// and draws it.
//
// Sampling is without replacement, in epochs. The training tokens are cut into `windows` windows of
// seq_len tokens, from an offset that each epoch draws anew (the tokens before the first and after
// the last window rest for that epoch). Sequence number n = step * global_batch + i belongs to
// epoch n / windows and is that epoch's window permute(n % windows). A batch may run from one epoch
// into the next. Which sequence is whose: sequence_index below.
//
// Immutable, so usable from any thread.
// Read next: comm/README.md.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "data/dataset.h"

namespace duet {

// One microbatch's tokens and the tokens to predict. [tokens] each, on the host
struct Microbatch {
  std::vector<int32_t> inputs, targets;
};

// The place, within a step's global batch of dp * microbatches * micro_batch_size sequences, of
// sequence j of microbatch `microbatch` of data-parallel rank dp_rank. Microbatches are outermost:
// those of one number lie side by side over the ranks. Losses are summed in this order.
constexpr int64_t sequence_index(
    int64_t microbatch, int64_t dp_rank, int64_t dp, int64_t micro_batch_size, int64_t j) {
  return (microbatch * dp + dp_rank) * micro_batch_size + j;
}

// A bijection of 0 .. n-1 chosen by `key`: where it sends `index` (0 <= index < n <= 2^62). A
// Feistel network permutes the next power of four, and is repeated until it lands below n (fewer
// than four times on average).
int64_t permute(int64_t index, int64_t n, uint64_t key);

class BatchSource {
 public:
  // vocab_size: the model's. Throws UsageError where it is too small for text as bytes, or for an
  // id among the first 2^28 of shards, which takes a second; later ones are checked as they are
  // read. The dataset was loaded for this seq_len or a longer one.
  BatchSource(const Dataset& dataset, int64_t seq_len, int64_t global_batch, int64_t vocab_size);

  // Sequence i (0 <= i < global_batch) of a step (>= 0): the input is tokens[0 .. seq_len-1], the
  // target tokens[1 .. seq_len]. Throws UsageError that names the file and place of a token beyond
  // the model's vocabulary.
  // [seq_len + 1]
  void sequence(uint64_t seed, int64_t step, int64_t i, std::span<int32_t> tokens) const;

  // Validation: consecutive windows from the start, the same in every run. 0 <= i <
  // val_sequences().
  void val_sequence(int64_t i, std::span<int32_t> tokens) const;  // [seq_len + 1]
  int64_t val_sequences() const { return (val_.size() - 1) / seq_len_; }

  int64_t windows() const { return windows_; }  // training sequences in an epoch
  // where a sequence starts in the training tokens
  int64_t position(uint64_t seed, int64_t step, int64_t i) const;

 private:
  Tokens train_, val_;
  int64_t seq_len_, global_batch_, vocab_size_;
  int64_t windows_;  // in an epoch, whatever its offset
  int64_t offsets_;  // an epoch's offset is one of 0 .. offsets_-1
};

}  // namespace duet
