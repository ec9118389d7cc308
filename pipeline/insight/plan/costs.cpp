// See costs.h.
#include "pipeline/insight/plan/costs.h"

#include <algorithm>

namespace duet {
namespace {

// Kernels of a layer and their framework calls, as profiles of Megatron-LM show them: forward,
// backward for inputs, for weights (its products); more where there are experts (routing, sorting,
// permuting).
constexpr double kKernelsF = 45, kKernelsI = 60, kKernelsW = 10, kKernelsExperts = 30;
// Times that the scores of unfused attention pass through memory: written by the product, read and
// written by softmax and by dropout (its mask at half the size), read by the next product.
constexpr double kScorePassesF = 6.5, kScorePassesB = 9.5;
// Calls more for each time more that rows pass through memory.
constexpr double kUnfusedKernels = 16;

// A layer's cost under construction.
class LayerCost {
 public:
  LayerCost(const PlanJob& job, const PlanLayout& l)
      : job_(job), m_(job.model), c_(job.cluster), l_(l), tokens_(tokens_of(job, l)),
        rows_(row_tokens_of(job, l)) {}

  Cost make(bool moe, bool windowed) {
    attention_products();
    attention_core(windowed);
    const double h = double(m_.hidden);
    // two norms (read, write), two residuals (read two, write one); backward half as much again
    rows(rows_ * h * 10 * 2, rows_ * h * 15 * 2);
    if (moe) {
      experts();
    } else {
      mlp(kProducts, tokens_, double(m_.ffn) / l_.tp);
    }
    if (l_.tp > 1) tensor_comm();
    host((moe ? kKernelsExperts : 0) + kUnfusedKernels * (l_.row_passes - 1));
    recompute();
    return cost_;
  }

 private:
  // One product [tokens, k] x [k, n] with its two backward ones; in 8 bits its operands are cast.
  void product(Part part, double tokens, double n, double k, double count = 1) {
    const Precision p = l_.precision;
    cost_.F[part] += product_seconds(c_, p, {tokens, n, k, count});
    cost_.I[part] += product_seconds(c_, p, {tokens, k, n, count});
    const double segment = std::min(128.0, double(job_.seq_len)) * tokens / tokens_;
    cost_.W[part] += weight_product_seconds(c_, p, {k, n, tokens, count}, tokens / segment);
    if (p <= Precision::bf16) return;
    const double x = tokens * k * count, dy = tokens * n * count;
    rows(3 * x, 3 * dy);                          // from 16 bits
    cost_.W[kRows] += 2.5 * (x + dy) / c_.hbm();  // in tiles of the other direction
    if (p == Precision::fp8 && l_.tiles && count == 1) cost_.W[part] += 8 * k * n / c_.hbm();
  }
  void rows(double bytes_f, double bytes_b) {
    const double passes = l_.row_passes / c_.rows();
    cost_.F[kRows] += bytes_f * passes;
    cost_.I[kRows] += bytes_b * passes;
  }

  void attention_products() {
    const double h = double(m_.hidden), tp = l_.tp, heads = double(m_.heads) / tp;
    double made = 0;  // elements that rotations and head-wise norms pass over
    if (m_.kv_lora) {
      const double q = heads * (m_.nope + m_.rope), kv = heads * (m_.nope + m_.v_dim);
      if (m_.q_lora) product(kProducts, tokens_, m_.q_lora, h);
      product(kProducts, tokens_, q, m_.q_lora ? m_.q_lora : m_.hidden);
      product(kProducts, tokens_, m_.kv_lora + m_.rope, h);
      product(kProducts, tokens_, kv, m_.kv_lora);
      latents_up_ = product_seconds(c_, l_.precision, {tokens_, q, double(m_.q_lora)}) +
          product_seconds(c_, l_.precision, {tokens_, kv, double(m_.kv_lora)});
      made = 2 * q + (m_.q_lora + m_.kv_lora) + heads * m_.v_dim;
    } else {
      const double kv = std::max(double(m_.kv_heads) / tp, 1.0);
      made = (heads + 2 * kv) * m_.head_dim;
      product(kProducts, tokens_, made, h);
    }
    product(kProducts, tokens_, h, heads * (m_.kv_lora ? m_.v_dim : m_.head_dim));
    rows(tokens_ * made * 2 * 2, tokens_ * made * 2 * 2);
  }

  void attention_core(bool windowed) {
    const double s = double(job_.seq_len), heads = double(m_.heads) / l_.tp;
    const double width = double(m_.q_width() + m_.v_width()) / l_.tp;
    if (!l_.fused_attention) {
      const double maps = l_.micro_batch * heads, head = width / heads / 2;
      const double products = product_seconds(c_, Precision::bf16, {s, s / l_.cp, head, maps}) +
          product_seconds(c_, Precision::bf16, {s / l_.cp, head, s, maps});
      const double pass = maps * s * s / l_.cp * 2 / c_.hbm();
      cost_.F[kAttention] += products + kScorePassesF * pass;
      cost_.I[kAttention] += 2 * products + kScorePassesB * pass;
      return;
    }
    const double reach = windowed ? std::min(double(m_.window), s / 2) : s / 2;
    const double flops = 2 * tokens_ * reach * width;
    const double ramp = 1 + c_.attention_half / s;
    cost_.F[kAttention] += flops / (c_.wide_peak() * c_.attention_f) * ramp;
    cost_.I[kAttention] += 2.5 * flops / (c_.wide_peak() * c_.attention_b) * ramp;
    if (l_.cp > 1) {
      const RankGroup group = rank_group(c_, l_.cp, l_.tp);
      const double kv = m_.kv_lora
          ? double(m_.kv_lora + m_.rope)
          : 2 * std::max(double(m_.kv_heads) / l_.tp, 1.0) * double(m_.head_dim);
      const double gather = gather_seconds(c_, group, tokens_ * l_.cp * kv * 2);
      cost_.F[kContext] += exposed_seconds(c_, gather, cost_.F[kAttention]);
      cost_.I[kContext] += exposed_seconds(c_, 2 * gather, cost_.I[kAttention]);
    }
  }

