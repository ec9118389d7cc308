// See cluster.h. A cluster of this machine.
#include "pipeline/insight/plan/cluster.h"

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
  Precision precision;
  Stream& stream() const { return device.compute(); }

  // What a fifth of the repetitions over a fifth of a second stay below: where something else runs
  // too, the median is not duet's.
  double seconds(const std::function<void()>& work) const {
    std::vector<double> times;
    for (double spent = 0; times.size() < 10 || spent < 0.2; spent += times.back()) {
      const double start = seconds_now();
      work(), stream().synchronize();
      times.push_back(seconds_now() - start);
    }
    const auto fifth = times.begin() + int(times.size()) / 5;
    std::nth_element(times.begin(), fifth, times.end());
    return *fifth;
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
  double tokens, in, out, segment, seconds = 0;

  Linear measured(const Bench& bench) const {
    const ModelConfig config;
    const Context context = bench.context(config, int64_t(tokens), int64_t(segment));
    Params params;
    const Param& w = params.matrix("w", int64_t(in), int64_t(out));
    params.allocate(bench.device, bench.dtype, 0);
    const Buf x = bench.zeros(context.tokens(), w.rows), y = bench.zeros(context.tokens(), w.cols);
    const double spent = bench.seconds([&] {
      linear_f(context, x, w, y);
      linear_i(context, y, w, x);
      linear_w(context, x, y, w);
    });
    return {tokens, in, out, segment, spent};
  }
  double predicted(const Cluster& c, Precision p) const {
    return product_seconds(c, p, {tokens, out, in}) + product_seconds(c, p, {tokens, in, out}) +
        weight_product_seconds(c, p, {in, out, tokens}, tokens / segment);
  }
  // What the time beyond arithmetic went into. c: whose memory takes no time yet.
  double bytes_per_second(Cluster c, Precision p) const {
    const double arithmetic = predicted(c, p);
    c.hbm_bytes_s = 1;
    return (predicted(c, p) - arithmetic) / std::max(seconds - arithmetic, seconds / 4);
  }
};

// A norm and an activation, forward and backward.
double rows_seconds(const Bench& bench, int64_t tokens, int64_t width) {
  const ModelConfig config;
  const Context context = bench.context(config, tokens, tokens);
  Params params;
  const Param& gain = params.vector("gain", width, Init::ones);
  params.allocate(bench.device, bench.dtype, 0);
  const Buf x = bench.zeros(tokens, width), y = bench.zeros(tokens, width),
            up = bench.zeros(tokens, width);
  return bench.seconds([&] {
    const Normed norm = norm_f(context, x, gain);
    norm_i(context, norm, gain, x, y);
    norm_w(context, norm, x, gain);
    launch<SwigluF>(bench.stream(), tokens, {.x = x, .up = up, .act = y});
    launch<SwigluI>(bench.stream(), tokens, {.x = x, .up = up, .act = y});
  });
}
// Their bytes for an element, as costs.cpp counts them, and their kernels.
constexpr double kRowBytes = 2 * (2 + 3 + 3 + 5), kRowKernels = 6;

// The optimizer and what belongs to it, seconds a parameter; and the bytes that it moves, with fp64
// gradients and a working copy in bf16.
constexpr double kOptimizerBytes = kHeldGradients * 8 + kOwnUpdatedBytes + 2;
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

// peak, k_half and tail_waves with which product_seconds comes closest to what is measured.
void fit_products(const Bench& bench, Cluster& c) {
  std::vector<Linear> linears = {{2048, 256, 512, 128}, {512, 512, 512, 128}, {512, 512, 512, 16},
      {256, 256, 256, 8}, {256, 512, 64, 128}, {128, 64, 256, 128}, {64, 128, 128, 64},
      {32, 128, 64, 16}};
  const double unit = c.core ? 1 : 16;
  for (Linear& l : linears)
    l = Linear{l.tokens * unit, l.in * unit, l.out * unit, l.segment}.measured(bench);
  const size_t p = size_t(bench.precision);
  double best = INFINITY;
  for (double tail = 0; tail < (c.core ? 0.01 : 1); tail += 0.02)
    for (double k_half = 0; k_half <= 512; k_half += std::max(2.0, k_half / 8))
      for (double peak = 1e9; peak < 1e16; peak *= 1.02) {
        Cluster tried = c;
        tried.tail_waves = tail, tried.k_half = k_half;
        tried.efficiency[p] = 1, tried.peak[p] = peak;
        double off = 0;
        for (const Linear& l : linears)
          off += std::pow(std::log(l.predicted(tried, bench.precision) / l.seconds), 2);
        if (off < best) best = off, c = tried;
      }
}

