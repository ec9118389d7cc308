// What the tests of row operations share: matrices with guards around their rows, and who runs a
// row operation.
//
// Every operation runs in several cases: on 32 simulated lanes (the CUDA kernel's code), and with
// the group of one as rows_cpu.cpp compiled it, launched on a CPU device; in float, in double, and
// on the lanes in bf16.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <type_traits>
#include <vector>

#include "model/machine/launch.h"
#include "model/rows/tile.h"
#include "test/sim_warp.h"

namespace duet {

// A matrix whose rows have guard elements on both sides, which nobody may write: the destructor
// looks. Its first row begins at 16 bytes, as do all rows of 32 elements, and few others.
template <class T> class Mat {
 public:
  Mat(int64_t rows, int64_t cols)
      : rows_(rows), cols_(cols), ld_(cols + 2 * kGuard), data_(size_t(rows * ld_), T(kMark)) {}
  template <class U> explicit Mat(const Mat<U>& from) : Mat(from.rows(), from.cols()) {
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < cols_; ++c) (*this)(r, c) = T(from(r, c));
  }
  Mat(const Mat&) = default;
  ~Mat() {
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = -kGuard; c < cols_ + kGuard; c = c == -1 ? cols_ : c + 1)
        if (double((*this)(r, c)) != kMark)
          ADD_FAILURE() << "written outside of its columns, at " << r << ", " << c;
  }

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  T& operator()(int64_t r, int64_t c = 0) { return data_[size_t(r * ld_ + kGuard + c)]; }
  const T& operator()(int64_t r, int64_t c = 0) const {
    return data_[size_t(r * ld_ + kGuard + c)];
  }
  operator Tensor() { return {&(*this)(0, 0), DtypeOf<T>::value, rows_, cols_, ld_}; }

  Mat& random(std::mt19937_64& rng, double scale = 1, double shift = 0) {
    std::normal_distribution<double> normal(shift, scale);
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < cols_; ++c) (*this)(r, c) = T(float(normal(rng)));
    return *this;
  }
  Mat& fill(double value) {
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < cols_; ++c) (*this)(r, c) = T(float(value));
    return *this;
  }

 private:
  static constexpr int64_t kGuard = 8;
  static constexpr int kMark = 77;
  int64_t rows_, cols_, ld_;
  std::vector<T> data_;
};

// How far a result may be from its oracle, relative to the oracle's largest element.
template <class T>
constexpr double kTolerance = std::is_same_v<T, double> ? 1e-12
    : std::is_same_v<T, float>                          ? 4e-6
                                                        : 1.2e-2;

template <class T>
void expect_close(
    const Mat<T>& found, const Mat<double>& expected, double tolerance = kTolerance<T>) {
  ASSERT_EQ(found.rows(), expected.rows());
  ASSERT_EQ(found.cols(), expected.cols());
  double largest = 1e-30;
  for (int64_t r = 0; r < found.rows(); ++r)
    for (int64_t c = 0; c < found.cols(); ++c)
      largest = std::max(largest, std::abs(expected(r, c)));
  for (int64_t r = 0; r < found.rows(); ++r)
    for (int64_t c = 0; c < found.cols(); ++c) {
      const double error = std::abs(double(found(r, c)) - expected(r, c)) / largest;
      ASSERT_TRUE(error <= tolerance)
          << "at " << r << ", " << c << " of [" << found.rows() << ", " << found.cols()
          << "]: found " << double(found(r, c)) << ", expected " << expected(r, c);
    }
}

struct OnLanes {
  using Group = SimWarp;
  template <class Op, class T> static void run(int64_t rows, const typename Op::Args& args) {
    for (int64_t r = 0; r < rows; ++r)
      ASSERT_EQ(SimWarp::run([&](SimWarp g) { Op::template row<T>(g, r, args); }), "")
          << "row " << r;
  }
};
struct OnCpu {
  using Group = Serial;
  template <class Op, class T> static void run(int64_t rows, const typename Op::Args& args) {
    auto device = make_cpu_device(2);
    launch<Op>(device->compute(), rows, args);
  }
};

template <class T_, class Runner> struct Case {
  using T = T_;
  using Group = typename Runner::Group;
  template <class Op> static void run(int64_t rows, const typename Op::Args& args) {
    ASSERT_EQ(args.x.dtype, DtypeOf<T>::value);
    Runner::template run<Op, T>(rows, args);
  }
};
using AccCases = ::testing::Types<Case<float, OnLanes>, Case<double, OnLanes>, Case<float, OnCpu>,
    Case<double, OnCpu>>;
using AllCases = ::testing::Types<Case<float, OnLanes>, Case<double, OnLanes>, Case<bf16, OnLanes>,
    Case<float, OnCpu>, Case<double, OnCpu>>;

// A suite of typed tests; `run` runs an operation in the current case.
template <class C> class RowTest : public ::testing::Test {
 protected:
  using T = typename C::T;
  using A = Acc<T>;
  template <class Op> void run(int64_t rows, const typename Op::Args& args) {
    C::template run<Op>(rows, args);
  }
  // as launch_tiles
  template <class Op> void run_tiles(int64_t rows, const typename Op::Args& args) {
    run<Op>(rows * tiles_of(args.x.cols, ColumnTile<typename C::Group>::columns), args);
  }
  std::mt19937_64 rng{1};
};

inline constexpr int64_t kSizes[] = {1, 31, 32, 33, 100};

}  // namespace duet
