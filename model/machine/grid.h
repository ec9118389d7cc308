// The grid: how a sum over the batch is made exact, so that its order does not matter.
//
// What one piece of the batch (at most 256 tokens of one segment: context.h) adds to a gradient is
// summed in the compute's accumulation type from zero, in the order of its tokens. That number p is
// rounded once to a multiple of 2^-q and added in fp64. While every partial sum stays below
// kGridLimit = 2^(53-q), no such addition rounds: any order and any grouping, over microbatches and
// over ranks, gives the same bits.
//
//   q = 48   steps of 3.6e-15, sums below 32
//
// Rounding and adding are one operation. An accumulator biased by kGridBias = 1.5 * 2^(52-q) lies
// where the steps of a double are just 2^-q, so adding p to it rounds p to the grid:
//
//   acc = kGridBias;   acc = grid_add(acc, p) for each p;   sum = acc - kGridBias
//
// Halfway between two multiples, round-to-even would look at acc. The factor 1 + 2^-52 moves every
// fp32 p off the halfway points, away from zero. The sum in a biased accumulator must stay below
// kGridCallLimit = 2^(51-q), 8; it lives no longer than one call: one microbatch's part.
//
// The compiler may not reassociate this: it stands in files that are compiled without the row
// flags.
// Read next: device.h.
#pragma once
#include <vector>

#include "model/machine/tensor.h"

namespace duet {

inline constexpr int kGridBits = 48;                                          // q
inline constexpr double kGridLimit = double(int64_t(1) << (53 - kGridBits));  // 32
inline constexpr double kGridCallLimit = kGridLimit / 4;
inline constexpr double kGridBias = 1.5 * double(int64_t(1) << (52 - kGridBits));  // 24

inline constexpr double kGridFactor = 1 + 0x1p-52;

// Not fused, the product of an fp32 p is off the halfway point, too.
HD double grid_add(double acc, double p) { return madd(p, kGridFactor, acc); }

// p rounded to the grid, to be added to an fp64 sum.
HD double on_grid(double p) { return grid_add(kGridBias, p) - kGridBias; }

// The pieces of a microbatch whose sequences lie one behind the other: segments of
// `segment_tokens` consecutive tokens of a sequence, cut every kMaxPiece tokens. A property of the
// numerics: the same sequence has the same pieces wherever it is computed.
inline constexpr int64_t kMaxPiece = 256;
struct Pieces {
  int64_t sequences = 1, seq_len = 1, segment_tokens = 128;

  HD int64_t of_segment() const { return (segment_tokens + kMaxPiece - 1) / kMaxPiece; }
  HD int64_t segments_of_sequence() const {
    return (seq_len + segment_tokens - 1) / segment_tokens;
  }
  HD int64_t of_sequence() const { return segments_of_sequence() * of_segment(); }
  HD int64_t count() const { return sequences * of_sequence(); }
  // Where piece i begins; count(): the end of all. Pieces at the end of a sequence may be empty.
  HD int64_t begin(int64_t i) const {
    const int64_t in_sequence = i % of_sequence(), segment = in_sequence / of_segment();
    const int64_t segment_begin = segment * segment_tokens,
                  segment_end = least(segment_begin + segment_tokens, seq_len);
    return i / of_sequence() * seq_len +
        least(segment_begin + in_sequence % of_segment() * kMaxPiece, segment_end);
  }
  HD static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
  std::vector<int64_t> bounds() const;  // of all that are not empty, and the end
  // [tokens] the segment of each token of the microbatch, counted over its sequences.
  std::vector<int32_t> segments() const;
};

}  // namespace duet
