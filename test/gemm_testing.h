// What the tests of products share: matrices within longer rows, their elements by form, and the
// comparison of bits.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "model/machine/gemm_cpu.h"

namespace duet {

// A matrix within rows that are `gap` elements longer, so that strides are seen to be obeyed.
template <class T> struct Matrix {
  std::vector<T> values;
  Tensor view;
  Matrix(int64_t rows, int64_t cols, int seed, int64_t gap = 0, int copies = 1)
      : values(rows * (cols + gap) * copies) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> uniform(-1, 1);
    for (T& x : values) x = T(uniform(random));
    view = {values.data(), DtypeOf<T>::value, rows, cols, cols + gap};
  }
  Matrix(const Matrix& other) : values(other.values), view(other.view) {
    view.data = values.data();
  }
  int64_t stride() const { return view.rows * view.ld; }
};

// op(A)[i, k] and op(B)[k, j] of a plain product.
template <class T> T a_at(const Gemm& g, int64_t i, int64_t k) {
  return g.form == Form::TN ? g.a.row<T>(k)[i] : g.a.row<T>(i)[k];
}
template <class T> T b_at(const Gemm& g, int64_t k, int64_t j) {
  return g.form == Form::NT ? g.b.row<T>(j)[k] : g.b.row<T>(k)[j];
}

template <class T>
void expect_same_bits(const Matrix<T>& found, const Matrix<T>& expected, const std::string& where) {
  ASSERT_EQ(found.values.size(), expected.values.size());
  for (size_t i = 0; i < found.values.size(); i++) {
    if (memcmp(&found.values[i], &expected.values[i], sizeof(T)) != 0) {
      FAIL() << where << ": element " << i << ": found " << found.values[i] << ", expected "
             << expected.values[i];
    }
  }
}

template <class T> Matrix<T> make_a(Form form, int64_t m, int64_t k) {
  return form == Form::TN ? Matrix<T>(k, m, 1, 5) : Matrix<T>(m, k, 1, 3);
}
template <class T> Matrix<T> make_b(Form form, int64_t n, int64_t k) {
  return form == Form::NT ? Matrix<T>(n, k, 2, 1) : Matrix<T>(k, n, 2, 7);
}

}  // namespace duet
