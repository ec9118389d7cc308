// Row operations of Multi-head Latent Attention (DeepSeek-V2, section 2.1): rotary positions, keys
// from their two parts, and the causal softmax with its gradient.
//
// RoPE (Su et al. 2021) turns interleaved pairs (x[2j], x[2j+1]) by position * theta^(-2j/rope).
// Turning back is turning by the negative angle, which is also the gradient.
// Read next: fused_attention.h.
#pragma once
#include "model/machine/group.h"
#include "model/rows/math.h"
#include "model/rows/tile.h"

namespace duet {

// Sizes of a head, and the table of angles; shared by the operations below.
struct HeadShape {
  // per head: dims without and with rotation in queries and keys, dims of values
  int heads, nope, rope, v;
  int64_t seq_len;  // row t of a [tokens, ...] tensor is position t % seq_len
  Tensor cos, sin;  // [seq_len, rope / 2], accumulation type

  template <class A> HD const A* cos_of(int64_t t) const { return cos.row<A>(t % seq_len); }
  template <class A> HD const A* sin_of(int64_t t) const { return sin.row<A>(t % seq_len); }
  // Bytes of a head's queries or keys, and of the expanded latent.
  template <class T> HD int64_t query() const { return int64_t(sizeof(T)) * (nope + rope); }
  template <class T> HD int64_t key_value() const { return int64_t(sizeof(T)) * (nope + v); }
};

// Two dimensions that are turned together.
template <class T> struct Pair { T x, y; };
template <class T> HD Pair<T>* pairs(T* x) { return reinterpret_cast<Pair<T>*>(x); }
template <class T> HD const Pair<T>* pairs(const T* x) {
  return reinterpret_cast<const Pair<T>*>(x);
}
template <class T, class From> HD Pair<T> turned(const Pair<From>& p, Acc<T> cos, Acc<T> sin) {
  const Acc<T> a = p.x, b = p.y;
  return {T(a * cos - b * sin), T(b * cos + a * sin)};
}

// What each head has of an array.
template <class V> struct OfHeads {
  V* first;
  int64_t next;  // bytes from a head's to the next one's
  HD V* of(int64_t head) const { return (V*)((const char*)first + head * next); }
};

// visit(x[i], ...) for this lane's i of 0 .. count-1 of each head: each() (machine/group.h), whose
// lanes share out the heads too.
template <class Group, class Visit, class... V>
HD void each_of_heads(Group g, int heads, int count, Visit visit, OfHeads<V>... x) {
  const auto ignore_place = [&](int, auto&... xi) { visit(xi...); };
  if constexpr (Group::size == 1) {
    for (int h = 0; h < heads; ++h) each(g, count, ignore_place, x.of(h)...);
  } else {
    constexpr int n = 16 / std::min({sizeof(V)...});
    if (count % n == 0 && begin_packs<n>(x.of(0)...) && begin_packs<n>(x.of(1)...)) {
      ROW_UNROLL(1)
      for (int i = g.lane() * n; i < heads * count; i += Group::size * n)
        visit_packs<n>(ignore_place, (x.of(i / count) + i % count)...);
    } else {
      for (int i = g.lane(); i < heads * count; i += Group::size)
        visit(x.of(i / count)[i % count]...);
    }
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
    using A = Acc<T>;
    const HeadShape& s = a.shape;
    const A sign = A(a.sign);
    each_of_heads(
        g, s.heads, s.rope / 2,
        [=](const A& cos, const A& sin, Pair<T>& q) { q = turned<T>(q, cos, sign * sin); },
        OfHeads<const A>{s.cos_of<A>(r), 0}, OfHeads<const A>{s.sin_of<A>(r), 0},
        OfHeads<Pair<T>>{pairs(a.x.row<T>(r) + s.nope), s.query<T>()});
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
    using A = Acc<T>;
    const HeadShape& s = a.shape;
    T* k = a.k.row<T>(r);
    each_of_heads(
        g, s.heads, s.nope, [](const T& xi, T& ki) { ki = xi; },
        OfHeads<const T>{a.x.row<const T>(r), s.key_value<T>()}, OfHeads<T>{k, s.query<T>()});
    each_of_heads(
        g, s.heads, s.rope / 2,
        [](const A& cos, const A& sin, const Pair<T>& from, Pair<T>& to) {
          to = turned<T>(from, cos, sin);
        },
        OfHeads<const A>{s.cos_of<A>(r), 0}, OfHeads<const A>{s.sin_of<A>(r), 0},
        OfHeads<const Pair<T>>{pairs(a.rotary.row<const T>(r)), 0},
        OfHeads<Pair<T>>{pairs(k + s.nope), s.query<T>()});
  }
};

// The gradient of KeyF: key parts go back to their heads, rotary parts are summed over heads (on
// CUDA ascending, on the CPU in an order that depends on the shape alone) and turned back.
struct KeyI {
  struct Args {
    Tensor x;        // [tokens, heads * (nope + rope)] gradient of k
    Tensor dkv;      // [tokens, heads * (nope + v)] out, the key parts only
    Tensor drotary;  // [tokens, rope] out
    HeadShape shape;
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    using A = Acc<T>;
    constexpr int kPairs = kWideTile<Group> / 2;
    const HeadShape& s = a.shape;
    const T* dk = a.x.row<T>(r);
    each_of_heads(
        g, s.heads, s.nope, [](const T& di, T& to) { to = di; }, OfHeads<const T>{dk, s.query<T>()},
        OfHeads<T>{a.dkv.row<T>(r), s.key_value<T>()});
    if constexpr (Group::size == 1) {  // whose sum g++ vectorizes
      const T* __restrict from = dk + s.nope;
      const auto sum = [=](int i) {
        A of_heads = 0;
        for (int h = 0; h < s.heads; ++h) of_heads += A(from[h * (s.nope + s.rope) + i]);
        return of_heads;
      };
      each(
          g, s.rope / 2,
          [=](int j, const A& cos, const A& sin, Pair<T>& to) {
            to = turned<T>(Pair<A>{sum(2 * j), sum(2 * j + 1)}, cos, -sin);
          },
          s.cos_of<A>(r), s.sin_of<A>(r), pairs(a.drotary.row<T>(r)));
      return;
    }
    for (int first = 0; first < s.rope / 2; first += kPairs) {
      const int n = columns_of_tile(s.rope / 2, first, kPairs);
      Pair<A> sum[kPairs / Group::size] = {};
      for (int h = 0; h < s.heads; ++h)
        each_column<kPairs>(
            g, n, [&](int j, int, const Pair<T>& d) { sum[j].x += A(d.x), sum[j].y += A(d.y); },
            pairs(dk + h * (s.nope + s.rope) + s.nope) + first);
      each_column<kPairs>(
          g, n,
          [&](int j, int, const A& cos, const A& sin, Pair<T>& to) {
            to = turned<T>(sum[j], cos, -sin);
          },
          s.cos_of<A>(r) + first, s.sin_of<A>(r) + first, pairs(a.drotary.row<T>(r)) + first);
    }
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
    for (int i = g.lane(); i < n; i += Group::size) {
      const A e = exp_(A(x[i]) - top);
      sum += e;
      x[i] = T(e);
    }
    const A scale = A(1) / g.sum(sum);
    for (int i = g.lane(); i < n; i += Group::size) x[i] = T(A(x[i]) * scale);
    for (int i = n + g.lane(); i < keys; i += Group::size) x[i] = T(A(0));
  }
};

// dS = P * (dP - sum(P * dP)), in place of dP; zeros for the keys after the query.
struct CausalSoftmaxI {
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
