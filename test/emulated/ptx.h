// What PTX has beside CUDA's C++, as far as duet uses it (model/machine/ptx.cuh): copies to shared
// memory, which happen as late as they may; and tensor cores with bf16, 16 x 8 x 16, summed in
// fp32, in which lanes meet as a warp does.
#pragma once
#include <cstdint>

#include "cuda_runtime.h"

namespace emulated {

// fibers.cpp: of the running thread.
void copy_async(void* to, const void* from, int bytes, int size);
void end_copies();
void await_copies(int under_way);

// Four matrices of 8 x 8: matrix m's rows are where lanes 8 m and on say. Of each a lane gets two
// neighbours of row lane / 4, or, turned, of column lane / 4.
inline void ldmatrix_x4(uint32_t* pairs, const void* row, bool turned) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    misuse("ldmatrix, a row of eight is not aligned to 16 bytes");
  const Met met = meet(At::shuffle, ~0u, &row, sizeof row);
  for (int m = 0; m < 4; ++m) {
    uint16_t two[2];
    for (int i = 0; i < 2; ++i) {
      const int along = met.lane % 4 * 2 + i, across = met.lane / 4;
      two[i] = met.of<const uint16_t*>(m * 8 + (turned ? along : across))[turned ? across : along];
    }
    memcpy(&pairs[m], two, sizeof two);
  }
  meet(At::syncwarp, ~0u, nullptr, 0);  // all have read
}

inline float half_of(uint32_t pair, int i) {
  const uint32_t bits = i == 0 ? pair << 16 : pair & 0xffff0000u;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// c of lane l: rows l / 4 and l / 4 + 8, columns l % 4 * 2 and the next. a: the quarters (rows, k)
// at (0, 0), (8, 0), (0, 8), (8, 8); b: k from 0 and from 8, column l / 4.
inline void mma_m16n8k16(float* const* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1}, *mine[2] = {a, b};
  const uint32_t* const* both = mine;
  const Met met = meet(At::shuffle, ~0u, &both, sizeof both);
  for (int i = 0; i < 4; ++i) {
    const int row = met.lane / 4, col = met.lane % 4 * 2 + i % 2, down = i / 2;
    float sum = *c[i];
    for (int k = 0; k < 16; ++k) {
      const auto of = [&](int line) {
        return met.of<const uint32_t* const*>(line * 4 + k % 8 / 2);
      };
      sum += half_of(of(row)[0][down + k / 8 * 2], k % 2) * half_of(of(col)[1][k / 8], k % 2);
    }
    *c[i] = sum;
  }
  meet(At::syncwarp, ~0u, nullptr, 0);  // all have read
}

}  // namespace emulated
