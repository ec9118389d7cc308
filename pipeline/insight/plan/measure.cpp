// See measure.h.
#include "pipeline/insight/plan/measure.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "model/attention.h"
#include "model/base/clock.h"
#include "model/machine/launch.h"
#include "model/machine/limits.h"
#include "model/rows/swiglu.h"
#include "pipeline/insight/plan/predict.h"

namespace duet {
namespace {

// What is measured on: parts of a model, at sizes of their own.
struct Bench {
  Device& device;
  Dtype dtype;
  Stream& stream() const { return device.compute(); }

  // The median of repetitions over a tenth of a second.
  double seconds(const std::function<void()>& work) const {
    std::vector<double> times;
    for (double spent = 0; times.size() < 5 || spent < 0.1; spent += times.back()) {
      const double start = seconds_now();
      work(), stream().synchronize();
      times.push_back(seconds_now() - start);
    }
    std::nth_element(times.begin(), times.begin() + int(times.size()) / 2, times.end());
    return times[times.size() / 2];
  }
  // of sequences of at most `seq_len` tokens
  Context context(const ModelConfig& config, int64_t tokens, int64_t seq_len) const {
    seq_len = std::min(tokens, seq_len);
    return {device, config, dtype, seq_len, tokens / seq_len};
  }
  Buf zeros(int64_t rows, int64_t cols) const {
    Buf buf = device.buffer(rows, cols, dtype, Use::scratch);
    stream().zero(buf->data, size_t(buf->bytes()));
    return buf;
  }
};

// A linear layer: tokens x in -> out, with its two backward products, the last one cut into sums
// over so many tokens.
struct Linear {
  double tokens, in, out, segment, seconds = INFINITY;
  double predicted(const Cluster& c, Precision p) const {
    return product_seconds(c, p, tokens, out, in) + product_seconds(c, p, tokens, in, out) +
        weight_product_seconds(c, p, in, out, tokens, 1, tokens / segment);
  }
  // What the time beyond arithmetic went into. c: whose memory takes no time yet.
  double bytes_per_second(Cluster c, Precision p) const {
    const double arithmetic = predicted(c, p);
    c.hbm_bytes_s = 1;
    return (predicted(c, p) - arithmetic) / std::max(seconds - arithmetic, seconds / 4);
  }
};

double linear_seconds(const Bench& bench, const Linear& l) {
  const int64_t tokens = int64_t(l.tokens), in = int64_t(l.in), out = int64_t(l.out);
  const ModelConfig config;
  const Context context = bench.context(config, tokens, int64_t(l.segment));
  Params params;
  const Param& w = params.matrix("w", in, out);
  params.allocate(bench.device, bench.dtype, 0);
  const Buf x = bench.zeros(tokens, in), y = bench.zeros(tokens, out);
  return bench.seconds([&] {
    linear_f(bench.stream(), x, w, y);
    linear_i(bench.stream(), y, w, x);
    linear_w(context, x, y, w);
  });
}

// A norm and an activation, forward and backward.
double rows_seconds(const Bench& bench, int64_t tokens, int64_t width) {
  const ModelConfig config;
  const Context context = bench.context(config, tokens, tokens);
  Params params;
  const Param& gain = params.vector("gain", width, Init::ones);
  params.allocate(bench.device, bench.dtype, 0);
  const Buf x = bench.zeros(tokens, width), y = bench.zeros(tokens, width);
  const Buf up = bench.zeros(tokens, width);
  return bench.seconds([&] {
    const Normed norm = norm_f(context, x, gain);
    norm_i(context, norm, gain, x, y);
    norm_w(context, norm, x, gain);
    launch<SwigluF>(bench.stream(), tokens, {.x = x, .up = up, .act = y});
    launch<SwigluB>(bench.stream(), tokens, {.x = x, .up = up, .act = y});
  });
}
// Their bytes for an element, as costs.cpp counts them, and their kernels.
constexpr double kRowBytes = 2 * (2 + 3 + 3 + 5), kRowKernels = 6;

// The optimizer and what belongs to it, seconds a parameter.
double optimizer_seconds(const Bench& bench, int64_t parameters) {
  Params params;
  params.matrix("w", parameters >> 10, 1 << 10);
  params.allocate(bench.device, bench.dtype, 0);
  return bench.seconds([&] {
    params.zero_grad(bench.stream());
    params.look(bench.stream(), Params::Look::finished);
    params.adamw(bench.stream(), {}, 1, 1);
  }) / double(parameters);
}

// peak, k_half and tail_waves with which product_seconds comes closest to what was measured.
void fit_products(Cluster& c, Precision p, const std::vector<Linear>& measured) {
  double best = 1e30;
  for (double tail = 0; tail < (c.core ? 0.01 : 1); tail += 0.02)
    for (double k_half = 0; k_half <= 512; k_half += std::max(2.0, k_half / 8)) {
      Cluster tried = c;
      tried.tail_waves = tail, tried.k_half = k_half, tried.efficiency[size_t(p)] = 1;
      for (double peak = 1e9; peak < 1e16; peak *= 1.02) {
        tried.peak[size_t(p)] = peak;
        double off = 0;
        for (const Linear& l : measured)
          off += std::pow(std::log(l.predicted(tried, p) / l.seconds), 2);
        if (off < best) best = off, c = tried;
      }
    }
}

// Forward and backward of causal attention, without its products with weights.
struct AttentionSeconds {
  double f, b;
};
AttentionSeconds attention_seconds(
    const Bench& bench, const Cluster& c, Precision p, const ModelConfig& config, int64_t seq_len) {
  const Context context = bench.context(config, seq_len, seq_len);
  Params params;
  const Attention attention(context, params, "");
  params.allocate(bench.device, bench.dtype, 0);
  const Buf x = bench.zeros(seq_len, config.d_model);
  Attention::Saved saved;
  double forward = INFINITY, both = INFINITY;
  for (int round = 0; round < 2; ++round) {  // the better one
    forward = std::min(forward, bench.seconds([&] { attention.forward(saved, x); }));
    both = std::min(both, bench.seconds([&] {
      attention.forward(saved, x);
      attention.backward_input(saved, x);
    }));
  }
  double products = 0;
  for (const Param& w : params.all())
    if (w.rows > 1)
      products += product_seconds(c, p, double(seq_len), double(w.cols), double(w.rows));
  const auto beside = [&](double seconds) { return std::max(seconds - products, seconds / 4); };
  return {beside(forward), beside(both - forward)};
}

// What of the peak it reaches, and the tokens at which it reaches half of that: its time is taken
// as flops (1 + half / seq_len), of two lengths.
void measure_attention(const Bench& bench, Precision p, double seq_len, Cluster& c) {
  ModelConfig config;
  config.d_model = config.kv_lora_rank = 16, config.n_heads = 8;
  const double shorter = seq_len / 4;
  const AttentionSeconds of_short = attention_seconds(bench, c, p, config, int64_t(shorter)),
                         of_long = attention_seconds(bench, c, p, config, int64_t(seq_len));
  const double slower = 16 * (of_short.f + of_short.b) / (of_long.f + of_long.b);
  c.attention_half =
      std::clamp(slower < 4 ? (slower - 1) / (1 / shorter - slower / seq_len) : 8192, 0.0, 8192.0);
  const double flops = seq_len * seq_len * double(config.n_heads) *
      double(config.qk_head_dim() + config.v_head_dim) * (1 + c.attention_half / seq_len);
  const auto fraction = [&](double work, double seconds) {
    return std::clamp(work * flops / (c.wide_peak() * seconds), 0.01, 1.0);
  };
  c.attention_f = fraction(1, of_long.f), c.attention_b = fraction(2.5, of_long.b);
}

}  // namespace

Cluster measure_cluster() {
  const bool cuda = cuda_device_count() > 0;
  const auto device = cuda ? make_cuda_device(0) : make_cpu_device(1);
  const Bench bench{*device, cuda ? Dtype::bf16 : Dtype::f32};
  const Precision p = cuda ? Precision::bf16 : Precision::fp32;
  const double unit = cuda ? 16 : 1;  // of sizes
  std::vector<Linear> linears = {{2048, 256, 512, 128}, {512, 512, 512, 128}, {512, 512, 512, 16},
      {256, 256, 256, 8}, {256, 512, 64, 128}, {128, 64, 256, 128}, {64, 128, 128, 64},
      {32, 128, 64, 16}};
  // Matrices and gradients (12 bytes) of a quarter of a core's share of the last cache, and of
  // three times as much as all of it.
  const double cache = cuda ? 0 : last_cache(), cores = usable_cores();
  const double within = std::sqrt(cache / cores / 48), beyond = std::sqrt(std::max(8e6, cache / 4));
  Linear warm{16, std::floor(within), std::floor(within), 16};
  Linear cold{16, std::floor(beyond), std::floor(beyond), 16};
  Linear least{1, 1, 1, 1};
  double rows = INFINITY, launches = INFINITY;  // seconds
  double memory = 0;                            // bytes a second
  for (Linear& l : linears) l.tokens *= unit, l.in *= unit, l.out *= unit;
  for (int round = 0; round < 2; ++round) {  // the better one, where something else ran
    for (Linear& l : linears) l.seconds = std::min(l.seconds, linear_seconds(bench, l));
    if (cuda) memory = std::max(memory, kOptimizerBytes / optimizer_seconds(bench, 64 << 20));
    if (cuda) continue;
    cold.seconds = std::min(cold.seconds, linear_seconds(bench, cold));
    warm.seconds = std::min(warm.seconds, linear_seconds(bench, warm));
    least.seconds = std::min(least.seconds, linear_seconds(bench, least));
    rows = std::min(rows, rows_seconds(bench, 128, 128));
    launches = std::min(launches, rows_seconds(bench, 1, 1));
  }

  Cluster c = find_cluster("h100");
  c.name = device->name(), c.source = "measured by duet plan --measure";
  std::fill(c.peak.begin(), c.peak.end(), 0.0);
  c.hbm_efficiency = 1;
  if (!cuda) {  // its host is itself
    c.core = true, c.sms = 1, c.comm_sms = 0, c.hidden = 0, c.other = 0, c.launch_s = 0;
    c.gpus_per_node = c.nvlink_domain = usable_cores();
    c.memory_bytes = usable_memory() / c.gpus_per_node;
    c.reserved_bytes = 0, c.fragmentation = 0;
    c.nvlink_efficiency = c.network_efficiency = 1;
    c.nvlink_latency_s = c.network_latency_s = 20e-6;
  }
  c.hbm_bytes_s = cuda ? memory : INFINITY;  // what is repeated on a core is in its caches
  fit_products(c, p, linears);
  measure_attention(bench, p, cuda ? 2048 : 256, c);
  if (!cuda) {
    c.launch_s = (least.seconds + launches) / (3 + kRowKernels);
    c.row_bytes_s = 128 * 128 * kRowBytes / (rows - launches);
    c.cache_bytes = cache, c.cache_bytes_s = warm.bytes_per_second(c, p);
    c.hbm_bytes_s = cold.bytes_per_second(c, p);
    c.nvlink_bytes_s = c.network_bytes_s = c.hbm_bytes_s / 2;
  } else {
    const Buf to = bench.zeros(1, 64);
    c.launch_s = bench.seconds([&] {
      for (int i = 0; i < 100; ++i) bench.stream().zero(to->data, 64);
    }) / 100;
  }
  return c;
}

}  // namespace duet
