// Hand-written gradients against central differences, all in double, to 1e-6 of the tensor's
// largest gradient: for inputs and for every parameter of every part of the model. The objective is
// sum(dy * y) with a random dy, or the loss.
#include "model/attention.h"
#include "model/ends.h"
#include "model/layer.h"
#include "moe/moe.h"
#include "test/model_testing.h"

namespace duet {
namespace {

constexpr int64_t kSeqLen = 5, kSequences = 2;

void check_attention(int64_t q_lora_rank, int64_t seq_len, int64_t sequences, int64_t sample) {
  ModelConfig c = small_config();
  c.q_lora_rank = q_lora_rank;
  Bench b(c, seq_len, sequences);
  Attention attention(b.context, b.params, "attention.");
  b.allocate();
  Buf x = b.random(b.context.tokens(), c.d_model), dy = b.random(b.context.tokens(), c.d_model);
  check_gradients(b, x,
      {.objective =
              [&] {
                Attention::Saved s;
                return Bench::dot(dy, attention.forward(s, x));
              },
          .backward =
              [&] {
                Attention::Saved s;
                attention.forward(s, x);
                Buf dx = attention.backward_input(s, dy);
                attention.backward_weight(s, x, dy);
                return dx;
              }},
      sample);
}

TEST(Gradient, Attention) { check_attention(0, kSeqLen, kSequences, 1000); }
TEST(Gradient, AttentionWithLowRankQueries) { check_attention(6, kSeqLen, kSequences, 1000); }
// Scores that do not fit in kScoreBytes: the heads go one after the other.
TEST(Gradient, AttentionInChunksOfHeads) {
  static_assert(kScoreBytes < 2 * 2 * 160 * 160 * 8);
  check_attention(0, 160, 2, 5);
}

// A mixture of experts whose choice of experts must stay what it was at the first evaluation.
struct Choice {
  Moe* moe = nullptr;
  std::vector<int64_t> load;
  // Call after each forward; returns the balance loss.
  double check(const Context& context) {
    if (!moe) return 0;
    if (load.empty()) load = moe->load();
    EXPECT_EQ(moe->load(), load) << "routing changed under the perturbation: another seed, please";
    moe->clear_load();
    double loss = 0;
    for (int64_t s = 0; s < context.sequences; ++s) loss += moe->balance_loss(0, s);
    return context.balance_scale * loss;
  }
};

void check_feed_forward(Bench& b, FeedForward& ffn, Choice choice) {
  const int64_t d = b.config.d_model;
  Buf x = b.random(b.context.tokens(), d), dy = b.random(b.context.tokens(), d),
      residual = b.random(b.context.tokens(), d);
  const auto forward = [&] {
    auto s = ffn.make_saved();
    s->x = x;
    s->residual = residual;
    for (Phase phase : kForward) ffn.run(phase, *s);
    return s;
  };
  check_gradients(b, x,
      {.objective = [&] { return Bench::dot(dy, forward()->y) + choice.check(b.context); },
          .backward =
              [&] {
                auto s = forward();
                choice.check(b.context);
                s->dy = dy;
                for (Phase phase : kBackwardInput) ffn.run(phase, *s);
                for (Phase phase : kBackwardWeight) ffn.run(phase, *s);
                return std::move(s->dx);
              }});
}

TEST(Gradient, DenseFeedForward) {
  Bench b(small_config(), kSeqLen, kSequences);
  auto ffn = make_dense(b.context, b.params, "mlp.");
  b.allocate();
  check_feed_forward(b, *ffn, {});
}

void check_moe(const ModelConfig& config, double balance_scale) {
  Bench b(config, kSeqLen, kSequences);
  b.context.balance_scale = balance_scale;
  Moe moe(b.context, b.params, b.params, "mlp.", {.placement = each_expert_once(config)});
  b.allocate();
  check_feed_forward(b, moe, {&moe, {}});
}

TEST(Gradient, Moe) { check_moe(small_config(), 0); }
TEST(Gradient, MoeWithBalanceLoss) { check_moe(small_config(), 0.7); }
TEST(Gradient, MoeWithoutSharedExpertsAndGroups) {
  ModelConfig c = small_config();
  c.n_shared = 0, c.n_group = c.topk_group = 1, c.topk = 3;
  check_moe(c, 0.3);
}

void check_layer(int64_t index) {
  Bench b(small_config(), kSeqLen, kSequences);
  b.context.balance_scale = 0.7;
  Choice choice;
  Layer layer(b.context, b.params, index,
      [&](Params& params, const std::string& prefix) -> std::unique_ptr<FeedForward> {
        if (b.config.dense(index)) return make_dense(b.context, params, prefix);
        auto moe = std::make_unique<Moe>(b.context, params, params, prefix,
            Moe::Options{.placement = each_expert_once(b.config)});
        choice.moe = moe.get();
        return moe;
      });
  b.allocate();
  Buf x = b.random(b.context.tokens(), b.config.d_model),
      dy = b.random(b.context.tokens(), b.config.d_model);
  const auto forward = [&](Layer::Saved& s) {
    Buf flow = b.copy(x);
    for (Phase phase : kForward) layer.run(phase, s, flow);
    return flow;
  };
  check_gradients(b, x,
      {.objective =
              [&] {
                Layer::Saved s;
                const double y = Bench::dot(dy, forward(s));
                return y + choice.check(b.context);
              },
          .backward =
              [&] {
                Layer::Saved s;
                forward(s);
                choice.check(b.context);
                Buf flow = b.copy(dy);
                for (Phase phase : kBackwardInput) layer.run(phase, s, flow);
                for (Phase phase : kBackwardWeight) layer.run(phase, s, flow);
                return flow;
              }});
}

TEST(Gradient, DenseLayer) { check_layer(0); }
TEST(Gradient, MoeLayer) { check_layer(1); }

TEST(Gradient, Embedding) {
  Bench b(small_config(), kSeqLen, kSequences);
  Embedding embedding(b.context, b.params);
  b.allocate();
  const std::vector<int32_t> tokens = {3, 12, 0, 3, 3, 7, 0, 5, 12, 3};
  Buf dy = b.random(b.context.tokens(), b.config.d_model);
  check_gradients(b, {},
      {.objective =
              [&] {
                Embedding::Saved s;
                return Bench::dot(dy, embedding.forward(s, tokens));
              },
          .backward =
              [&] {
                Embedding::Saved s;
                embedding.forward(s, tokens);
                embedding.backward_input(s, b.copy(dy));
                embedding.backward_weight(s);
                return Buf();
              }});
}

TEST(Gradient, HeadWithCrossEntropy) {
  Bench b(small_config(), kSeqLen, kSequences);
  b.context.loss_scale = 0.3;
  Head head(b.context, b.params);
  b.allocate();
  const std::vector<int32_t> targets = {12, 0, 3, 3, 7, 0, 5, 12, 3, 1};
  Buf x = b.random(b.context.tokens(), b.config.d_model),
      loss = b.device->host_buffer(b.context.tokens(), 1, Dtype::f64);
  const auto forward = [&](Head::Saved& s) {
    head.forward(s, b.copy(x));
    head.loss(s, targets, loss);
    double sum = 0;
    for (int64_t t = 0; t < loss->rows; ++t) sum += Bench::get(loss, t);
    return b.context.loss_scale * sum;
  };
  check_gradients(b, x,
      {.objective =
              [&] {
                Head::Saved s;
                return forward(s);
              },
          .backward =
              [&] {
                Head::Saved s;
                forward(s);
                Buf dx = head.backward_input(s);
                head.backward_weight(s);
                return dx;
              }});
}

}  // namespace
}  // namespace duet
