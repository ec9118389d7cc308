// The forward pass: attention against a naive one in double, and row invariance: a sequence's bits
// do not depend on the sequences that share its microbatch, nor on threads.
#include "model/attention.h"
#include "model/ends.h"
#include "model/layer.h"
#include "moe/moe.h"
#include "test/model_testing.h"

namespace duet {
namespace {

using Row = std::vector<double>;
Row times(const Row& x, const Tensor& w) {
  Row y(size_t(w.cols), 0.0);
  for (int64_t i = 0; i < w.rows; ++i)
    for (int64_t j = 0; j < w.cols; ++j) y[size_t(j)] += x[size_t(i)] * w.row<double>(i)[j];
  return y;
}
Row part(const Row& x, int64_t begin, int64_t n) {
  return Row(x.begin() + begin, x.begin() + begin + n);
}
Row normed(const Row& x, const Tensor& gain) {
  double squares = 0;
  for (double a : x) squares += a * a;
  Row y;
  const double rms = std::sqrt(squares / double(x.size()) + 1e-6);
  for (size_t i = 0; i < x.size(); ++i) y.push_back(x[i] / rms * gain.row<double>(0)[i]);
  return y;
}
// Interleaved pairs as complex numbers, times e^(i position theta^(-2j/n)).
Row turned(Row x, int64_t position, double theta) {
  for (size_t j = 0; 2 * j < x.size(); ++j) {
    const double angle = double(position) * std::pow(theta, -2.0 * double(j) / double(x.size()));
    const double a = x[2 * j], b = x[2 * j + 1];
    x[2 * j] = a * std::cos(angle) - b * std::sin(angle);
    x[2 * j + 1] = a * std::sin(angle) + b * std::cos(angle);
  }
  return x;
}
void append(Row& to, const Row& x) { to.insert(to.end(), x.begin(), x.end()); }

// The last token's output of attention over the tokens of one sequence: equations 1 to 11 of
// DeepSeek-V3's section 2.1.1.
Row naive_attention(const Bench& b, const std::vector<Row>& x) {
  const ModelConfig& c = b.config;
  const int64_t last = int64_t(x.size()) - 1, qk = c.qk_head_dim();
  Row q = c.q_lora_rank ? times(normed(times(x.back(), b.weight("a.q_a_proj.weight")),
                                    b.weight("a.q_a_layernorm.weight")),
                              b.weight("a.q_b_proj.weight"))
                        : times(x.back(), b.weight("a.q_proj.weight"));
  Row mixed;
  for (int64_t h = 0; h < c.n_heads; ++h) {
    Row query = part(q, h * qk, c.qk_nope_head_dim);
    append(query,
        turned(part(q, h * qk + c.qk_nope_head_dim, c.qk_rope_head_dim), last, c.rope_theta));
    Row mix(size_t(c.v_head_dim), 0.0);
    double sum = 0;
    for (int64_t t = 0; t <= last; ++t) {
      const Row kva = times(x[size_t(t)], b.weight("a.kv_a_proj_with_mqa.weight"));
      const Row latent = normed(part(kva, 0, c.kv_lora_rank), b.weight("a.kv_a_layernorm.weight"));
      const Row kv = times(latent, b.weight("a.kv_b_proj.weight"));
      const int64_t begin = h * (c.qk_nope_head_dim + c.v_head_dim);
      Row key = part(kv, begin, c.qk_nope_head_dim);
      append(key, turned(part(kva, c.kv_lora_rank, c.qk_rope_head_dim), t, c.rope_theta));
      double score = 0;
      for (size_t i = 0; i < key.size(); ++i) score += query[i] * key[i];
      const double weight = std::exp(score / std::sqrt(double(qk)));
      sum += weight;
      for (int64_t i = 0; i < c.v_head_dim; ++i)
        mix[size_t(i)] += weight * kv[size_t(begin + c.qk_nope_head_dim + i)];
    }
    for (double& m : mix) m /= sum;
    append(mixed, mix);
  }
  return times(mixed, b.weight("a.o_proj.weight"));
}

TEST(Forward, AttentionEqualsNaiveAttention) {
  for (int64_t q_lora_rank : {0, 6}) {
    ModelConfig c = small_config();
    c.q_lora_rank = q_lora_rank;
    Bench b(c, 5, 2);
    Attention attention(b.context, b.params, "a.");
    b.allocate();
    Buf x = b.random(b.context.tokens(), c.d_model);
    Attention::Saved s;
    Buf y = attention.forward(s, x);
    for (int64_t sequence : {0, 1}) {
      std::vector<Row> tokens;
      for (int64_t t = sequence * 5; t < sequence * 5 + 5; ++t) {
        tokens.push_back(Row(x->row<double>(t), x->row<double>(t) + c.d_model));
        const Row expected = naive_attention(b, tokens);
        for (int64_t i = 0; i < c.d_model; ++i)
          ASSERT_NEAR(y->row<double>(t)[i], expected[size_t(i)], 1e-11) << "token " << t;
      }
    }
  }
}

// Embedding, a dense layer, a layer of experts and the head; returns each token's last output and
// its loss, as bytes.
std::vector<std::string> forward_bits(
    const ModelConfig& c, const std::vector<int32_t>& tokens, int64_t sequences, int threads) {
  Bench b(c, int64_t(tokens.size()) / sequences, sequences, Dtype::f32, threads);
  Embedding embedding(b.context, b.params);
  Layer dense(b.context, b.params, 0,
      [&](Params& p, const std::string& prefix) { return make_dense(b.context, p, prefix); });
  Layer sparse(b.context, b.params, 1, [&](Params& p, const std::string& prefix) {
    return std::make_unique<Moe>(
        b.context, p, p, prefix, Moe::Options{.placement = each_expert_once(c)});
  });
  Head head(b.context, b.params);
  b.allocate();
  Embedding::Saved embedded;
  Buf x = embedding.forward(embedded, tokens);
  Layer::Saved saved[2];
  for (int l : {0, 1}) {
    const Layer& layer = l ? sparse : dense;
    for (Phase phase : kForward) layer.run(phase, saved[l], x);
  }
  Buf y = b.copy(x), loss = b.device->host_buffer(b.context.tokens(), 1, Dtype::f32);
  Head::Saved at_end;
  head.forward(at_end, std::move(x));
  head.loss(at_end, tokens, loss);
  std::vector<std::string> bits;
  for (int64_t t = 0; t < y->rows; ++t) {
    EXPECT_TRUE(std::isfinite(Bench::get(loss, t)));
    bits.emplace_back(y->row<char>(0) + t * y->ld * 4, size_t(y->cols) * 4);
    bits.back().append(loss->row<char>(0) + t * 4, 4);
  }
  return bits;
}

void check_row_invariance(const ModelConfig& c, int64_t seq_len) {
  std::mt19937 rng(3);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < 4 * seq_len; ++i)
    tokens.push_back(int32_t(rng() % unsigned(c.vocab_size)));
  const std::vector<std::string> together = forward_bits(c, tokens, 4, 1);
  EXPECT_TRUE(forward_bits(c, tokens, 4, 2) == together) << "two threads";
  for (int64_t sequence = 0; sequence < 4; ++sequence) {
    const std::vector<int32_t> one(
        tokens.begin() + sequence * seq_len, tokens.begin() + (sequence + 1) * seq_len);
    const std::vector<std::string> alone = forward_bits(c, one, 1, 1);
    for (int64_t t = 0; t < seq_len; ++t)
      ASSERT_TRUE(alone[size_t(t)] == together[size_t(sequence * seq_len + t)])
          << "sequence " << sequence << ", token " << t;
  }
}

TEST(Forward, IsRowInvariant) {
  check_row_invariance(small_config(), 37);
  ModelConfig tiny = find_preset("tiny").model;
  tiny.n_layers = 2;
  check_row_invariance(tiny, 64);
}

}  // namespace
}  // namespace duet
