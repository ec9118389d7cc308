// CUDA against the CPU: every row operation. See cuda_testing.h.
#include <array>

#include "comm/sum.h"
#include "model/rows/grid_sums.h"
#include "model/rows/list.h"
#include "moe/rows/list.h"
#include "test/cuda_testing.h"

namespace duet {
namespace {

struct RowCase {
  const char* name;
  bool acc_only;
  void (*run)(Rig&);
};

// In bf16 rows and heads begin at 16 bytes, or heads do not.
std::array<HeadShape, 2> heads(Rig& r) {
  const Tensor angles = r.acc(2 * 9, 8);
  const HeadShape even{.heads = 3,
      .nope = 24,
      .rope = 16,
      .v = 24,
      .seq_len = 9,
      .cos = angles.row_slice(0, 9),
      .sin = angles.row_slice(9, 9)};
  HeadShape odd = even;
  odd.nope = 21, odd.rope = 12;
  return {even, odd};
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
    {"RmsNormI", false,
        [](Rig& r) {
          for (const Tensor& residual : {Tensor(), r.real(37, 200)})
            launch<RmsNormI>(r.stream(), 37,
                {.x = r.real(37, 200),
                    .gain = r.real(1, 200),
                    .rstd = r.acc(37, 1, 0.5, 2),
                    .dy = r.real(37, 200),
                    .residual = residual,
                    .dx = r.real(37, 200)});
        }},
    {"RmsNormW", false,
        [](Rig& r) {
          launch_tiles<RmsNormW>(r.stream(), Pieces{2, 75, 64}.count(),
              {.x = r.real(150, 200),
                  .rstd = r.acc(150, 1, 0.5, 2),
                  .dy = r.real(150, 200),
                  .partial = r.acc(4, 200),
                  .pieces = {2, 75, 64}});
        }},
    {"GridSum", true,
        [](Rig& r) {
          launch_tiles<GridSum>(r.stream(), 1, {.x = r.acc(7, 200), .y = r.f64(1, 200)});
        }},
    {"RopeQuery", false,
        [](Rig& r) {
          for (const HeadShape& s : heads(r))
            launch<RopeQuery>(
                r.stream(), 36, {.x = r.real(36, 3 * (s.nope + s.rope)), .shape = s, .sign = -1});
        }},
    {"KeyF", false,
        [](Rig& r) {
          for (const HeadShape& s : heads(r))
            launch<KeyF>(r.stream(), 36,
                {.x = r.real(36, 3 * (s.nope + s.v)),
                    .rotary = r.real(36, s.rope),
                    .k = r.real(36, 3 * (s.nope + s.rope)),
                    .shape = s});
        }},
    {"KeyI", false,
        [](Rig& r) {
          for (const HeadShape& s : heads(r))
            launch<KeyI>(r.stream(), 36,
                {.x = r.real(36, 3 * (s.nope + s.rope)),
                    .dkv = r.real(36, 3 * (s.nope + s.v)),
                    .drotary = r.real(36, s.rope),
                    .shape = s});
        }},
    {"SwigluF", false,
        [](Rig& r) {
          launch<SwigluF>(r.stream(), 37,
              {.x = r.real(37, 200, -6, 6), .up = r.real(37, 200), .act = r.real(37, 200)});
        }},
    {"SwigluI", false,
        [](Rig& r) {
          launch<SwigluI>(r.stream(), 37,
              {.x = r.real(37, 200, -6, 6), .up = r.real(37, 200), .act = r.real(37, 200)});
        }},
    {"Add", false,
        [](Rig& r) { launch<Add>(r.stream(), 37, {.x = r.real(37, 200), .y = r.real(37, 200)}); }},
    {"GatherRows", false,
        [](Rig& r) {
          launch<GatherRows>(r.stream(), 50,
              {.x = r.real(37, 200), .index = r.ints(50, 1, 37), .y = r.real(50, 200)});
        }},
    {"PadRows", false,
        [](Rig& r) {
          const Tensor x = r.real(37, 200);
          launch<PadRows>(r.stream(), PadRows::launch_rows(x), {.x = x, .y = r.real(37, 256)});
        }},
    {"EmbedW", false,
        [](Rig& r) {
          launch_tiles<EmbedW>(r.stream(), 3,
              {.x = r.real(5, 200),
                  .tokens = r.ints({0, 3, 1, 2, 4}),
                  .begins = r.ints({0, 2, 3, 5}),
                  .ids = r.ints({7, 2, 9}),
                  .grad = r.f64(10, 200)});
        }},
    {"CrossEntropy", false,
        [](Rig& r) {
          launch<CrossEntropy>(r.stream(), 37,
              {.x = r.real(37, 300, -4, 4),
                  .target = r.ints(37, 1, 300),
                  .loss = r.acc(37, 1),
                  .scale = 0.01});
        }},
    {"SumSquares", false,
        [](Rig& r) {
          launch<SumSquares>(r.stream(), 2,
              {.x = r.real(1, kArena),
                  .grad = r.f64(1, kArena),
                  .sum = r.f64(2, 2),
                  .blocks = blocks(r)});
        }},
    {"AdamW", false,
        [](Rig& r) {
          launch<AdamW>(r.stream(), 2,
              {.x = r.real(1, kArena),
                  .master = r.acc(1, kArena),
                  .grad = r.f64(1, kArena),
                  .m = r.acc(1, kArena),
                  .v = r.acc(1, kArena, 0, 1),
                  .blocks = blocks(r),
                  .clip = 0.5,
                  .options = {.lr = 1e-2},
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
    {"BalanceSums", true,
        [](Rig& r) {
          launch_tiles<BalanceSums>(r.stream(), 12,
              {.x = r.acc(36, 16, 0.1, 0.9),
                  .total = r.acc(36, 1, 5, 9),
                  .plain_idx = r.ints(36, 3, 16),
                  .sums = r.acc(12, 32),
                  .seq_len = 9,
                  .run = 4});
        }},
    {"BalanceLossF", true,
        [](Rig& r) {
          launch<BalanceLossF>(r.stream(), 4,
              {.x = r.acc(12, 32, 0.1, 0.9),
                  .f = r.acc(4, 16),
                  .p = r.acc(4, 16),
                  .loss = r.acc(4, 1),
                  .runs = 3,
                  .seq_len = 9,
                  .topk = 3});
        }},
    {"RouterI", true,
        [](Rig& r) {
          launch<RouterI>(r.stream(), 36,
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
          for (const Tensor& shared : {Tensor(), r.real(37, 203)})
            for (int64_t d : {200, 203})
              launch<CombineF>(r.stream(), 37,
                  {.x = r.real(111, d),
                      .pos = r.ints(37, 3, 0),
                      .w = r.acc(37, 3),
                      .shared = shared,
                      .residual = r.real(37, d),
                      .y = r.real(37, d)});
        }},
    {"CombineI", false,
        [](Rig& r) {
          for (int64_t d : {200, 203})
            launch<CombineI>(r.stream(), 37,
                {.x = r.real(111, d),
                    .dy = r.real(37, d),
                    .pos = r.ints(37, 3, 0),
                    .w = r.acc(37, 3),
                    .dw = r.acc(37, 3)});
        }},
    {"DispatchI", false,
        [](Rig& r) {
          for (int64_t d : {200, 203})
            launch<DispatchI>(r.stream(), 37,
                {.x = r.real(111, d), .pos = r.ints(37, 3, 0), .dx = r.real(37, d)});
        }},
};

TEST(CudaRows, TheTableHasEveryOperationOfTheLists) {
  std::vector<std::string> expected, found;
#define DUET_ROW_NAME(Op) expected.push_back(#Op);
  DUET_MODEL_ROWS(DUET_ROW_NAME)
  DUET_GRID_SUMS(DUET_ROW_NAME)
  DUET_MOE_ROWS(DUET_ROW_NAME) for (const RowCase& c : kRowCases) found.push_back(c.name);
  std::sort(found.begin(), found.end());
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(found, expected);
}

TEST_F(Cuda, RowOperations) {
  for (const RowCase& c : kRowCases)
    for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16}) {
      SCOPED_TRACE(c.name);
      if (dtype != Dtype::bf16 || !c.acc_only) expect_same(dtype, c.run);
    }
}

TEST_F(Cuda, SumsBetweenRanks) {
  for (int64_t n : {2100, 2101}) {  // of odd rows the second does not begin at 16 bytes
    expect_same(Dtype::f32, [&](Rig& r) {
      launch<SumParts>(r.stream(), 3, {r.f64(3, n), r.f64(1, n), r.acc(2, n).row_slice(1, 1)});
    });
    expect_same(Dtype::f32, [&](Rig& r) {
      launch<Widen>(r.stream(), 3, {r.acc(2, n).row_slice(1, 1), r.f64(1, n)});
    });
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

}  // namespace
}  // namespace duet
