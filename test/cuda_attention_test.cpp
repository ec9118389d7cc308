// Fused causal attention on CUDA against attention by its definition, in double, and its gradients
// by the whole Jacobian of softmax. See cuda_testing.h.
#include "model/rows/fused_attention.h"

#include <numeric>

#include "test/cuda_testing.h"

namespace duet {
namespace {

using Values = std::vector<double>;

struct Shape {
  int heads, nope, rope, v;
  int64_t seq_len, sequences;
  int qk() const { return nope + rope; }
  int64_t tokens() const { return seq_len * sequences; }
};

// Tensors of a launch, in this order; scores are several apart, so that softmax is not uniform.
enum { kQ, kK, kKv, kDmix, kMix, kStats, kDq, kDk, kDkv };
struct Tensors {
  Tensor x, k, kv, dmix, mix, stats, dq, dk, dkv;
  Tensors(Rig& rig, const Shape& s)
      : x(rig.real(s.tokens(), s.heads * s.qk(), -3, 3)),
        k(rig.real(s.tokens(), s.heads * s.qk(), -3, 3)),
        kv(rig.real(s.tokens(), s.heads * (s.nope + s.v))),
        dmix(rig.real(s.tokens(), s.heads * s.v)), mix(rig.real(s.tokens(), s.heads * s.v)),
        stats(rig.acc(s.tokens(), s.heads * 2)), dq(rig.real(s.tokens(), x.cols)),
        dk(rig.real(s.tokens(), x.cols)), dkv(rig.real(s.tokens(), kv.cols)) {}
  // Of the sequences from `first` on.
  void launch(Stream& stream, const Shape& s, int64_t first, int64_t sequences) const {
    const HeadShape shape = {.heads = s.heads,
        .nope = s.nope,
        .rope = s.rope,
        .v = s.v,
        .seq_len = s.seq_len,
        .cos = {},
        .sin = {}};
    const int64_t tokens = sequences * s.seq_len;
    const auto of = [&](const Tensor& t) { return t.row_slice(first * s.seq_len, tokens); };
    duet::launch<FusedAttentionF>(stream, tokens,
        {.x = of(x), .k = of(k), .kv = of(kv), .mix = of(mix), .stats = of(stats), .shape = shape});
    duet::launch<FusedAttentionI>(stream, tokens,
        {.x = of(x),
            .k = of(k),
            .kv = of(kv),
            .mix = of(mix),
            .stats = of(stats),
            .dmix = of(dmix),
            .dq = of(dq),
            .dk = of(dk),
            .dkv = of(dkv),
            .shape = shape});
  }
};

// One head of one sequence, by definition: what `t` holds as inputs goes to its outputs.
void attend(std::vector<Values>& t, const Shape& s, int64_t sequence, int head) {
  const auto at = [&](int tensor, int64_t row, int per_head, int col) -> double& {
    return t[size_t(tensor)]
            [size_t(((sequence * s.seq_len + row) * s.heads + head) * per_head + col)];
  };
  const int qk = s.qk(), wide = s.nope + s.v;
  for (int64_t row = 0; row < s.seq_len; ++row) {
    for (int c = 0; c < qk; ++c) at(kDq, row, qk, c) = at(kDk, row, qk, c) = 0;
    for (int c = 0; c < s.v; ++c) at(kMix, row, s.v, c) = at(kDkv, row, wide, s.nope + c) = 0;
  }
  for (int64_t query = 0; query < s.seq_len; ++query) {
    Values p, dp;
    double sum = 0;
    for (int64_t key = 0; key <= query; ++key) {
      double score = 0, d = 0;
      for (int c = 0; c < qk; ++c) score += at(kQ, query, qk, c) * at(kK, key, qk, c);
      for (int c = 0; c < s.v; ++c) d += at(kDmix, query, s.v, c) * at(kKv, key, wide, s.nope + c);
      sum += p.emplace_back(std::exp(score / std::sqrt(qk)));
      dp.push_back(d);
    }
    at(kStats, query, 2, 0) = std::log2(sum);
    for (double& x : p) x /= sum;
    at(kStats, query, 2, 1) = std::inner_product(p.begin(), p.end(), dp.begin(), 0.0);
    for (int64_t key = 0; key <= query; ++key) {
      const double of_key = p[size_t(key)];
      for (int c = 0; c < s.v; ++c) {
        at(kMix, query, s.v, c) += of_key * at(kKv, key, wide, s.nope + c);
        at(kDkv, key, wide, s.nope + c) += of_key * at(kDmix, query, s.v, c);
      }
      double ds = 0;
      for (int64_t j = 0; j <= query; ++j)
        ds += dp[size_t(j)] * p[size_t(j)] * ((j == key) - of_key) / std::sqrt(qk);
      for (int c = 0; c < qk; ++c) {
        at(kDq, query, qk, c) += ds * at(kK, key, qk, c);
        at(kDk, key, qk, c) += ds * at(kQ, query, qk, c);
      }
    }
  }
}

struct CudaAttention : Cuda {
  void expect_definition(Dtype dtype, const Shape& s) {
    SCOPED_TRACE(cat(dtype_name(dtype), ", heads of ", s.nope, "+", s.rope, " and ", s.v,
        ", sequences of ", s.seq_len));
    Rig rig(*gpu, dtype, dtype == Dtype::bf16);
    const Tensors t(rig, s);
    std::vector<Values> expected = rig.results();
    t.launch(rig.stream(), s, 0, s.sequences);
    const std::vector<Values> found = rig.results();
    for (int64_t sequence = 0; sequence < s.sequences; ++sequence)
      for (int head = 0; head < s.heads; ++head) attend(expected, s, sequence, head);
    for (int i = 0; i <= kDkv; ++i) expect_near(found[size_t(i)], expected[size_t(i)], dtype, i);
    t.launch(rig.stream(), s, 0, s.sequences);
    EXPECT_EQ(rig.results(), found) << "other bits when run again";
  }
  static void expect_near(const Values& found, const Values& expected, Dtype dtype, int tensor) {
    const double tolerance = dtype == Dtype::bf16 ? 1e-2 : dtype == Dtype::f64 ? 1e-13 : 1e-5;
    double largest = 0.01;  // a lone token has no gradient
    for (double x : expected) largest = std::max(largest, std::abs(x));
    for (size_t i = 0; i < found.size(); ++i)
      ASSERT_LE(std::abs(found[i] - expected[i]), tolerance * largest)
          << "tensor " << tensor << ", element " << i << ": found " << found[i] << ", expected "
          << expected[i];
  }
};

TEST_F(CudaAttention, IsAttention) {
  const Shape shapes[] = {{2, 16, 8, 16, 1, 2}, {1, 16, 8, 16, 17, 2}, {3, 5, 4, 3, 33, 2},
      {2, 32, 16, 32, 64, 1}, {1, 64, 32, 64, 65, 2}, {1, 24, 8, 24, 300, 1},
      {1, 128, 64, 128, 130, 1}, {2, 50, 47, 65, 40, 1}};
  for (const Shape& s : shapes)
    for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16}) expect_definition(dtype, s);
}

