// The CPU's GEMM against the contract of gemm_cpu.h, written down as the slowest possible loops:
// equal in every bit. And the contract's loops against plain sums in double, so that the oracle
// itself cannot be wrong together with the code.
#include "model/machine/gemm_cpu.h"

#include <gtest/gtest.h>

#include "test/gemm_testing.h"

namespace duet {
namespace {

// The contract.
template <class T> void oracle(const Gemm& g) {
  const int64_t depth = g.form == Form::TN ? g.a.rows : g.a.cols;
  for (int64_t i = 0; i < g.c.rows; i++)
    for (int64_t j = 0; j < g.c.cols; j++) {
      T c = g.accumulate ? g.c.row<T>(i)[j] : T(0);
      for (int64_t k0 = 0; k0 < depth; k0 += kBlock) {
        T p = 0;
        for (int64_t k = k0; k < std::min<int64_t>(k0 + kBlock, depth); k++)
          p = madd(a_at<T>(g, i, k), b_at<T>(g, k, j), p);
        c = madd(T(g.alpha), p, c);
      }
      g.c.row<T>(i)[j] = c;
    }
}

template <class T> void zero_above_diagonal(Matrix<T>& m) {
  for (int64_t i = 0; i < m.view.rows; i++)
    for (int64_t j = i + 1; j < m.view.cols; j++) m.view.template row<T>(i)[j] = 0;
}

constexpr Form kForms[] = {Form::NN, Form::NT, Form::TN};

template <class T> struct GemmTest : testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(GemmTest, Types);

TYPED_TEST(GemmTest, EveryFormAndSizeHasTheContractsBits) {
  using T = TypeParam;
  const int64_t sizes[][3] = {{1, 1, 1}, {1, 33, 7}, {12, 32, 64}, {13, 31, 5}, {25, 40, 300},
      {3, 36, 257}, {37, 96, 1}, {61, 17, 31}, {11, 48, 512}, {64, 32, 64}, {30, 20, 700},
      {7, 300, 19}, {600, 9, 10}};
  const auto device = make_cpu_device(2);
  for (Form form : kForms)
    for (const auto& [m, n, k] : sizes)
      for (bool accumulate : {false, true}) {
        const Matrix<T> a = make_a<T>(form, m, k), b = make_b<T>(form, n, k);
        Matrix<T> found(m, n, 3, 9), expected = found;
        Gemm g = {.form = form,
            .a = a.view,
            .b = b.view,
            .c = found.view,
            .accumulate = accumulate,
            .alpha = k % 2 ? 1 : 0.3};
        device->gemm(g);
        g.c = expected.view;
        oracle<T>(g);
        expect_same_bits(found, expected, cat("form ", int(form), " ", m, "x", n, "x", k));
      }
}

TYPED_TEST(GemmTest, TheContractIsAProduct) {
  using T = TypeParam;
  for (Form form : kForms) {
    const int64_t m = 9, n = 14, k = 600;
    const Matrix<T> a = make_a<T>(form, m, k), b = make_b<T>(form, n, k);
    Matrix<T> c(m, n, 3), old = c;
    const Gemm g = {
        .form = form, .a = a.view, .b = b.view, .c = c.view, .accumulate = true, .alpha = -0.5};
    const auto device = make_cpu_device(1);
    device->gemm(g);
    for (int64_t i = 0; i < m; i++)
      for (int64_t j = 0; j < n; j++) {
        double sum = 0;
        for (int64_t l = 0; l < k; l++) sum += double(a_at<T>(g, i, l)) * double(b_at<T>(g, l, j));
        EXPECT_NEAR(c.view.template row<T>(i)[j], old.view.template row<T>(i)[j] - 0.5 * sum,
            sizeof(T) == 8 ? 1e-13 : 2e-5);
      }
  }
}

TYPED_TEST(GemmTest, NoInnerDimensionGivesZerosOrLeavesC) {
  using T = TypeParam;
  const auto device = make_cpu_device(1);
  for (Form form : kForms)
    for (bool accumulate : {false, true}) {
      const Matrix<T> a = make_a<T>(form, 14, 0), b = make_b<T>(form, 35, 0);
      Matrix<T> found(14, 35, 3), expected = found;
      if (!accumulate) std::fill(expected.values.begin(), expected.values.end(), T(0));
      device->gemm(
          {.form = form, .a = a.view, .b = b.view, .c = found.view, .accumulate = accumulate});
      expect_same_bits(found, expected, cat("form ", int(form)));
    }
}

// A row's bits: alone, or with others; on one thread, or on several.
TYPED_TEST(GemmTest, BitsDependNeitherOnOtherRowsNorOnThreads) {
  using T = TypeParam;
  const int64_t m = 301, n = 200, k = 270;
  for (Form form : kForms) {
    const Matrix<T> a = make_a<T>(form, m, k), b = make_b<T>(form, n, k);
    Matrix<T> one(m, n, 3);
    Gemm g = {.form = form, .a = a.view, .b = b.view, .c = one.view};
    const auto device = make_cpu_device(1);
    device->gemm(g);
    for (int threads : {2, 3}) {
      const auto several = make_cpu_device(threads);
      Matrix<T> found(m, n, 4);
      Gemm h = g;
      h.c = found.view;
      several->gemm(h);
      expect_same_bits(found, one, cat("threads ", threads));
    }
    for (auto [row, count] : {std::pair<int64_t, int64_t>{0, 1}, {5, 11}, {300, 1}, {77, 100}}) {
      Matrix<T> found = one;
      for (int64_t i = row; i < row + count; i++)
        std::fill_n(found.view.template row<T>(i), n, T(7));
      Gemm h = g;
      h.a = form == Form::TN ? a.view.col_slice(row, count) : a.view.row_slice(row, count);
      h.c = found.view.row_slice(row, count);
      device->gemm(h);
      expect_same_bits(found, one, cat("rows from ", row));
    }
  }
}

// Heads side by side, as attention has them: matrix i of A and B starts i columns blocks to the
// right; B's may be shared.
TYPED_TEST(GemmTest, ABatchIsItsProductsOneByOne) {
  using T = TypeParam;
  const int64_t seq = 70, dim = 20, heads = 5;
  const Matrix<T> q(seq, dim * heads, 1), k(seq, dim * heads, 2);
  for (bool shared : {false, true}) {
    Matrix<T> found(seq, seq, 3, 0, heads), expected = found;
    Gemm g = {.form = Form::NT,
        .a = q.view.col_slice(0, dim),
        .b = k.view.col_slice(0, dim),
        .c = found.view,
        .batch = heads,
        .stride_a = dim,
        .stride_b = shared ? 0 : dim,
        .stride_c = found.stride()};
    const auto device = make_cpu_device(3);
    device->gemm(g);
    for (int h = 0; h < heads; h++) {
      Gemm one = {.form = Form::NT,
          .a = q.view.col_slice(h * dim, dim),
          .b = k.view.col_slice(shared ? 0 : h * dim, dim),
          .c = expected.view};
      one.c.data = expected.values.data() + h * expected.stride();
      oracle<T>(one);
    }
    expect_same_bits(found, expected, shared ? "shared B" : "batch");
  }
}

// Lower triangles: causal gives the bits of the full product, in NT on and below the diagonal.
TYPED_TEST(GemmTest, CausalSkipsOnlyZeros) {
  using T = TypeParam;
  const auto device = make_cpu_device(2);
  for (int64_t seq : {1, 12, 40, 100, 300, 530})
    for (Form form : kForms)
      for (bool accumulate : {false, true}) {
        const int64_t dim = 40;
        const bool nt = form == Form::NT;
        Matrix<T> a(seq, nt ? dim : seq, 1, 2), b(seq, dim, 2, 4);
        if (!nt) zero_above_diagonal(a);
        Matrix<T> found(seq, nt ? seq : dim, 3), expected = found;
        Gemm g = {.form = form,
            .a = a.view,
            .b = b.view,
            .c = found.view,
            .accumulate = accumulate,
            .alpha = -0.25,
            .causal = true};
        device->gemm(g);
        g.c = expected.view;
        oracle<T>(g);
        if (nt) zero_above_diagonal(found), zero_above_diagonal(expected);
        expect_same_bits(found, expected, cat("seq ", seq, " form ", int(form)));
      }
}

// Also where a batch shares the rows of A and their groups.
TYPED_TEST(GemmTest, GroupsAreTheirProductsOneByOne) {
  using T = TypeParam;
  const std::vector<int64_t> offsets = {2, 2, 40, 41, 41, 400, 700, 700};
  const int groups = int(offsets.size()) - 1;
  const int64_t n = 45, k = 33, rows = 710;
  for (const auto& [threads, batch] : {std::pair(1, 1), {3, 1}, {3, 2}})
    for (Form form : kForms)
      for (bool accumulate : {false, true}) {
        const bool tn = form == Form::TN, nt = form == Form::NT;
        const Matrix<T> a(rows, k, 1);
        const Matrix<T> b = tn ? Matrix<T>(rows, n, 2, 0, batch)
            : nt               ? Matrix<T>(n, k, 2, 0, groups * batch)
                               : Matrix<T>(k, n, 2, 0, groups * batch);
        Matrix<T> found =
                      tn ? Matrix<T>(k, n, 3, 0, groups * batch) : Matrix<T>(rows, n, 3, 0, batch),
                  expected = found;
        Gemm g = {.form = form,
            .a = a.view,
            .b = b.view,
            .c = found.view,
            .accumulate = accumulate,
            .batch = batch,
            .stride_b = b.stride(),
            .stride_c = found.stride(),
            .groups = offsets};
        const auto device = make_cpu_device(threads);
        device->gemm(g);
        for (int i = 0; i < groups * batch; i++) {
          const int64_t begin = offsets[i % groups], count = offsets[i % groups + 1] - begin,
                        in_batch = i / groups * rows + begin;
          Gemm one = {.form = form,
              .a = a.view.row_slice(begin, count),
              .b = b.view,
              .c = expected.view,
              .accumulate = accumulate};
          if (tn) {
            one.b = b.view.row_slice(in_batch, count);
            one.c.data = expected.values.data() + i * expected.stride();
          } else {
            one.b.data = b.view.template row<T>(0) + i * b.stride();
            one.c = expected.view.row_slice(in_batch, count);
          }
          oracle<T>(one);
        }
        expect_same_bits(found, expected, cat("form ", int(form), " threads ", threads));
      }
}

TEST(GemmErrors, NameWhatDoesNotFit) {
  const auto device = make_cpu_device(1);
  Matrix<float> a(3, 4, 1), b(5, 6, 2), c(3, 6, 3);
  EXPECT_THROW(device->gemm({.a = a.view, .b = b.view, .c = c.view}), Error);
  Matrix<double> d(4, 6, 2);
  EXPECT_THROW(device->gemm({.a = a.view, .b = d.view, .c = c.view}), Error);
  const Matrix<float> fits(4, 6, 2);
  const std::vector<int64_t> beyond = {0, 4}, descending = {0, 2, 1};
  EXPECT_THROW(device->gemm({.a = a.view, .b = fits.view, .c = c.view, .groups = beyond}), Error);
  EXPECT_THROW(
      device->gemm({.a = a.view, .b = fits.view, .c = c.view, .groups = descending}), Error);
  std::vector<bf16> h(16);
  const Tensor t = {h.data(), Dtype::bf16, 4, 4, 4};
  try {
    device->gemm({.a = t, .b = t, .c = t});
    FAIL() << "bf16 was accepted";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("bf16"), std::string::npos);
  }
}

TEST(GemmFlops, CountTwoPerMultiplyAddAndHalfWhereCausal) {
  Matrix<float> a(6, 4, 1), b(4, 10, 2), c(6, 10, 3);
  Gemm g = {.a = a.view, .b = b.view, .c = c.view, .batch = 3};
  const auto device = make_cpu_device(1);
  const auto flops = [&] {
    device->flops = 0;
    device->gemm(g);
    return device->flops;
  };
  EXPECT_EQ(flops(), 2 * 6 * 4 * 10 * 3);
  g.causal = true;
  EXPECT_EQ(flops(), 6 * 4 * 10 * 3);
  const std::vector<int64_t> offsets = {1, 3, 5};
  g.causal = false;
  g.groups = offsets;
  EXPECT_EQ(flops(), 2 * 4 * 4 * 10 * 3);
}

}  // namespace
}  // namespace duet
