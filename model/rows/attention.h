// Row operations of Multi-head Latent Attention (DeepSeek-V2, section 2.1): rotary positions, keys
// from their two parts, and the causal softmax with its gradient.
//
// RoPE (Su et al. 2021) turns interleaved pairs (x[2j], x[2j+1]) by position * theta^(-2j/rope).
// Turning back is turning by the negative angle, which is also the gradient.
// Read next: fused_attention.h.
#pragma once
#include "model/machine/group.h"
#include "model/rows/math.h"

namespace duet {

// Sizes of a head, and the table of angles; shared by the operations below.
struct HeadShape {
  // per head: dims without and with rotation in queries and keys, dims of values
  int heads, nope, rope, v;
  int64_t seq_len;  // row t of a [tokens, ...] tensor is position t % seq_len
  Tensor cos, sin;  // [seq_len, rope / 2], accumulation type
};

// Turns x[0..rope) by the angles of position t; sign -1 turns back.
template <class T, class Group, class From, class To>
HD void rotate(Group g, const HeadShape& s, int64_t t, int sign, From from, To to) {
  using A = Acc<T>;
  const A* cos = s.cos.row<A>(t % s.seq_len);
  const A* sin = s.sin.row<A>(t % s.seq_len);
  for (int j = g.lane(); j < s.rope / 2; j += Group::size) {
    const A a = from(2 * j), b = from(2 * j + 1), c = cos[j], d = A(sign) * sin[j];
    to(2 * j, a * c - b * d);
    to(2 * j + 1, b * c + a * d);
  }
}

// Turns the rotary part of every head of the queries (or of their gradient, sign -1), in place.
struct RopeQuery {
  struct Args {
    Tensor x;  // [tokens, heads * (nope + rope)] in and out
    HeadShape shape;
    int sign;
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const HeadShape& s = a.shape;
    for (int h = 0; h < s.heads; ++h) {
      T* q = a.x.row<T>(r) + h * (s.nope + s.rope) + s.nope;
      rotate<T>(
          g, s, r, a.sign, [=](int j) { return Acc<T>(q[j]); },
          [=](int j, Acc<T> value) { q[j] = T(value); });
    }
  }
};

// Every head's key = (its own part, the shared rotary part turned).
struct KeyF {
  struct Args {
    // [tokens, heads * (nope + v)] the expanded latent: per head key part, then value
    Tensor x;
    Tensor rotary;  // [tokens, rope] before turning
    Tensor k;       // [tokens, heads * (nope + rope)] out
    HeadShape shape;
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const HeadShape& s = a.shape;
    const T* __restrict rotary = a.rotary.row<T>(r);
    for (int h = 0; h < s.heads; ++h) {
      const T* __restrict x = a.x.row<T>(r) + h * (s.nope + s.v);
      T* __restrict k = a.k.row<T>(r) + h * (s.nope + s.rope);
      for (int i = g.lane(); i < s.nope; i += Group::size) k[i] = x[i];
      rotate<T>(
          g, s, r, 1, [=](int j) { return Acc<T>(rotary[j]); },
          [=](int j, Acc<T> value) { k[s.nope + j] = T(value); });
    }
  }
};

// The gradient of KeyF: key parts go back to their heads, rotary parts are summed over heads
// (ascending) and turned back.
struct KeyB {
  struct Args {
    Tensor x;        // [tokens, heads * (nope + rope)] gradient of k
    Tensor dkv;      // [tokens, heads * (nope + v)] out, the key parts only
    Tensor drotary;  // [tokens, rope] out
    HeadShape shape;
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const HeadShape& s = a.shape;
    const T* __restrict dk = a.x.row<T>(r);
    T* __restrict drotary = a.drotary.row<T>(r);
    for (int h = 0; h < s.heads; ++h) {
      T* __restrict dkv = a.dkv.row<T>(r) + h * (s.nope + s.v);
      for (int i = g.lane(); i < s.nope; i += Group::size) dkv[i] = dk[h * (s.nope + s.rope) + i];
    }
    const auto sum_heads = [=](int j) {
      Acc<T> sum = 0;
      for (int h = 0; h < s.heads; ++h) sum += Acc<T>(dk[h * (s.nope + s.rope) + s.nope + j]);
      return sum;
    };
    rotate<T>(g, s, r, -1, sum_heads, [=](int j, Acc<T> value) { drotary[j] = T(value); });
  }
};

// P = softmax of the scores of keys 0 .. query, in place; zeros for the keys after the query.
struct CausalSoftmaxF {
  struct Args {
    Tensor x;  // [matrices * seq_len, seq_len] in and out
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    using A = Acc<T>;
    T* __restrict x = a.x.row<T>(r);
    const int keys = int(a.x.cols), n = int(r % keys) + 1;
    A top = A(x[0]);
    for (int i = g.lane(); i < n; i += Group::size) top = A(x[i]) > top ? A(x[i]) : top;
    top = g.max(top);
    A sum = 0;
    for (int i = g.lane(); i < n; i += Group::size) sum += exp_(A(x[i]) - top);
    const A scale = A(1) / g.sum(sum);
    for (int i = g.lane(); i < n; i += Group::size) x[i] = T(exp_(A(x[i]) - top) * scale);
    for (int i = n + g.lane(); i < keys; i += Group::size) x[i] = T(A(0));
  }
};

// dS = P * (dP - sum(P * dP)), in place of dP; zeros for the keys after the query.
struct CausalSoftmaxB {
  struct Args {
    Tensor x;   // [matrices * seq_len, seq_len] P
    Tensor dp;  // the same shape; in dP, out dS
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    using A = Acc<T>;
    const T* __restrict p = a.x.row<T>(r);
    T* __restrict dp = a.dp.row<T>(r);
    const int keys = int(a.x.cols), n = int(r % keys) + 1;
    A dot = 0;
    for (int i = g.lane(); i < n; i += Group::size) dot += A(p[i]) * A(dp[i]);
    dot = g.sum(dot);
    for (int i = g.lane(); i < n; i += Group::size) dp[i] = T(A(p[i]) * (A(dp[i]) - dot));
    for (int i = n + g.lane(); i < keys; i += Group::size) dp[i] = T(A(0));
  }
};

}  // namespace duet
