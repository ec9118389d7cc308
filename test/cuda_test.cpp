// CUDA against the CPU, through Device, Stream and Event alone: products, every row operation,
// copies, events, host functions. The same inputs, made from a seed, go to both; results agree
// within rounding, and on CUDA in every bit from run to run. Without a GPU these tests are skipped
// and say so.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <thread>

#include "model/machine/launch.h"
#include "model/rows/list.h"
#include "moe/rows/list.h"
#include "test/comm_testing.h"

namespace duet {
namespace {

// Tensors on a device, and their contents at the end. The n-th tensor has the same contents on
// every device.
class Rig {
 public:
  // `rounded`: the values of real() are bf16 numbers, whatever type holds them.
  Rig(Device& device, Dtype dtype, bool rounded)
      : device_(device), dtype_(dtype), rounded_(rounded) {}
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

  // The CPU has no bf16: there it computes in fp32 from the same inputs.
  void expect_same(Dtype dtype, const std::function<void(Rig&)>& work) {
    const bool half = dtype == Dtype::bf16;
    // of a tensor's largest element
    const double tolerance = half ? 2e-2 : dtype == Dtype::f64 ? 1e-12 : 2e-5;
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

// --- products ------------------------------------------------------------------------------------

// Inputs, and whether C is in the accumulation type.
constexpr std::pair<Dtype, bool> kTypes[] = {
    {Dtype::f32, false}, {Dtype::f64, false}, {Dtype::bf16, false}, {Dtype::bf16, true}};

struct Shape {
  int64_t m, n, k;
  int batch;
  bool shared_b;
};

// The matrices of a batch lie side by side, as attention's heads do; so rows are longer than a
// matrix is wide.
void multiply(Rig& rig, Form form, const Shape& s, bool accumulate, bool acc_out) {
  const bool tn = form == Form::TN, nt = form == Form::NT;
  const int64_t a_cols = tn ? s.m : s.k, b_cols = nt ? s.k : s.n;
  const Tensor a = rig.real(tn ? s.k : s.m, a_cols * s.batch),
               b = rig.real(nt ? s.n : s.k, b_cols * s.batch);
  const Tensor c = acc_out ? rig.acc(s.m, s.n * s.batch) : rig.real(s.m, s.n * s.batch);
  rig.stream().gemm({.form = form,
      .a = a.col_slice(0, a_cols),
      .b = b.col_slice(0, b_cols),
      .c = c.col_slice(0, s.n),
      .accumulate = accumulate,
      .alpha = accumulate ? -0.5 : 1,
      .batch = s.batch,
      .stride_a = a_cols,
      .stride_b = s.shared_b ? 0 : b_cols,
      .stride_c = s.n});
}

TEST_F(Cuda, ProductsOfEveryFormAndType) {
  const Shape shapes[] = {{70, 45, 33, 1, false}, {1, 1, 1, 1, false}, {128, 64, 256, 1, false},
      {24, 40, 56, 5, false}, {24, 40, 56, 3, true}, {9, 13, 0, 2, false}, {0, 8, 8, 1, false}};
  for (Form form : {Form::NN, Form::NT, Form::TN})
    for (const Shape& s : shapes)
      for (bool accumulate : {false, true})
        for (const auto& [dtype, acc_out] : kTypes) {
          SCOPED_TRACE(cat("form ", int(form), " ", s.m, "x", s.n, "x", s.k, " batch ", s.batch,
              acc_out ? " to fp32" : ""));
          expect_same(dtype,
              [&, to_acc = acc_out](Rig& rig) { multiply(rig, form, s, accumulate, to_acc); });
        }
}

TEST_F(Cuda, GroupedProducts) {
  const std::vector<int64_t> offsets = {2, 2, 40, 41, 41, 90, 90};
  const int64_t rows = 95, k = 33, n = 45, groups = int64_t(offsets.size()) - 1;
  for (Form form : {Form::NN, Form::NT, Form::TN})
    for (bool accumulate : {false, true})
      for (const auto& [dtype, acc_out] : kTypes) {
        SCOPED_TRACE(cat("form ", int(form)));
        expect_same(dtype, [&, to_acc = acc_out](Rig& rig) {
          const bool tn = form == Form::TN, nt = form == Form::NT;
          const auto out = [&](int64_t r, int64_t c) {
            return to_acc ? rig.acc(r, c) : rig.real(r, c);
          };
          const int64_t b_rows = nt ? n : k, b_cols = nt ? k : n;
          const Tensor a = rig.real(rows, k);
          const Tensor b =
              tn ? rig.real(rows, n) : rig.real(groups * b_rows, b_cols).row_slice(0, b_rows);
          const Tensor c = tn ? out(groups * k, n).row_slice(0, k) : out(rows, n);
          rig.stream().grouped_gemm({.form = form,
                                        .a = a,
                                        .b = b,
                                        .c = c,
                                        .accumulate = accumulate,
                                        .stride_b = tn ? 0 : k * n,
                                        .stride_c = tn ? k * n : 0},
              offsets);
        });
      }
}

TEST_F(Cuda, ProductsAreCountedAndWrongOnesRefused) {
  Buf a = gpu->buffer(6, 4, Dtype::f32, Use::scratch),
      b = gpu->buffer(4, 10, Dtype::f32, Use::scratch);
  Buf c = gpu->buffer(6, 10, Dtype::f32, Use::scratch),
      wrong = gpu->buffer(6, 10, Dtype::bf16, Use::scratch);
  gpu->flops = 0;
  gpu->compute().gemm({.a = a, .b = b, .c = c});
  EXPECT_EQ(gpu->flops, 2 * 6 * 4 * 10);
  EXPECT_THROW(gpu->compute().gemm({.a = a, .b = c, .c = c}), Error);
  EXPECT_THROW(gpu->compute().gemm({.a = a, .b = b, .c = wrong}), Error);
  gpu->compute().synchronize();
}

// --- row operations ------------------------------------------------------------------------------

struct RowCase {
  const char* name;
  bool acc_only;
  void (*run)(Rig&);
};

HeadShape heads(Rig& r) {
  return {.heads = 3,
      .nope = 20,
      .rope = 12,
      .v = 24,
      .seq_len = 9,
      .cos = r.acc(9, 6),
      .sin = r.acc(9, 6)};
}
Blocks blocks(Rig& r) {
  return {.begin = r.ints({0, 3}), .count = r.ints({300, 4096}), .decay = r.ints({1, 0})};
}
constexpr int64_t kArena = 3 * kBlockAlign + 4096;
constexpr RouterShape kRouter = {
    .experts = 16, .topk = 3, .groups = 4, .topk_groups = 2, .scaling = 2.5};

const RowCase kRowCases[] = {
    {"RmsNormF", false,
        [](Rig& r) {
          launch<RmsNormF>(r.stream(), 37,
              {.x = r.real(37, 200),
                  .gain = r.real(1, 200),
                  .y = r.real(37, 200),
                  .rstd = r.acc(37, 1),
                  .eps = 1e-6});
        }},
    {"AddRmsNormF", false,
        [](Rig& r) {
          launch<AddRmsNormF>(r.stream(), 37,
              {.x = r.real(37, 200),
                  .delta = r.real(37, 200),
                  .gain = r.real(1, 200),
                  .h = r.real(37, 200),
                  .y = r.real(37, 200),
                  .rstd = r.acc(37, 1),
                  .eps = 1e-6});
        }},
    {"RmsNormB", false,
        [](Rig& r) {
          for (const Tensor& residual : {Tensor(), r.real(37, 200)})
            launch<RmsNormB>(r.stream(), 37,
                {.x = r.real(37, 200),
                    .gain = r.real(1, 200),
                    .rstd = r.acc(37, 1, 0.5, 2),
                    .dy = r.real(37, 200),
                    .residual = residual,
                    .dx = r.real(37, 200)});
        }},
    {"RmsNormW", false,
        [](Rig& r) {
          launch<RmsNormW>(r.stream(), 3,
              {.x = r.real(150, 200),
                  .rstd = r.acc(150, 1, 0.5, 2),
                  .dy = r.real(150, 200),
                  .partial = r.acc(3, 200)});
        }},
    {"SumRows", true,
        [](Rig& r) { launch<SumRows>(r.stream(), 4, {.x = r.acc(7, 200), .y = r.acc(1, 200)}); }},
    {"RopeQuery", false,
        [](Rig& r) {
          launch<RopeQuery>(
              r.stream(), 36, {.x = r.real(36, 3 * 32), .shape = heads(r), .sign = -1});
        }},
    {"KeyF", false,
        [](Rig& r) {
          launch<KeyF>(r.stream(), 36,
              {.x = r.real(36, 3 * 44),
                  .rotary = r.real(36, 12),
                  .k = r.real(36, 3 * 32),
                  .shape = heads(r)});
        }},
    {"KeyB", false,
        [](Rig& r) {
          launch<KeyB>(r.stream(), 36,
              {.x = r.real(36, 3 * 32),
                  .dkv = r.real(36, 3 * 44),
                  .drotary = r.real(36, 12),
                  .shape = heads(r)});
        }},
    {"CausalSoftmaxF", false,
        [](Rig& r) { launch<CausalSoftmaxF>(r.stream(), 200, {.x = r.real(200, 50, -5, 5)}); }},
    {"CausalSoftmaxB", false,
        [](Rig& r) {
          launch<CausalSoftmaxB>(
              r.stream(), 200, {.x = r.real(200, 50, 0, 0.1), .dp = r.real(200, 50)});
        }},
    {"SwigluF", false,
        [](Rig& r) {
          launch<SwigluF>(r.stream(), 37,
              {.x = r.real(37, 200, -6, 6), .up = r.real(37, 200), .act = r.real(37, 200)});
        }},
    {"SwigluB", false,
        [](Rig& r) {
          launch<SwigluB>(r.stream(), 37,
              {.x = r.real(37, 200, -6, 6), .up = r.real(37, 200), .act = r.real(37, 200)});
        }},
    {"Add", false,
        [](Rig& r) { launch<Add>(r.stream(), 37, {.x = r.real(37, 200), .y = r.real(37, 200)}); }},
    {"GatherRows", false,
        [](Rig& r) {
          launch<GatherRows>(r.stream(), 50,
              {.x = r.real(37, 200), .index = r.ints(50, 1, 37), .y = r.real(50, 200)});
        }},
    {"EmbedW", false,
        [](Rig& r) {
          launch<EmbedW>(r.stream(), 3,
              {.x = r.real(5, 200),
                  .tokens = r.ints({0, 3, 1, 2, 4}),
                  .begins = r.ints({0, 2, 3, 5}),
                  .ids = r.ints({7, 2, 9}),
                  .grad = r.acc(10, 200)});
        }},
    {"CrossEntropy", false,
        [](Rig& r) {
          launch<CrossEntropy>(r.stream(), 37,
              {.x = r.real(37, 300, -4, 4),
                  .target = r.ints(37, 1, 300),
                  .loss = r.acc(37, 1),
                  .scale = 0.01});
        }},
    {"SumSquares", true,
        [](Rig& r) {
          launch<SumSquares>(
              r.stream(), 2, {.x = r.acc(1, kArena), .sum = r.f64(2, 1), .blocks = blocks(r)});
        }},
    {"AdamW", false,
        [](Rig& r) {
          launch<AdamW>(r.stream(), 2,
              {.x = r.real(1, kArena),
                  .master = r.acc(1, kArena),
                  .grad = r.acc(1, kArena),
                  .m = r.acc(1, kArena),
                  .v = r.acc(1, kArena, 0, 1),
                  .blocks = blocks(r),
                  .clip = 0.5,
                  .lr = 1e-2,
                  .beta1 = 0.9,
                  .beta2 = 0.95,
                  .eps = 1e-8,
                  .decay = 0.1,
                  .correct1 = 2,
                  .correct2 = 3});
        }},
    {"CastRows", false,
        [](Rig& r) {
          launch<CastRows>(r.stream(), 37, {.x = r.real(37, 200), .from = r.acc(37, 200)});
        }},
    {"RouterF", true,
        [](Rig& r) {
          launch<RouterF>(r.stream(), 37,
              {.x = r.acc(37, 16, -3, 3),
                  .bias = r.acc(1, 16, -0.1, 0.1),
                  .topk_idx = r.ints(37, 3, 16),
                  .topk_w = r.acc(37, 3),
                  .plain_idx = r.ints(37, 3, 16),
                  .total = r.acc(37, 1),
                  .scratch = r.acc(37, 20),
                  .shape = kRouter});
        }},
    {"BalanceLossF", true,
        [](Rig& r) {
          launch<BalanceLossF>(r.stream(), 4,
              {.x = r.acc(36, 16, 0.1, 0.9),
                  .total = r.acc(36, 1, 5, 9),
                  .plain_idx = r.ints(36, 3, 16),
                  .f = r.acc(4, 16),
                  .p = r.acc(4, 16),
                  .loss = r.acc(4, 1),
                  .seq_len = 9});
        }},
    {"RouterB", true,
        [](Rig& r) {
          launch<RouterB>(r.stream(), 36,
              {.x = r.acc(36, 16, 0.1, 0.9),
                  .topk_idx = r.ints(36, 3, 16),
                  .dw = r.acc(36, 3),
                  .total = r.acc(36, 1, 5, 9),
                  .f = r.acc(4, 16, 0, 2),
                  .shape = kRouter,
                  .seq_len = 9,
                  .balance = 0.01});
        }},
    {"CombineF", false,
        [](Rig& r) {
          for (const Tensor& shared : {Tensor(), r.real(37, 200)})
            launch<CombineF>(r.stream(), 37,
                {.x = r.real(111, 200),
                    .pos = r.ints(37, 3, 0),
                    .w = r.acc(37, 3),
                    .shared = shared,
                    .residual = r.real(37, 200),
                    .y = r.real(37, 200)});
        }},
    {"CombineB", false,
        [](Rig& r) {
          launch<CombineB>(r.stream(), 37,
              {.x = r.real(111, 200),
                  .dy = r.real(37, 200),
                  .pos = r.ints(37, 3, 0),
                  .w = r.acc(37, 3),
                  .dw = r.acc(37, 3)});
        }},
    {"DispatchB", false,
        [](Rig& r) {
          launch<DispatchB>(r.stream(), 37,
              {.x = r.real(111, 200), .pos = r.ints(37, 3, 0), .dx = r.real(37, 200)});
        }},
};

TEST(CudaRows, TheTableHasEveryOperationOfTheLists) {
  std::vector<std::string> expected, found;
#define DUET_ROW_NAME(Op) expected.push_back(#Op);
  DUET_MODEL_ROWS(DUET_ROW_NAME)
  DUET_MOE_ROWS(DUET_ROW_NAME) for (const RowCase& c : kRowCases) found.push_back(c.name);
  EXPECT_EQ(found, expected);
}

TEST_F(Cuda, RowOperations) {
  for (const RowCase& c : kRowCases)
    for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16}) {
      SCOPED_TRACE(c.name);
      if (dtype != Dtype::bf16 || !c.acc_only) expect_same(dtype, c.run);
    }
}

TEST_F(Cuda, ARowOperationThatIsNotBuiltIsNamed) {
  int args = 0;
  try {
    gpu->compute().launch({"rms_norm", nullptr, nullptr}, 4, &args, sizeof args, 1);
    FAIL() << "launched nothing";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("rms_norm"), std::string::npos);
  }
}

// --- streams, events, memory ---------------------------------------------------------------------

void pause_for(int milliseconds) {
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

TEST_F(Cuda, CopiesKeepTheirOrderAndASourceMayBeLetGo) {
  Stream& stream = gpu->compute();
  std::vector<int32_t> values(100000), back(values.size());
  std::iota(values.begin(), values.end(), 7);
  const std::vector<int32_t> expected = values;
  const size_t bytes = values.size() * 4;
  Buf a = gpu->buffer(1, 100000, Dtype::i32, Use::scratch),
      b = gpu->buffer(1, 100000, Dtype::i32, Use::scratch);
  // so that nothing of what follows is done when it is enqueued
  stream.host([] { pause_for(20); });
  for (int round = 0; round < 3; round++) {
    stream.copy(a->data, values.data(), bytes);
    std::fill(values.begin(), values.end(), -1);
    stream.copy(b->data, a->data, bytes);
    values = expected;
  }
  values.clear();
  values.shrink_to_fit();
  stream.zero(a->data, bytes);
  Buf pinned = gpu->host_buffer(1, 100000, Dtype::i32);
  stream.copy(pinned->data, b->data, bytes);
  stream.copy(back.data(), a->data, bytes);
  stream.synchronize();
  EXPECT_EQ(
      std::vector<int32_t>(pinned->row<int32_t>(0), pinned->row<int32_t>(0) + expected.size()),
      expected);
  EXPECT_EQ(back, std::vector<int32_t>(back.size(), 0));
}

TEST_F(Cuda, HostFunctionsRunInOrderAndFailuresSurfaceOnce) {
  auto stream = gpu->make_stream();
  std::vector<int> order;
  for (int i = 0; i < 20; i++) stream->host([&order, i] { order.push_back(i); });
  stream->host([] { throw Error("the link is down"); });
  stream->host([&] { order.push_back(-1); });
  EXPECT_THROW(stream->synchronize(), Error);
  stream->host([&] { order.push_back(20); });
  stream->synchronize();
  std::vector<int> expected(21);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(order, expected);
}

TEST_F(Cuda, EventsOrderStreamsAndTellTheTime) {
  const auto now = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  auto a = gpu->make_stream(), b = gpu->make_stream();
  auto first = gpu->make_event(), second = gpu->make_event();
  Buf x = gpu->buffer(1, 1, Dtype::i32, Use::scratch), host = gpu->host_buffer(1, 2, Dtype::i32);
  EXPECT_TRUE(first->done());  // never recorded
  EXPECT_EQ(first->seconds(), 0);
  host->row<int32_t>(0)[0] = 42;
  a->zero(x->data, 4);
  a->synchronize();
  const double before = now();
  a->record(*first);
  a->host([] { pause_for(20); });
  a->copy(x->data, host->data, 4);
  a->record(*second);
  b->wait(*second);
  b->copy(host->row<int32_t>(0) + 1, x->data, 4);
  EXPECT_FALSE(second->done());
  b->synchronize();
  EXPECT_TRUE(second->done());
  EXPECT_EQ(host->row<int32_t>(0)[1], 42);
  EXPECT_GE(second->seconds() - first->seconds(), 0.019);
  EXPECT_GT(first->seconds(), before - 0.002);
  EXPECT_LT(second->seconds(), now() + 0.002);
}

TEST_F(Cuda, TooMuchMemoryIsAskedForAndTheDeviceGoesOn) {
  try {
    gpu->buffer(1 << 20, 1 << 26, Dtype::f32, Use::weights);
    FAIL() << "a GPU with 256 TiB";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("asked for 281474976710656 bytes"), std::string::npos)
        << e.what();
  }
  expect_same(Dtype::f32,
      [](Rig& r) { launch<Add>(r.stream(), 3, {.x = r.real(3, 40), .y = r.real(3, 40)}); });
}

TEST_F(Cuda, SaysWhatItIs) {
  EXPECT_TRUE(gpu->is_cuda());
  EXPECT_EQ(gpu->name().rfind("cuda:0 ", 0), 0u);
  EXPECT_THROW(make_cuda_device(cuda_device_count()), UsageError);
  EXPECT_THROW(make_cuda_device(-1), UsageError);
}

TEST(CudaDevice, WithoutAGpuTheOptionIsNamed) {
  if (cuda_device_count() > 0) GTEST_SKIP() << "there is a GPU";
  try {
    make_cuda_device(0);
    FAIL() << "made a device";
  } catch (const UsageError& e) {
    EXPECT_EQ(std::string(e.what()).rfind("--device cuda: ", 0), 0u);
  }
}

TEST(CudaDevice, WithoutNcclItsTransportIsNamed) {
  if (have_nccl()) GTEST_SKIP() << "built with NCCL";
  const std::string error = error_of({.transport = Wire::nccl, .ranks = 2}, [](Comm&) {});
  EXPECT_EQ(error.rfind("usage: --transport nccl: this duet was built without NCCL", 0), 0u)
      << error;
}

}  // namespace
}  // namespace duet
