// The router's row operations (DeepSeek-V3, section 2.1.2): sigmoid affinities, node-limited group
// routing, the top-k chosen with the auxiliary-loss-free bias, weights from the affinities without
// it; and the sequence-wise balance loss.
//
// Router arithmetic is in the accumulation type (fp32; fp64 in gradient checks) whatever the
// compute type is.
// Read next: permute.h.
#pragma once
#include "model/machine/group.h"
#include "model/rows/math.h"
#include "model/rows/tile.h"

namespace duet {

struct RouterShape {
  int experts, topk;
  // experts per group = experts / groups, two or more; a token's experts lie in topk_groups of the
  // groups
  int groups, topk_groups;
  double scaling;  // routed_scaling_factor
};

// The paper's -inf, in a file compiled for finite math.
inline constexpr float kMasked = -1e30f;
// A choice is never below: an expert whose bias is -inf is the last to be chosen, and a group with
// such an expert, whose score is this or twice this, still differs from a masked one.
inline constexpr float kNever = -1e29f;

// Visits the k largest of values[0..n) in descending order (of equal ones the first), and masks
// them in `values` on the way. Where nothing but NaN is left the choice is arbitrary, but one of
// 0..n-1: a diverged run ends at its loss, not in foreign memory.
template <class A, class Group, class Visit>
HD void select_top(Group g, A* values, int n, int k, Visit visit) {
  g.sync();
  for (int j = 0; j < k; ++j) {
    Best<A> best{A(2) * A(kMasked), n};
    each(
        g, n,
        [&](int i, const A& value) {
          best = better(best, Best<A>{value, i});
        },
        static_cast<const A*>(values));
    best = g.best(best);
    if (best.index == n) best.index = j;
    if (g.lane() == 0) values[best.index] = A(kMasked);
    g.sync();
    visit(j, best.index);
  }
}

struct RouterF {
  static constexpr bool acc_only = true;
  struct Args {
    Tensor x;         // [tokens, experts] in logits, out affinities
    Tensor bias;      // [1, experts] e_score_correction_bias
    Tensor topk_idx;  // [tokens, topk] i32 out, ascending
    Tensor topk_w;    // [tokens, topk] out
    // [tokens, topk] i32 out: the top-k without bias and groups, which the balance loss counts
    Tensor plain_idx;
    Tensor total;    // [tokens, 1] out: sum of the affinities
    Tensor scratch;  // [tokens, experts + groups]
    RouterShape shape;
    // tokens of a sequence: instead of the top-k, balanced_expert of the place in it; 0: the top-k
    int64_t balanced_over = 0;
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const RouterShape& s = a.shape;
    T* score = a.x.row<T>(r);
    T* choice = a.scratch.row<T>(r);
    int32_t* plain = a.plain_idx.row<int32_t>(r);
    int32_t* idx = a.topk_idx.row<int32_t>(r);
    T total = 0;
    each(
        g, s.experts, [&](int, T& si, T& ci) { total += ci = si = sigmoid_(si); }, score, choice);
    total = g.sum(total);
    if (g.lane() == 0) *a.total.row<T>(r) = total;
    select_top(g, choice, s.experts, s.topk, [&](int j, int i) {
      if (g.lane() == 0) plain[j] = i;
    });
    each(
        g, s.experts,
        [](int, const T& si, const T& bi, T& ci) {
          const T biased = si + bi;
          ci = biased > T(kNever) ? biased : T(kNever);
        },
        a.x.row<const T>(r), a.bias.row<const T>(0), choice);
    if (s.topk_groups < s.groups) mask_groups(g, choice, s);
    select_top(g, choice, s.experts, s.topk, [&](int j, int i) {
      if (g.lane() == 0)
        insert_sorted(idx, j, a.balanced_over ? balanced_expert(r % a.balanced_over, j, s) : i);
    });
    g.sync();
    T sum = 0;
    for (int j = 0; j < s.topk; ++j) sum += score[idx[j]];
    for (int j = g.lane(); j < s.topk; j += Group::size)
      a.topk_w.row<T>(r)[j] = score[idx[j]] / (sum + T(1e-20)) * T(s.scaling);
  }

  // Experts in turn, so that all get the same load; a token's are spread over topk_groups groups,
  // and evenly within them.
  HD static int balanced_expert(int64_t token, int j, const RouterShape& s) {
    const int size = s.experts / s.groups, in_group = (s.topk + s.topk_groups - 1) / s.topk_groups;
    const int64_t group = (token + j % s.topk_groups * (s.groups / s.topk_groups)) % s.groups;
    return int(group * size + (token / s.groups + j / s.topk_groups * (size / in_group)) % size);
  }

  // Leaves the experts of the best groups; a group's score is the sum of its two best.
  template <class T, class Group>
  HD static void mask_groups(Group g, T* choice, const RouterShape& s) {
    const int size = s.experts / s.groups;
    T* group_score = choice + s.experts;
    g.sync();
    for (int q = g.lane(); q < s.groups; q += Group::size) {
      T first = T(kMasked), second = T(kMasked);
      for (int i = q * size; i < (q + 1) * size; ++i) {
        if (choice[i] > first) {
          second = first;
          first = choice[i];
        } else if (choice[i] > second) {
          second = choice[i];
        }
      }
      group_score[q] = first + second;
    }
    select_top(g, group_score, s.groups, s.topk_groups, [](int, int) {});
    // the chosen groups are the masked ones now
    each(
        g, s.experts,
        [&](int i, T& ci) {
          if (group_score[i / size] != T(kMasked)) ci = T(kMasked);
        },
        choice);
  }

