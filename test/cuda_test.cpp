// CUDA against the CPU, through Device, Stream and Event alone: products, copies, events, host
// functions. See cuda_testing.h; row operations are in cuda_rows_test.cpp.
#include <thread>

#include "model/base/clock.h"
#include "model/rows/list.h"
#include "test/comm_testing.h"
#include "test/cuda_testing.h"

namespace duet {
namespace {

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
  rig.device().gemm({.form = form,
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
      {24, 40, 56, 5, false}, {24, 40, 56, 3, true}, {9, 13, 0, 2, false}, {0, 8, 8, 1, false},
      {150, 141, 530, 1, false}};
  for (Form form : {Form::NN, Form::NT, Form::TN})
    for (const Shape& s : shapes)
      for (bool accumulate : {false, true})
        for (const auto& [dtype, acc_out] : kTypes) {
          SCOPED_TRACE(cat("form ", int(form), " ", s.m, "x", s.n, "x", s.k, " batch ", s.batch,
              acc_out ? " to fp32" : ""));
          expect_product(dtype,
              [&, to_acc = acc_out](Rig& rig) { multiply(rig, form, s, accumulate, to_acc); });
        }
}

// Of groups of rows, in a batch that shares A. aligned: every row begins at 16 bytes.
struct Groups {
  const std::vector<int64_t>& offsets;
  int batch;
  bool aligned;
};
void multiply_groups(Rig& rig, Form form, const Groups& groups, bool accumulate, bool acc_out) {
  const auto& [offsets, batch, aligned] = groups;
  const bool tn = form == Form::TN, nt = form == Form::NT;
  const int64_t rows = offsets.back() + 5, k = aligned ? 72 : 33, n = aligned ? 56 : 45,
                count = int64_t(offsets.size()) - 1;
  const auto out = [&](int64_t r, int64_t c) { return acc_out ? rig.acc(r, c) : rig.real(r, c); };
  const int64_t b_rows = nt ? n : k, b_cols = nt ? k : n, matrices = count * batch;
  const Tensor a = rig.real(rows, k);
  const Tensor b = tn ? rig.real(rows * batch, n).row_slice(0, rows)
                      : rig.real(matrices * b_rows, b_cols).row_slice(0, b_rows);
  const Tensor c =
      tn ? out(matrices * k, n).row_slice(0, k) : out(rows * batch, n).row_slice(0, rows);
  rig.device().gemm({.form = form,
      .a = a,
      .b = b,
      .c = c,
      .accumulate = accumulate,
      .batch = batch,
      .stride_b = tn ? rows * n : k * n,
      .stride_c = tn ? k * n : rows * n,
      .groups = offsets});
}

TEST_F(Cuda, GroupedProducts) {
  std::vector<int64_t> many = {0};  // more than a launch holds
  for (int e = 0; e < 300; ++e) many.push_back(many.back() + e % 3);
  for (Form form : {Form::NN, Form::NT, Form::TN})
    for (bool accumulate : {false, true})
      for (const auto& [dtype, acc_out] : kTypes) {
        SCOPED_TRACE(cat("form ", int(form)));
        const auto expect = [&, to_acc = acc_out, type = dtype](
                                const std::vector<int64_t>& offsets, int batch) {
          for (bool aligned : {false, true})
            expect_product(type, [&](Rig& rig) {
              multiply_groups(rig, form, {offsets, batch, aligned}, accumulate, to_acc);
            });
        };
        expect({2, 2, 40, 41, 41, 390, 390}, 1);
        expect({2, 2, 40, 41, 41, 390, 390}, 2);
        expect({3, 90}, 2);  // one alone
        if (accumulate) expect(many, 1);
      }
}

// Weight gradients, of one matrix and of groups, some of them empty.
TEST_F(Cuda, ExactSums) {
  const std::vector<int64_t> offsets = {0, 0, 40, 41, 41, 90}, pieces = {0, 40, 41, 60, 90};
  const int64_t rows = 90, m = 33, n = 45, groups = int64_t(offsets.size()) - 1;
  for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16}) {
    expect_product(dtype, [&](Rig& rig) {
      rig.device().gemm({.form = Form::TN,
          .a = rig.real(rows, m),
          .b = rig.real(rows, n, -0.1, 0.1),
          .c = rig.f64(m, n),
          .accumulate = true,
          .pieces = pieces});
    });
    expect_product(dtype, [&](Rig& rig) {
      rig.device().gemm({.form = Form::TN,
          .a = rig.real(rows, m),
          .b = rig.real(rows, n, -0.1, 0.1),
          .c = rig.f64(groups * m, n).row_slice(0, m),
          .accumulate = true,
          .stride_c = m * n,
          .pieces = pieces,
          .groups = offsets});
    });
  }
}

// More pieces than a launch holds, most of them of one group.
TEST_F(Cuda, ExactSumsOfManyPieces) {
  const std::vector<int64_t> offsets = {0, 3, 1000, 1700};
  std::vector<int64_t> pieces(1701);
  std::iota(pieces.begin(), pieces.end(), 0);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    expect_product(dtype, [&](Rig& rig) {
      rig.device().gemm({.form = Form::TN,
          .a = rig.real(1700, 5, -0.1, 0.1),
          .b = rig.real(1700, 7),
          .c = rig.f64(15, 7).row_slice(0, 5),
          .accumulate = true,
          .stride_c = 35,
          .pieces = pieces,
          .groups = offsets});
    });
}

