// Causal attention in one kernel, forward and backward: on CUDA, what the CPU does by products and
// the softmax of attention.h. FlashAttention (Dao et al. 2022, 2023): the scores of a tile of
// queries and a tile of keys are made, used and forgotten, so that nothing [query, key] is in
// memory.
//
//   S = scale Q K^T, of keys 0 .. query    P = softmax(S)    mix = P V
//
// F: a block owns a tile of queries of one head of one sequence, and visits the keys' tiles up to
// the diagonal. Softmax goes along: with each tile a row's maximum may rise, and what was summed
// before shrinks by as much (online softmax, Milakov and Gimelshein 2018). Of S only a number a row
// is left for I: lse, the logarithm of the sum of the powers, which makes P = exp(S - lse) again.
// Both are to base 2, which a GPU has in hardware.
//
//   delta = rowsum(dmix mix), which is rowsum(dP P)      dP = dmix V^T     dS = P (dP - delta)
//   dQ = scale dS K                     a block for a tile of queries, visiting keys
//   dV = P^T dmix, dK = scale dS^T Q    a block for a tile of keys, visiting queries
//
// I: two kernels, which are one piece of code, for the second is the first with queries and keys in
// each other's place. Each makes P again: 7 products where an order of addition left to chance
// would do with 5.
//
// Exactness. Tiles are counted from a sequence's start and visited in ascending order, no sum is
// divided, nothing is added by atomics. So a row's bits depend on its own sequence and head alone,
// and are the same in every run. In bf16, products are the tensor cores', P and dS are rounded to
// bf16 before them, sums and softmax are fp32; in fp32 and fp64 everything is in that type. fp32
// heads of over 32 want 96 KB of shared memory, which Turing lacks.
//
// Any size of heads up to these; 16-byte loads where a head's columns begin at 16 bytes.
// Read next: panel.cuh.
#pragma once
#include "model/machine/launch.h"
#include "model/rows/attention.h"

namespace duet {

inline constexpr int kMostQueryDims = 192, kMostValueDims = 128;  // nope + rope, v

// Launches of both have a row for each token, of whole sequences.
struct FusedAttentionF {
  struct Args {
    Tensor x, k;   // [tokens, heads * (nope + rope)] queries and keys, turned
    Tensor kv;     // [tokens, heads * (nope + v)] of which the values count
    Tensor mix;    // [tokens, heads * v] out
    Tensor stats;  // [tokens, heads * 2] out: lse, and room for delta; accumulation type
    HeadShape shape;
  };
};

struct FusedAttentionI {
  struct Args {
    Tensor x, k, kv, mix, stats;  // F's
    Tensor dmix;                  // [tokens, heads * v]
    Tensor dq, dk, dkv;           // out, as x, k, kv; of dkv the values
    HeadShape shape;
  };
};

}  // namespace duet

#define DUET_FUSED_ATTENTION(X) X(FusedAttentionF) X(FusedAttentionI)
