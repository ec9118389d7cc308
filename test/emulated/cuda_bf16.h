// CUDA's bf16, as far as duet uses it: its size.
#pragma once
#include <cstdint>

struct __nv_bfloat16 {
  uint16_t bits;
};