// In bf16 too the rows of a group, and what its pieces add, have the same bits whoever is beside.
TEST_F(Cuda, GroupsOfBf16DoNotDependOnOtherRows) {
  const int64_t rows = 300, k = 70, n = 150;
  Rig rig(*gpu, Dtype::bf16, false);
  // a launch's sums stay below 8 (grid.h)
  const Tensor x = rig.real(rows, k), w = rig.real(2 * k, n), dy = rig.real(rows, n, -0.1, 0.1),
               y = rig.real(rows, n), again = rig.real(rows, n), grad = rig.f64(2 * k, n),
               in_parts = rig.f64(2 * k, n);
  rig.stream().copy(in_parts.data, grad.data, size_t(grad.bytes()));
  const auto work = [&](const Tensor& to, const Tensor& sum, int64_t first, int64_t middle,
                        int64_t last) {
    const std::vector<int64_t> offsets = {first, middle, last};
    std::vector<int64_t> pieces;
    for (int64_t row = first; row < last; row += 20) pieces.push_back(row);
    pieces.push_back(last);
    rig.device().gemm(
        {.a = x, .b = w.row_slice(0, k), .c = to, .stride_b = k * n, .groups = offsets});
    rig.device().gemm({.form = Form::TN,
        .a = x,
        .b = dy,
        .c = sum.row_slice(0, k),
        .accumulate = true,
        .stride_c = k * n,
        .pieces = pieces,
        .groups = offsets});
  };
  work(y, grad, 0, 140, rows);
  work(again, in_parts, 40, 140, 180);  // the same in three calls, in another order
  work(again, in_parts, 0, 40, 40);
  work(again, in_parts, 180, 180, rows);
  const auto results = rig.results();
  EXPECT_EQ(results[3], results[4]);
  EXPECT_EQ(results[5], results[6]);
}

// Microbatches in any order leave the same bits, and every sum is on the grid, of whose steps these
// products are small multiples: their last bits lie below it.
TEST_F(Cuda, ExactSumsDoNotDependOnTheirOrder) {
  const std::vector<int64_t> pieces = {0, 30};
  const int64_t calls = 7, rows = 30, m = 33, n = 300;
  for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16}) {
    const auto sum = [&](int64_t step) {
      Rig rig(*gpu, dtype, false);
      const Tensor a = rig.real(calls * rows, m, -1e-9, 1e-9), b = rig.real(calls * rows, n),
                   c = rig.f64(m, n);
      rig.stream().zero(c.data, size_t(c.bytes()));
      for (int64_t i = 0; i < calls; i++) {
        const int64_t row = i * step % calls * rows;
        rig.device().gemm({.form = Form::TN,
            .a = a.row_slice(row, rows),
            .b = b.row_slice(row, rows),
            .c = c,
            .accumulate = true,
            .pieces = pieces});
      }
      return rig.results().back();
    };
    const std::vector<double> ascending = sum(1);
    for (const double x : ascending) {
      const double steps = std::ldexp(x, kGridBits);
      ASSERT_EQ(steps, std::round(steps));
    }
    EXPECT_EQ(sum(3), ascending) << dtype_name(dtype);
  }
}

TEST_F(Cuda, ProductsAreCountedAndWrongOnesRefused) {
  Buf a = gpu->buffer(6, 4, Dtype::f32, Use::scratch),
      b = gpu->buffer(4, 10, Dtype::f32, Use::scratch);
  Buf c = gpu->buffer(6, 10, Dtype::f32, Use::scratch),
      wrong = gpu->buffer(6, 10, Dtype::bf16, Use::scratch);
  gpu->flops = 0;
  gpu->gemm({.a = a, .b = b, .c = c});
  EXPECT_EQ(gpu->flops, 2 * 6 * 4 * 10);
  EXPECT_THROW(gpu->gemm({.a = a, .b = c, .c = c}), Error);
  EXPECT_THROW(gpu->gemm({.a = a, .b = b, .c = wrong}), Error);
  const int64_t pieces[] = {0, 6};
  const Gemm apart{.form = Form::TN,
      .a = gpu->buffer(6, 4, Dtype::bf16, Use::scratch),
      .b = wrong,
      .c = gpu->buffer(4, 12, Dtype::f64, Use::scratch)->col_slice(0, 10),
      .accumulate = true,
      .pieces = pieces};
  EXPECT_THROW(gpu->gemm(apart), Error);
  gpu->compute().synchronize();
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
  auto a = gpu->make_stream(), b = gpu->make_stream();
  auto first = gpu->make_event(true), second = gpu->make_event(true);
  Buf x = gpu->buffer(1, 1, Dtype::i32, Use::scratch), host = gpu->host_buffer(1, 2, Dtype::i32);
  EXPECT_TRUE(first->done());  // never recorded
  EXPECT_EQ(first->seconds(), 0);
  host->row<int32_t>(0)[0] = 42;
  a->zero(x->data, 4);
  a->synchronize();
  const double before = seconds_now();
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
  EXPECT_LT(second->seconds(), seconds_now() + 0.002);
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