  HD static void insert_sorted(int32_t* list, int n, int value) {
    int j = n;
    for (; j > 0 && list[j - 1] > value; --j) list[j] = list[j - 1];
    list[j] = value;
  }
};

// What `run` tokens of a sequence add to its balance loss: how often each expert is in plain_idx,
// and its shares of the affinities, added in the order of the tokens. A launch of
// tiles of each run. On the CPU a sequence is one run; on a GPU it is many, or its tokens would
// wait for one another.
struct BalanceSums {
  static constexpr bool acc_only = true;
  struct Args {
    Tensor x;          // [tokens, experts] affinities
    Tensor total;      // [tokens, 1]
    Tensor plain_idx;  // [tokens, topk] i32
    Tensor sums;       // [runs, 2 * experts] out: counts, shares
    int64_t seq_len, run;
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const ColumnTile<Group> tile(r, a.x.cols);
    const int64_t runs = (a.seq_len + a.run - 1) / a.run, sequence = tile.row / runs * a.seq_len,
                  begin = sequence + tile.row % runs * a.run,
                  end = std::min(begin + a.run, sequence + a.seq_len);
    constexpr int of_lane = ColumnTile<Group>::columns / Group::size;
    T count[of_lane] = {}, sum[of_lane] = {};
    struct Values {
      T affinity, total;
    };
    down_columns(
        g, tile, begin, end,
        [&](int64_t t, int c) {
          return Values{a.x.row<T>(t)[c], *a.total.row<T>(t)};
        },
        [&](int j, const Values& v) { sum[j] += v.affinity * (T(1) / v.total); });
    for (int k = 0; k < a.plain_idx.cols; ++k)
      down_columns(
          g, tile, begin, end,
          [&](int64_t t, int c) { return T(a.plain_idx.row<int32_t>(t)[k] == c); },
          [&](int j, T chosen) { count[j] += chosen; });
    T* out = a.sums.row<T>(tile.row);
    each_column(
        g, tile, [&](int j, int, T& ci, T& si) { ci = count[j], si = sum[j]; }, out,
        out + a.x.cols);
  }
};

// Per sequence: f_i = experts / (topk * seq_len) * how often expert i is in plain_idx, P_i = mean
// affinity share, and the loss sum_i f_i P_i (equations 17 to 20, without the factor alpha).
struct BalanceLossF {
  static constexpr bool acc_only = true;
  struct Args {
    Tensor x;      // [runs, 2 * experts] what BalanceSums made
    Tensor f, p;   // [sequences, experts] out
    Tensor loss;   // [sequences, 1] out
    int64_t runs;  // of a sequence
    int64_t seq_len, topk;
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const int experts = int(a.f.cols);
    T* f = a.f.row<T>(r);
    T* __restrict p = a.p.row<T>(r);
    struct Values {
      T count, share;
    };
    for (int64_t nth = 0; nth < tiles_of(experts, ColumnTile<Group>::columns); ++nth) {
      const ColumnTile<Group> tile(nth, experts);
      constexpr int of_lane = ColumnTile<Group>::columns / Group::size;
      T count[of_lane] = {}, sum[of_lane] = {};
      down_columns(
          g, tile, r * a.runs, (r + 1) * a.runs,
          [&](int64_t run, int c) {
            return Values{a.x.row<T>(run)[c], a.x.row<T>(run)[experts + c]};
          },
          [&](int j, const Values& v) { count[j] += v.count, sum[j] += v.share; });
      each_column(
          g, tile, [&](int j, int, T& fi, T& pi) { fi = count[j], pi = sum[j]; }, f, p);
    }
    T loss = 0;
    for (int i = g.lane(); i < experts; i += Group::size) {
      f[i] *= T(experts) / T(a.topk * a.seq_len);
      p[i] /= T(a.seq_len);
      loss += f[i] * p[i];
    }
    loss = g.sum(loss);
    if (g.lane() == 0) *a.loss.row<T>(r) = loss;
  }
};

// Gradient for the logits, from the gradients of the weights and from the balance loss (f is a
// count: no gradient through it).
struct RouterI {
  static constexpr bool acc_only = true;
  struct Args {
    Tensor x;         // [tokens, experts] in affinities, out gradient of the logits
    Tensor topk_idx;  // [tokens, topk] i32
    Tensor dw;        // [tokens, topk] gradient of topk_w
    Tensor total;     // [tokens, 1]
    Tensor f;         // [sequences, experts]
    RouterShape shape;
    int64_t seq_len;
    double balance;  // factor of sum_i f_i P_i in the objective, for this sequence
  };
  template <class T, class Group> HD static void row(Group g, int64_t r, const Args& a) {
    const RouterShape& s = a.shape;
    T* score = a.x.row<T>(r);
    const int32_t* idx = a.topk_idx.row<int32_t>(r);
    const T* dw = a.dw.row<T>(r);
    const T* f = a.f.row<T>(r / a.seq_len);
    T sum = T(1e-20), dot = 0, mean_f = 0;
    for (int j = 0; j < s.topk; ++j) sum += score[idx[j]];
    for (int j = 0; j < s.topk; ++j) dot += dw[j] * score[idx[j]];
    each(
        g, s.experts, [&](int, const T& fi, const T& si) { mean_f += fi * si; }, f,
        a.x.row<const T>(r));
    const T share = T(1) / *a.total.row<T>(r);
    mean_f = g.sum(mean_f) * share;
    const T balance = T(a.balance / double(a.seq_len)) * share;
    g.sync();  // every lane has read the affinities
    each(
        g, s.experts,
        [&](int i, const T& fi, T& si) {
          T d = balance * (fi - mean_f);
          for (int j = 0; j < s.topk; ++j)
            if (idx[j] == i) d += T(s.scaling) * (dw[j] - dot / sum) / sum;
          si = d * si * (T(1) - si);
        },
        f, score);
  }
};

}  // namespace duet
