// What the tests of CUDA share: the same inputs, made from a seed, go to the CPU and to the GPU;
// results agree within rounding, and on CUDA in every bit from run to run. Without a GPU these
// tests are skipped and say so.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include "model/machine/launch.h"

namespace duet {

// Tensors on a device, and their contents at the end. The n-th tensor has the same contents on
// every device.
class Rig {
 public:
  // `rounded`: the values of real() are bf16 numbers, whatever type holds them.
  Rig(Device& device, Dtype dtype, bool rounded)
      : device_(device), dtype_(dtype), rounded_(rounded) {}
  Device& device() { return device_; }
  Stream& stream() { return device_.compute(); }

  Tensor real(int64_t rows, int64_t cols, double low = -1, double high = 1) {
    return make(dtype_, rows, cols, low, high, rounded_);
  }
  Tensor acc(int64_t rows, int64_t cols, double low = -1, double high = 1) {
    return make(acc_dtype(dtype_), rows, cols, low, high, false);
  }
  Tensor f64(int64_t rows, int64_t cols) { return make(Dtype::f64, rows, cols, -1, 1, false); }
  // Integers 0 .. below-1; or, where below is 0, a permutation.
  Tensor ints(int64_t rows, int64_t cols, int below) {
    std::vector<int32_t> values(size_t(rows * cols));
    std::mt19937 random(uint32_t(tensors_.size()));
    std::iota(values.begin(), values.end(), 0);
    if (below == 0)
      std::shuffle(values.begin(), values.end(), random);
    else
      for (int32_t& v : values) v = int32_t(random() % uint32_t(below));
    return ints(values).reshape(rows, cols);
  }
  Tensor ints(const std::vector<int32_t>& values) {
    Tensor t = add(Dtype::i32, int64_t(values.size()), 1);
    stream().copy(t.data, values.data(), values.size() * 4);
    return t;
  }

  std::vector<std::vector<double>> results() {
    std::vector<std::vector<double>> all;
    for (const Buf& t : tensors_) {
      Buf host = device_.host_buffer(t->rows, t->cols, t->dtype);
      stream().copy(host->data, t->data, size_t(t->bytes()));
      stream().synchronize();
      auto& values = all.emplace_back();
      for (int64_t i = 0; i < t->size(); i++)
        values.push_back(t->dtype == Dtype::f64 ? host->row<double>(0)[i]
                : t->dtype == Dtype::f32        ? double(host->row<float>(0)[i])
                : t->dtype == Dtype::bf16       ? double(float(host->row<bf16>(0)[i]))
                                                : double(host->row<int32_t>(0)[i]));
    }
    return all;
  }

 private:
  Tensor add(Dtype dtype, int64_t rows, int64_t cols) {
    return tensors_.emplace_back(device_.buffer(rows, cols, dtype, Use::scratch));
  }
  Tensor make(Dtype dtype, int64_t rows, int64_t cols, double low, double high, bool rounded) {
    std::mt19937 random(uint32_t(tensors_.size()));
    std::uniform_real_distribution<float> uniform{float(low), float(high)};
    Buf host = device_.host_buffer(rows, cols, dtype);
    for (int64_t i = 0; i < host->size(); i++) {
      const float x = uniform(random), y = rounded ? float(bf16(x)) : x;
      if (dtype == Dtype::f64)
        host->row<double>(0)[i] = y;
      else if (dtype == Dtype::f32)
        host->row<float>(0)[i] = y;
      else
        host->row<bf16>(0)[i] = bf16(y);
    }
    Tensor t = add(dtype, rows, cols);
    stream().copy(t.data, host->data, size_t(host->bytes()));
    stream().synchronize();
    return t;
  }

  Device& device_;
  Dtype dtype_;
  bool rounded_;
  std::vector<Buf> tensors_;
};

struct Cuda : testing::Test {
  std::unique_ptr<Device> cpu = make_cpu_device(2), gpu;
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU on this machine, or a build without CUDA";
    gpu = make_cuda_device(0);
  }

  // A product of fp32 or fp64, in every bit, where the CPU has fused multiply-adds as all GPUs
  // have.
  void expect_product(Dtype dtype, const std::function<void(Rig&)>& work) {
#if defined(__FMA__) || defined(__aarch64__)
    if (dtype != Dtype::bf16) return expect_same(dtype, work, 0);
#endif
    expect_same(dtype, work);
  }
  void expect_same(Dtype dtype, const std::function<void(Rig&)>& work) {
    // of a tensor's largest element
    expect_same(dtype, work, dtype == Dtype::bf16 ? 2e-2 : dtype == Dtype::f64 ? 1e-12 : 2e-5);
  }

 private:
  // The CPU has no bf16: there it computes in fp32 from the same inputs.
  void expect_same(Dtype dtype, const std::function<void(Rig&)>& work, double tolerance) {
    const bool half = dtype == Dtype::bf16;
    const auto run = [&](Device& device, Dtype t) {
      Rig rig(device, t, half);
      work(rig);
      return rig.results();
    };
    const auto expected = run(*cpu, half ? Dtype::f32 : dtype), found = run(*gpu, dtype);
    ASSERT_EQ(found.size(), expected.size());
    for (size_t t = 0; t < found.size(); t++) {
      double largest = 0;
      for (double x : expected[t]) largest = std::max(largest, std::abs(x));
      for (size_t i = 0; i < found[t].size(); i++)
        ASSERT_LE(std::abs(found[t][i] - expected[t][i]), tolerance * largest)
            << dtype_name(dtype) << ", tensor " << t << ", element " << i << ": found "
            << found[t][i] << ", on the CPU " << expected[t][i];
    }
    EXPECT_EQ(run(*gpu, dtype), found) << dtype_name(dtype) << ": other bits when run again";
  }
};

}  // namespace duet