// Forward and backward of causal attention, without its products with weights.
std::pair<double, double> attention_seconds(
    const Bench& bench, const Cluster& c, const ModelConfig& config, int64_t seq_len) {
  const Context context = bench.context(config, seq_len, seq_len);
  Params params;
  const Attention attention(context, params, "");
  params.allocate(bench.device, bench.dtype, 0);
  const Buf x = bench.zeros(seq_len, config.d_model);
  Attention::Saved saved;
  const double forward = bench.seconds([&] { attention.forward(saved, x); });
  const double both = bench.seconds([&] {
    attention.forward(saved, x);
    attention.backward_input(saved, x);
  });
  double products = 0;
  for (const Param& w : params.all())
    if (w.rows > 1)
      products +=
          product_seconds(c, bench.precision, {double(seq_len), double(w.cols), double(w.rows)});
  const auto beside = [&](double seconds) { return std::max(seconds - products, seconds / 4); };
  return {beside(forward), beside(both - forward)};
}

// What of the peak it reaches, and the tokens at which it reaches half of that: its time is taken
// as flops (1 + half / seq_len), of two lengths.
void measure_attention(const Bench& bench, double seq_len, Cluster& c) {
  ModelConfig config;
  config.d_model = config.kv_lora_rank = 16, config.n_heads = 8;
  const double shorter = seq_len / 4;
  const auto [f_short, b_short] = attention_seconds(bench, c, config, int64_t(shorter));
  const auto [f, b] = attention_seconds(bench, c, config, int64_t(seq_len));
  const double slower = std::clamp(16 * (f_short + b_short) / (f + b), 1.0, 3.9);
  c.attention_half = (slower - 1) / (1 / shorter - slower / seq_len);
  const double flops = seq_len * seq_len * double(config.n_heads) *
      double(config.qk_head_dim() + config.v_head_dim) * (1 + c.attention_half / seq_len);
  c.attention_f = std::clamp(flops / (c.wide_peak() * f), 0.01, 1.0);
  c.attention_b = std::clamp(2.5 * flops / (c.wide_peak() * b), 0.01, 1.0);
}

// What a core does beside products and attention.
void measure_core(const Bench& bench, Cluster& c) {
  const double launches = rows_seconds(bench, 1, 1), rows = rows_seconds(bench, 128, 128);
  c.launch_s = (Linear{1, 1, 1, 1}.measured(bench).seconds + launches) / (3 + kRowKernels);
  c.row_bytes_s = 128 * 128 * kRowBytes / (rows - launches);
  c.cache_bytes = last_cache();
  const auto fetching = [&](double bytes) {  // a matrix and its gradients, of 12 bytes
    const double side = std::floor(std::sqrt(bytes / 12));
    return Linear{16, side, side, 16}.measured(bench).bytes_per_second(c, bench.precision);
  };
  c.hbm_bytes_s = fetching(std::max(3 * c.cache_bytes, 48e6));
  // beside other work a cache may seem slower than memory
  c.cache_bytes_s = std::max(c.hbm_bytes_s, fetching(c.cache_bytes / c.gpus_per_node / 4));
  c.nvlink_bytes_s = c.network_bytes_s = c.hbm_bytes_s / 2;
}

// What a GPU does beside products and attention.
void measure_gpu(const Bench& bench, Cluster& c) {
  c.hbm_bytes_s = kOptimizerBytes / optimizer_seconds(bench, 64 << 20);
  // an H100's, as far as this memory could feed them
  c.nvlink_bytes_s = std::min(c.nvlink_bytes_s, c.hbm_bytes_s / 4);
  c.network_bytes_s = std::min(c.network_bytes_s, c.nvlink_bytes_s / 4);
  const Buf to = bench.zeros(1, 64);
  c.launch_s = bench.seconds([&] {
    for (int i = 0; i < 100; ++i) bench.stream().zero(to->data, 64);
  }) / 100;
}

}  // namespace

Cluster measure_cluster() {
  const bool cuda = cuda_device_count() > 0;
  const auto device = cuda ? make_cuda_device(0) : make_cpu_device(1);
  const Bench bench{
      *device, cuda ? Dtype::bf16 : Dtype::f32, cuda ? Precision::bf16 : Precision::fp32};
  Cluster c = find_cluster("h100");
  c.name = device->name(), c.source = "measured by duet plan --measure";
  c.peak.fill(0);
  c.hbm_efficiency = 1;
  if (cuda) {
    measure_gpu(bench, c);
  } else {  // its host is itself, and what is repeated is in its caches
    c.core = true, c.sms = 1, c.comm_sms = 0, c.hidden = 0, c.other = 0;
    c.gpus_per_node = c.nvlink_domain = usable_cores();
    c.memory_bytes = usable_memory() / c.gpus_per_node;
    c.reserved_bytes = 0, c.fragmentation = 0, c.hbm_bytes_s = INFINITY;
    c.nvlink_efficiency = c.network_efficiency = 1;
    c.nvlink_latency_s = c.network_latency_s = 20e-6;
  }
  fit_products(bench, c);
  measure_attention(bench, cuda ? 2048 : 256, c);
  if (!cuda) measure_core(bench, c);
  return c;
}

}  // namespace duet
