// What the exactness ladder asks of the row operations as rows_cpu.cpp compiles them: the bits of a
// row depend neither on where it lies in memory, nor on how many rows come with it, nor on threads.
// And what exp_ promises.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "model/machine/launch.h"
#include "model/rows/grid_sums.h"
#include "model/rows/list.h"
#include "moe/rows/list.h"

namespace duet {
namespace {

// Where the tensors of an operation lie, and with how many threads it runs.
struct Place {
  int64_t rows;
  int shift;    // bytes past a 64-byte boundary
  int64_t pad;  // elements between rows
  int threads;
};

// Makes tensors whose element (r, c) is the same wherever they lie, runs the operation, and
// remembers what it wrote.
class Bench {
 public:
  Bench(Place place, int64_t cols)
      : place(place), cols(cols), device_(make_cpu_device(place.threads)) {}

  // The same in every place; a tensor of tokens() has a row per row of the operation.
  Tensor make(int64_t rows, int64_t width, bool positive = false) {
    Tensor t = claim(rows, width, Dtype::f32);
    const uint64_t seed = tensors_.size();
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < width; ++c) {
        std::minstd_rand rng(unsigned(seed * 1000003 + uint64_t(r) * 1009 + uint64_t(c) + 1));
        rng.discard(3);
        const float u = float(rng() % 100000) / 50000 - 1;
        t.row<float>(r)[c] = positive ? std::abs(u) + 0.01f : u * 2;
      }
    return t;
  }
  Tensor tokens(int64_t width, bool positive = false) {
    return of_rows_.emplace_back(make(place.rows, width, positive));
  }
  Tensor indices(int64_t width, const std::function<int32_t(int64_t, int64_t)>& value) {
    Tensor t = claim(place.rows, width, Dtype::i32);
    for (int64_t r = 0; r < t.rows; ++r)
      for (int64_t c = 0; c < width; ++c) t.row<int32_t>(r)[c] = value(r, c);
    return of_rows_.emplace_back(t);
  }
  template <class Op> void run(int64_t rows, const typename Op::Args& args) {
    launch<Op>(device_->compute(), rows, args);
  }
  // The bytes of row r of every such tensor.
  std::string row(int64_t r) const {
    std::string bytes;
    for (const Tensor& t : of_rows_)
      bytes.append(t.row<const char>(0) + r * t.ld * 4, size_t(t.cols) * 4);
    return bytes;
  }

  const Place place;
  const int64_t cols;

