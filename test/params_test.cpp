// Params: initial values by name, the squares of gradients, AdamW against the
// published update.
#include "model/param.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace duet {
namespace {

std::vector<double> values(const Tensor& t) {
  std::vector<double> v;
  for (int64_t i = 0; i < t.size(); ++i) v.push_back(t.get(i));
  return v;
}

// A matrix of more than one block, a gain, a state that is not trained, a table.
void declare(Params& params) {
  params.matrix("a.weight", 90, 50);
  params.vector("norm.weight", 33, Init::ones);
  params.vector("state", 7, Init::zeros, false);
  params.table("table", 11, 5);
}

TEST(Params, InitialValuesAreAFunctionOfSeedNameAndIndex) {
  auto device = make_cpu_device(1);
  Params params, other, reseeded;
  declare(params);
  params.allocate(*device, Dtype::f64, 5);
  other.vector("something.else", 1000, Init::normal);
  Param& table = other.table("table", 11, 5);
  Param& matrix = other.matrix("a.weight", 90, 50);
  other.allocate(*device, Dtype::f32, 5);
  declare(reseeded);
  reseeded.allocate(*device, Dtype::f64, 6);
  for (int64_t i = 0; i < 90 * 50; ++i) {
    ASSERT_EQ(params.all()[0].weight.get(i), InitialNormal(5, "a.weight")(i));
    ASSERT_EQ(matrix.weight.get(i), float(InitialNormal(5, "a.weight")(i)));
  }
  for (int64_t i = 0; i < 55; ++i)
    ASSERT_EQ(table.weight.get(i), float(params.all()[3].weight.get(i)));
  EXPECT_EQ(values(params.all()[1].weight), std::vector<double>(33, 1));
  EXPECT_EQ(values(params.all()[2].weight), std::vector<double>(7, 0));
  EXPECT_NE(values(params.all()[0].weight), values(reseeded.all()[0].weight));
  EXPECT_NE(InitialNormal(5, "a.weight")(0), InitialNormal(5, "b.weight")(0));
}

TEST(Params, InitialValuesAreNormal) {
  constexpr int kCount = 200000;
  double sum = 0, squares = 0, within = 0, neighbours = 0, last = 0;
  for (int i = 0; i < kCount; ++i) {
    const double x = InitialNormal(1, "w")(i) / 0.02;
    sum += x, squares += x * x, within += std::abs(x) < 1, neighbours += x * last;
    last = x;
  }
  EXPECT_NEAR(sum / kCount, 0, 0.01);
  EXPECT_NEAR(squares / kCount, 1, 0.015);
  EXPECT_NEAR(within / kCount, 0.6827, 0.005);
  EXPECT_NEAR(neighbours / kCount, 0, 0.01);
}

void random_gradients(Params& params, unsigned seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<double> normal;
  for (Param& p : params.all())
    for (int64_t i = 0; i < p.grad.size(); ++i) p.grad.set(i, normal(rng));
}

TEST(Params, InitialValuesDoNotDependOnThreads) {
  const auto values = [](int threads) {
    auto device = make_cpu_device(threads);
    Params params;
    const Param& a = params.matrix("a.weight", 2049, 2050);  // made in two parts
    params.allocate(*device, Dtype::f32, 1);
    return std::vector<float>(a.weight.row<float>(0), a.weight.row<float>(0) + a.weight.size());
  };
  const std::vector<float> one = values(1);
  EXPECT_EQ(one.back(), float(InitialNormal(1, "a.weight")(int64_t(one.size()) - 1)));
  EXPECT_TRUE(values(3) == one);
}

TEST(Params, SumsSquaresOfTheRoundedGradient) {
  auto device = make_cpu_device(2);
  Params params;
  declare(params);
  params.allocate(*device, Dtype::f32, 1);
  random_gradients(params, 3);
  std::vector<std::vector<float>> expected;
  for (const Param& p : params.all()) {
    expected.emplace_back();
    for (int64_t i = 0; i < p.grad.size(); ++i) expected.back().push_back(float(p.grad.get(i)));
  }
  params.look(device->compute(), Params::Look::finished);
  const std::vector<double> squares = params.squares();
  ASSERT_EQ(squares.size(), 3u);  // of the trained ones, in order of declaration
  const size_t trained[] = {0, 1, 3};
  for (size_t j = 0; j < 3; ++j) {
    const size_t k = trained[j];
    double sum = 0;
    for (float x : expected[k]) sum += double(x) * x;
    EXPECT_NEAR(squares[j], sum, 1e-12 * sum);
  }
  float largest = 0;
  for (const std::vector<float>& gradient : expected)
    for (float x : gradient) largest = std::max(largest, std::abs(x));
  EXPECT_EQ(params.largest_gradient(), largest);

  params.zero_grad(device->compute());
  params.look(device->compute(), Params::Look::finished);
  EXPECT_EQ(params.squares(), std::vector<double>(3, 0));
  EXPECT_EQ(params.largest_gradient(), 0);
  random_gradients(params, 3);
  params.look(device->compute(), Params::Look::before);
  EXPECT_EQ(params.squares(), std::vector<double>(3, 0)) << "of the finished gradient";
  EXPECT_EQ(params.largest_gradient(), largest) << "of either";
}

TEST(Params, SquaresDoNotDependOnWhatElseIsDeclaredNorOnThreads) {
  const auto squares_of_a = [](int before, int threads) {
    auto device = make_cpu_device(threads);
    Params params;
    for (int i = 0; i < before; ++i) params.vector(cat("v", i), 77, Init::zeros);
    Param& a = params.matrix("a.weight", 190, 50);
    params.allocate(*device, Dtype::f32, 1);
    for (int64_t i = 0; i < a.grad.size(); ++i) a.grad.set(i, InitialNormal(1, "gradient")(i));
    params.look(device->compute(), Params::Look::finished);
    return params.squares().back();
  };
  const double expected = squares_of_a(0, 1);
  EXPECT_EQ(squares_of_a(3, 1), expected);
  EXPECT_EQ(squares_of_a(40, 2), expected);
}

// Algorithm 2 of Loshchilov and Hutter, element by element in double.
struct NaiveAdamW {
  std::vector<double> w, m, v;
  void step(const std::vector<double>& g, const AdamWOptions& o, double decay, int t) {
    m.resize(w.size()), v.resize(w.size());
    for (size_t i = 0; i < w.size(); ++i) {
      m[i] = o.beta1 * m[i] + (1 - o.beta1) * g[i];
      v[i] = o.beta2 * v[i] + (1 - o.beta2) * g[i] * g[i];
      const double m_hat = m[i] / (1 - std::pow(o.beta1, t)),
                   v_hat = v[i] / (1 - std::pow(o.beta2, t));
      w[i] -= o.lr * (m_hat / (std::sqrt(v_hat) + o.eps) + decay * w[i]);
    }
  }
};

TEST(Params, AdamWOverThreeSteps) {
  for (Dtype dtype : {Dtype::f64, Dtype::f32}) {
    auto device = make_cpu_device(1);
    Stream& stream = device->compute();
    Params params;
    declare(params);
    params.allocate(*device, dtype, 1);
    for (int64_t i = 0; i < 7; ++i) params.all()[2].master.set(i, 0.25);
    std::vector<NaiveAdamW> naive;
    for (const Param& p : params.all()) naive.push_back({values(p.weight), {}, {}});
    const AdamWOptions options{
        .lr = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.3};
    for (int t = 1; t <= 3; ++t) {
      random_gradients(params, unsigned(t));
      const double clip = 0.5 / t;
      for (size_t k : {0, 1, 3}) {
        std::vector<double> g = values(params.all()[k].grad);
        for (double& x : g) x *= clip;
        naive[k].step(g, options, k == 0 ? options.weight_decay : 0, t);  // only the matrix decays
      }
      params.adamw(stream, options, clip, t);
    }
    for (size_t k : {0, 1, 3})
      for (int64_t i = 0; i < params.all()[k].weight.size(); ++i) {
        const double tolerance = dtype == Dtype::f64 ? 1e-13 : 2e-7;
        ASSERT_NEAR(params.all()[k].weight.get(i), naive[k].w[size_t(i)], tolerance)
            << params.all()[k].name;
        ASSERT_NEAR(params.all()[k].m.get(i), naive[k].m[size_t(i)], tolerance);
        ASSERT_NEAR(params.all()[k].v.get(i), naive[k].v[size_t(i)], tolerance);
      }
    EXPECT_EQ(values(params.all()[2].weight), std::vector<double>(7, 0.25));  // not trained
  }
}

}  // namespace
}  // namespace duet