// Of a long sequence with scores far apart: what was summed under a maximum that stays is not
// touched with every tile of keys. lse against its definition, in units of its last place.
TEST_F(CudaAttention, ManyTilesOfKeysLeaveAStandingMaximumAlone) {
  const Shape s = {1, 16, 8, 16, 1500, 1};
  Rig rig(*gpu, Dtype::f32, false);
  const Tensors t(rig, s);
  const Tensor q = rig.real(s.tokens(), s.qk(), -20, 20), k = rig.real(s.tokens(), s.qk(), -20, 20);
  rig.stream().copy(t.x.data, q.data, size_t(q.bytes()));
  rig.stream().copy(t.k.data, k.data, size_t(k.bytes()));
  t.launch(rig.stream(), s, 0, 1);
  const std::vector<Values> found = rig.results();
  for (int64_t query = 0; query < s.seq_len; ++query) {
    std::vector<double> scores;
    for (int64_t key = 0; key <= query; ++key)
      scores.push_back(
          std::inner_product(&found[kQ][size_t(query * s.qk())],
              &found[kQ][size_t((query + 1) * s.qk())], &found[kK][size_t(key * s.qk())], 0.0) /
          std::sqrt(s.qk()) / std::log(2));
    const double top = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double score : scores) sum += std::exp2(score - top);
    const double lse = top + std::log2(sum), unit = std::exp2(std::ilogb(lse) - 23);
    EXPECT_NEAR(found[kStats][size_t(query * 2)], lse, 6 * unit) << "query " << query;
  }
}

// The exactness ladder's first row: which sequences are beside it changes no bit of a sequence.
TEST_F(CudaAttention, ASequencesBitsAreItsOwn) {
  for (Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Shape s = {2, 16, 8, 16, 70, 3};
    Rig together(*gpu, dtype, false), alone(*gpu, dtype, false);
    Tensors(together, s).launch(together.stream(), s, 0, 3);
    const Tensors t(alone, s);
    for (int64_t sequence : {2, 0, 1}) t.launch(alone.stream(), s, sequence, 1);
    EXPECT_EQ(alone.results(), together.results()) << dtype_name(dtype);
  }
}

}  // namespace
}  // namespace duet