 private:
  Tensor claim(int64_t rows, int64_t width, Dtype dtype) {
    const int64_t ld = width + place.pad;
    memory_.emplace_back(size_t(rows * ld + 32));
    const auto at = (reinterpret_cast<uintptr_t>(memory_.back().data()) + 63) / 64 * 64 +
        uintptr_t(place.shift);
    return tensors_.emplace_back(Tensor{reinterpret_cast<void*>(at), dtype, rows, width, ld});
  }
  std::unique_ptr<Device> device_;
  std::vector<std::vector<float>> memory_;
  std::vector<Tensor> tensors_, of_rows_;
};

struct Operation {
  const char* name;
  void (*run)(Bench&);
};

const Operation kOperations[] = {
    {"RmsNormF",
        [](Bench& b) {
          b.run<RmsNormF>(b.place.rows,
              {b.tokens(b.cols), b.make(1, b.cols), b.tokens(b.cols), b.tokens(1), 1e-6});
        }},
    {"AddRmsNormF",
        [](Bench& b) {
          b.run<AddRmsNormF>(b.place.rows,
              {b.tokens(b.cols), b.tokens(b.cols), b.make(1, b.cols), b.tokens(b.cols),
                  b.tokens(b.cols), b.tokens(1), 1e-6});
        }},
    {"RmsNormI",
        [](Bench& b) {
          b.run<RmsNormI>(b.place.rows,
              {b.tokens(b.cols), b.make(1, b.cols), b.tokens(1), b.tokens(b.cols), b.tokens(b.cols),
                  b.tokens(b.cols)});
        }},
    {"CausalSoftmaxF", [](Bench& b) { b.run<CausalSoftmaxF>(b.place.rows, {b.tokens(b.cols)}); }},
    {"CausalSoftmaxI",
        [](Bench& b) {
          b.run<CausalSoftmaxI>(b.place.rows, {b.tokens(b.cols), b.tokens(b.cols)});
        }},
    {"RopeQuery",
        [](Bench& b) {
          HeadShape shape{.heads = 3, .nope = int(b.cols), .rope = 10, .v = 1, .seq_len = 4};
          shape.cos = b.make(4, 5), shape.sin = b.make(4, 5);
          b.run<RopeQuery>(b.place.rows, {b.tokens(3 * (b.cols + 10)), shape, 1});
        }},
    {"KeyF",
        [](Bench& b) {
          HeadShape shape{.heads = 3, .nope = int(b.cols), .rope = 10, .v = 1, .seq_len = 4};
          shape.cos = b.make(4, 5), shape.sin = b.make(4, 5);
          b.run<KeyF>(b.place.rows,
              {b.tokens(3 * (b.cols + 1)), b.tokens(10), b.tokens(3 * (b.cols + 10)), shape});
        }},
    {"KeyI",
        [](Bench& b) {
          HeadShape shape{.heads = 3, .nope = 5, .rope = int(b.cols / 2 * 2), .v = 1, .seq_len = 4};
          shape.cos = b.make(4, b.cols / 2), shape.sin = b.make(4, b.cols / 2);
          b.run<KeyI>(b.place.rows,
              {b.tokens(3 * (5 + shape.rope)), b.tokens(18), b.tokens(shape.rope), shape});
        }},
    {"SwigluF",
        [](Bench& b) {
          b.run<SwigluF>(b.place.rows, {b.tokens(b.cols), b.tokens(b.cols), b.tokens(b.cols)});
        }},
    {"SwigluI",
        [](Bench& b) {
          b.run<SwigluI>(b.place.rows, {b.tokens(b.cols), b.tokens(b.cols), b.tokens(b.cols)});
        }},
    {"Add",
        [](Bench& b) {
          b.run<Add>(b.place.rows, {b.tokens(b.cols), b.tokens(b.cols)});
        }},
    {"CrossEntropy",
        [](Bench& b) {
          const Tensor target =
              b.indices(1, [&](int64_t r, int64_t) { return int32_t(r % b.cols); });
          b.run<CrossEntropy>(b.place.rows, {b.tokens(b.cols), target, b.tokens(1), 0.25});
        }},
    {"RouterF",
        [](Bench& b) {
          const int experts = int(b.cols / 2 * 2), topk = std::min(4, experts / 2);
          const auto zero = [](int64_t, int64_t) { return 0; };
          b.run<RouterF>(b.place.rows,
              {b.tokens(experts), b.make(1, experts), b.indices(topk, zero), b.tokens(topk),
                  b.indices(topk, zero), b.tokens(1), b.tokens(experts + 2),
                  {experts, topk, 2, 1, 1.5}});
        }},
    {"RouterI",
        [](Bench& b) {
          const int experts = int(b.cols), topk = std::min(3, experts);
          const Tensor idx = b.indices(topk, [](int64_t, int64_t c) { return int32_t(c); });
          b.run<RouterI>(b.place.rows,
              {b.tokens(experts, true), idx, b.tokens(topk), b.tokens(1, true),
                  b.make(b.place.rows / 4 + 1, experts), {experts, topk, 1, 1, 1.5}, 4, 0.3});
        }},
    {"CombineF",
        [](Bench& b) {
          const Tensor pos =
              b.indices(2, [](int64_t r, int64_t c) { return int32_t((r * 2 + c) % 7); });
          b.run<CombineF>(b.place.rows,
              {b.make(8, b.cols), pos, b.tokens(2), b.tokens(b.cols), b.tokens(b.cols),
                  b.tokens(b.cols)});
        }},
    {"CombineI",
        [](Bench& b) {
          const Tensor pos = b.indices(1, [](int64_t r, int64_t) { return int32_t(r); });
          b.run<CombineI>(
              b.place.rows, {b.tokens(b.cols), b.tokens(b.cols), pos, b.tokens(1), b.tokens(1)});
        }},
    {"DispatchI",
        [](Bench& b) {
          const Tensor pos =
              b.indices(2, [](int64_t r, int64_t c) { return int32_t((r * 2 + c) % 7); });
          b.run<DispatchI>(b.place.rows, {b.make(8, b.cols), pos, b.tokens(b.cols)});
        }},
};

TEST(RowBits, DoNotDependOnAlignmentRowsOrThreads) {
  constexpr int64_t kMany = 700;  // enough for a launch to be shared out
  for (const Operation& op : kOperations)
    for (int64_t cols : {7, 36, 40, 100}) {
      const auto bits_at = [&](const Place& place) {
        Bench bench(place, cols);
        op.run(bench);
        std::vector<std::string> rows;
        for (int64_t r = 0; r < place.rows; ++r) rows.push_back(bench.row(r));
        return rows;
      };
      const std::vector<std::string> all = bits_at({kMany, 0, 0, 1});
      for (int shift = 0; shift < 64; shift += 4)
        for (int64_t rows : {int64_t(1), int64_t(9)})
          for (int64_t pad : {0, 5}) {
            const std::vector<std::string> some = bits_at({rows, shift, pad, 1});
            for (size_t r = 0; r < some.size(); ++r)
              ASSERT_TRUE(some[r] == all[r])
                  << op.name << ", " << cols << " columns, row " << r << " of " << rows << ", "
                  << shift << " bytes off, " << pad << " between rows";
          }
      for (int shift : {0, 20})
        ASSERT_TRUE(bits_at({kMany, shift, 3, 2}) == all)
            << op.name << ", " << cols << " columns, two threads";
    }
}

// The sums over tokens: the columns are independent, so that neither alignment nor threads matter.
TEST(RowBits, OfSumsOverTokensDoNotDependOnAlignmentOrThreads) {
  for (int64_t cols : {7, 36, 100, 200}) {
    const int64_t tiles = tiles_of(cols, ColumnTile<Serial>::columns);
    std::string expected;
    for (int threads : {1, 2})
      for (int shift = 0; shift < 64; shift += 4) {
        Bench b({300, shift, threads == 2 ? 3 : 0, threads}, cols);
        const Tensor x = b.tokens(cols), rstd = b.tokens(1), dy = b.tokens(cols);
        const Pieces pieces{1, 300, 64};
        const Tensor partial = b.make(pieces.count(), cols);
        std::vector<double> sum(size_t(cols), 0);
        b.run<RmsNormW>(pieces.count() * tiles, {x, rstd, dy, partial, pieces});
        b.run<GridSum>(tiles, {partial, {sum.data(), Dtype::f64, 1, cols, cols}});
        const std::string bits(reinterpret_cast<const char*>(sum.data()), size_t(cols) * 8);
        if (expected.empty()) expected = bits;
        ASSERT_TRUE(bits == expected)
            << cols << " columns, " << shift << " bytes off, " << threads << " threads";
      }
  }
}

TEST(Exp, IsWithinItsUlpOverItsRange) {
  double worst = 0;
  const auto check = [&](float x) {
    const double exact = std::exp(double(x));
    int exponent;
    std::frexp(exact, &exponent);
    worst = std::max(
        worst, std::abs(double(exp_(x)) - exact) / std::ldexp(1.0, std::max(exponent, -125) - 24));
  };
  for (int i = 0; i <= 4000000; ++i) check(float(-87.0 + 175.0 * i / 4000000));
  for (float x = 1e-30f; x < 1; x *= 1.001f) check(x), check(-x);
  EXPECT_LE(worst, 3);
  EXPECT_GT(worst, 1);  // a library's exp would be no test of this one
  EXPECT_EQ(exp_(0.0f), 1.0f);
  EXPECT_EQ(exp_(-1000.0f), exp_(-87.0f));
  EXPECT_EQ(exp_(1000.0f), exp_(88.0f));
  EXPECT_TRUE(std::isnan(exp_(std::nanf(""))));
  EXPECT_EQ(exp_(INFINITY), exp_(88.0f));
  EXPECT_EQ(exp_(-INFINITY), exp_(-87.0f));
  EXPECT_EQ(exp_(-1.0), std::exp(-1.0));
}

}  // namespace
}  // namespace duet