  // `count` of them, among which the tokens are divided.
  void mlp(Part part, double tokens, double width, double count = 1) {
    const double h = double(m_.hidden), up = m_.gated ? 2 : 1;
    product(part, tokens / count, up * width, h, count);
    product(part, tokens / count, h, width, count);
    rows(tokens * width * (up + 1) * 2, tokens * width * (2 * up + 1) * 2);
  }

  void experts() {
    const double h = double(m_.hidden), width = double(m_.expert_ffn) / l_.etp;
    // Tokens are spread over the ranks of tensor parallelism before they are dispatched.
    const double own = tokens_ / l_.tp, local = physical_experts(m_, l_) / l_.ep;
    const double copies = own * m_.topk * l_.etp * l_.imbalance;  // that this rank computes
    mlp(kExperts, copies, width, local);
    rows(copies * h * 4 * 2, copies * h * 4 * 2);  // permuted and back: read and written twice
    rows(own * m_.experts * 4 * 4, own * m_.experts * 4 * 4);  // the router's scores
    if (m_.shared_ffn) mlp(kExperts, tokens_, double(m_.shared_ffn) / l_.tp);

    const RankGroup group = rank_group(c_, l_.ep, l_.etp);
    const double domains = m_.topk_groups < m_.groups ? double(m_.topk_groups) : 0;
    double comm = 0;  // of F and of I each, before anything hides
    for (const double wide : {l_.precision > Precision::bf16 ? 1 : 2, 2})  // dispatch, combine
      comm += all_to_all_seconds(c_, group, own * l_.imbalance * (h * wide), m_.topk, domains);
    if (l_.etp > 1) comm += 2 * gather_seconds(c_, rank_group(c_, l_.etp, 1), copies * h * 2);
    cost_.F[kExpertComm] += comm;
    cost_.I[kExpertComm] += comm;
  }

  void tensor_comm() {
    const RankGroup group = rank_group(c_, l_.tp, 1);
    const double gather = gather_seconds(c_, group, tokens_ * m_.hidden * 2);
    const double again = l_.sequence_parallel == 1 ? 2 * gather : 0;
    const auto exposed = [&](double comm, const Parts& beside) {
      return l_.overlap_tp == 1 ? exposed_seconds(c_, comm, beside[kProducts] + beside[kExperts])
                                : comm;
    };
    cost_.F[kTensor] += exposed(4 * gather, cost_.F);
    // the products for weights, under which sums hide, follow only where B is in one piece
    cost_.I[kTensor] += splits_backward(l_)
        ? exposed(4 * gather + again, cost_.I)
        : exposed_seconds(c_, 4 * gather, cost_.W.sum()) + exposed(again, cost_.F);
  }

  void host(double more) {
    const auto wait = [&](Parts& parts, double kernels, double work) {
      const double launches = kernels * c_.launch_s;  // a core is its own host
      parts[kHost] += c_.core ? launches : std::max(0.0, launches - work);
    };
    const double i = cost_.I.sum(), w = cost_.W.sum();
    wait(cost_.F, kKernelsF + more, cost_.F.sum());
    if (!splits_backward(l_)) return wait(cost_.I, kKernelsI + kKernelsW + more, i + w);
    wait(cost_.I, kKernelsI + more, i);
    wait(cost_.W, kKernelsW, w);
  }

  void recompute() {
    if (l_.recompute == Recompute::full) {
      cost_.I.add(cost_.F);
    } else if (l_.recompute == Recompute::selective) {
      if (!l_.fused_attention) {
        cost_.I[kAttention] += cost_.F[kAttention];
      } else {  // norms, activations and the projections up from the latents
        cost_.I[kRows] += cost_.F[kRows];
        cost_.I[kProducts] += latents_up_;
      }
    }
  }

  const PlanJob& job_;
  const PlanModel& m_;
  const Cluster& c_;
  const PlanLayout& l_;
  double tokens_, rows_;   // of products; of row operations
  double latents_up_ = 0;  // of F: what selective recomputation repeats
  Cost cost_;
};

}  // namespace

double exposed_seconds(const Cluster& c, double comm, double work) {
  const double hides = std::min(comm * c.hidden, work);
  return comm - hides + hides * c.comm_sms / c.sms;
}

Cost layer_cost(const PlanJob& job, const PlanLayout& l, bool moe, bool windowed) {
  return LayerCost(job, l).make(moe, windowed);
}

Cost head_cost(const PlanJob& job, const PlanLayout& l) {
  const double tokens = tokens_of(job, l);
  const double h = double(job.model.hidden), vocab = double(job.model.vocab) / l.tp;
  const Precision p = l.precision == Precision::fp32 ? Precision::fp32 : Precision::bf16;
  Cost cost;
  cost.F[kHead] = product_seconds(job.cluster, p, {tokens, vocab, h});
  cost.I[kHead] = product_seconds(job.cluster, p, {tokens, h, vocab});
  cost.W[kHead] = product_seconds(job.cluster, p, {h, vocab, tokens, 1, 8});
  // logits to fp32, their maximum, sum and difference; backward once more and to 16 bits
  cost.F[kHead] += tokens * vocab * 14 / job.cluster.hbm();
  cost.I[kHead] += tokens * vocab * 8 / job.cluster.hbm();
  return cost;
}

}  // namespace duet
