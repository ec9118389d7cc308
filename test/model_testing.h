// What the tests of the model's parts share: a part on a CPU device with parameters of a size at
// which everything matters (the model's own initial values are so small that attention would be
// almost uniform), and the check of gradients.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include "model/context.h"
#include "model/machine/launch.h"
#include "moe/eplb.h"

namespace duet {

// Odd and different from each other, so that a wrong size or stride shows.
inline ModelConfig small_config() {
  return {.vocab_size = 13,
      .d_model = 10,
      .n_layers = 2,
      .n_heads = 3,
      .q_lora_rank = 6,
      .kv_lora_rank = 7,
      .qk_nope_head_dim = 5,
      .qk_rope_head_dim = 4,
      .v_head_dim = 3,
      .rope_theta = 100,
      .first_k_dense = 1,
      .d_ff = 9,
      .d_expert = 5,
      .n_shared = 2,
      .n_routed = 6,
      .topk = 2,
      .n_group = 3,
      .topk_group = 2,
      .routed_scaling = 1.5};
}

// Every expert once, in order, on one rank.
inline ExpertPlacement each_expert_once(const ModelConfig& c) {
  std::vector<int32_t> slots(size_t(c.n_routed));
  std::iota(slots.begin(), slots.end(), 0);
  return ExpertPlacement(slots, int(c.n_routed), 1);
}

struct Bench {
  ModelConfig config;
  Dtype dtype;
  std::unique_ptr<Device> device;
  Params params;
  Context context;
  std::mt19937_64 rng{7};

  Bench(const ModelConfig& c, int64_t seq_len, int64_t sequences, Dtype t = Dtype::f64,
      int threads = 1)
      : config(c), dtype(t), device(make_cpu_device(threads)), context{.device = *device,
                                                                   .config = config,
                                                                   .dtype = dtype,
                                                                   .seq_len = seq_len,
                                                                   .sequences = sequences} {
    config.validate();
  }

  double normal() { return std::normal_distribution<double>()(rng); }
  static double get(const Tensor& t, int64_t r, int64_t c = 0) {
    return t.dtype == Dtype::f64 ? t.row<double>(r)[c] : double(t.row<float>(r)[c]);
  }
  static void set(const Tensor& t, int64_t r, int64_t c, double value) {
    if (t.dtype == Dtype::f64)
      t.row<double>(r)[c] = value;
    else
      t.row<float>(r)[c] = float(value);
  }
  void fill(const Tensor& t, double scale, double shift = 0) {
    for (int64_t r = 0; r < t.rows; ++r)
      for (int64_t c = 0; c < t.cols; ++c) set(t, r, c, shift + scale * normal());
  }
  Buf random(int64_t rows, int64_t cols, double scale = 1) {
    Buf buf = device->buffer(rows, cols, dtype, Use::activations);
    fill(buf, scale);
    return buf;
  }
  Buf copy(const Tensor& t) {
    Buf buf = device->buffer(t.rows, t.cols, t.dtype, Use::activations);
    memcpy(buf->data, t.data, size_t(t.bytes()));
    return buf;
  }
  // Memory for the declared parameters, and values of order one for what passes through them.
  void allocate() {
    params.allocate(*device, dtype, 1);
    for (Param& p : params.all()) {
      if (!p.trained)
        fill(p.master, 0.05);
      else if (p.init == Init::ones)
        fill(p.master, 0.3, 1);
      else
        fill(p.master, 1.5 / std::sqrt(double(p.rows)));
    }
    params.masters_changed(device->compute());
  }
  const Tensor& weight(const std::string& name) const {
    for (const Param& p : params.all())
      if (p.name == name) return p.weight;
    throw Error(cat("no parameter ", name));
  }
  static double dot(const Tensor& a, const Tensor& b) {
    double sum = 0;
    for (int64_t r = 0; r < a.rows; ++r)
      for (int64_t c = 0; c < a.cols; ++c) sum += get(a, r, c) * get(b, r, c);
    return sum;
  }
};

// What a part does with one microbatch, as check_gradients wants it.
struct Differentiable {
  std::function<double()> objective;  // F, with the present input and parameters
  std::function<Buf()> backward;      // F, I, and W; the input's gradient, or an empty Buf
};

// Compares the gradient of each element (of at most `sample` in each tensor) with the central
// difference of the objective.
inline void check_tensor(const Tensor& value, const Tensor& grad, const std::string& name,
    const Differentiable& part, int64_t sample) {
  constexpr double kStep = 1e-5;
  double largest = 0;
  for (int64_t i = 0; i < grad.size(); ++i)
    largest = std::max(largest, std::abs(grad.row<double>(0)[i]));
  EXPECT_GT(largest, 1e-4) << name << ": no gradient to speak of";
  const int64_t stride = std::max<int64_t>(1, value.size() / sample);
  for (int64_t i = 0; i < value.size(); i += stride) {
    double& x = value.row<double>(0)[i];
    const double old = x;
    x = old + kStep;
    const double above = part.objective();
    x = old - kStep;
    const double below = part.objective();
    x = old;
    ASSERT_NEAR(grad.row<double>(0)[i], (above - below) / (2 * kStep), 1e-6 * largest)
        << name << ", element " << i;
  }
}

inline void check_gradients(
    Bench& b, const Tensor& x, const Differentiable& part, int64_t sample = 1000) {
  b.params.zero_grad(b.device->compute());
  const Buf dx = part.backward();
  if (dx) check_tensor(x, dx, "input", part, sample);
  std::vector<std::vector<double>> once;
  for (Param& p : b.params.all()) {
    once.emplace_back(p.grad.row<double>(0), p.grad.row<double>(0) + p.grad.size());
    if (p.trained) check_tensor(p.master, p.grad, p.name, part, sample);
  }
  part.backward();
  for (size_t k = 0; k < once.size(); ++k)  // W adds (exactly, below 8; some are above)
    for (size_t i = 0; i < once[k].size(); ++i)
      ASSERT_NEAR(b.params.all()[k].grad.get(int64_t(i)), 2 * once[k][i],
          std::abs(once[k][i]) < 1 ? 0 : 1e-12 * std::abs(once[k][i]))
          << b.params.all()[k].name;
}

}  // namespace duet
