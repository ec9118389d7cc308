// Hashes: a word's bits scattered, a sequence's label, a file's checksum. All are against
// accidents, not against intent. What they return is part of what duet promises (initial values,
// batches, checkpoints, printed hashes), so it never changes.
// Read next: memory_short.h.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "model/base/check.h"

namespace duet {

// SplitMix64's mixing step (Steele, Lea, Flood 2014): a bijection of 64-bit words that scatters its
// input's bits over its output's.
constexpr uint64_t splitmix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// 64-bit FNV-1a, a step a value: starts from kFnvStart.
inline constexpr uint64_t kFnvStart = 0xcbf29ce484222325u;
constexpr uint64_t fnv1a(uint64_t hash, uint64_t value) { return (hash ^ value) * 0x100000001b3u; }

// As FNV over words; multiplied before as well, and rotated, so that high bits spread too. Any
// change within one aligned 8-byte word changes it, other damage almost surely.
class Checksum {
 public:
  // The whole in pieces, each but the last of a multiple of 8 bytes.
  void add(std::string_view bytes) {
    for (size_t at = 0; at < bytes.size(); at += 8) {
      uint64_t word = 0;
      std::memcpy(&word, bytes.data() + at, bytes.size() - at < 8 ? bytes.size() - at : 8);
      h_ = std::rotl(h_ ^ (word * p), 29) * q;
    }
    size_ += bytes.size();
  }
  uint64_t value() const {
    uint64_t h = h_ ^ size_;  // tells trailing zeros from the last word's padding
    h = (h ^ (h >> 32)) * q;
    return h ^ (h >> 32);
  }

 private:
  static constexpr uint64_t p = 0x9fb21c651e98df25u, q = 0xd6e8feb86659fd93u;
  uint64_t h_ = 0x9e3779b97f4a7c15u, size_ = 0;
};

// As messages and files have one, in 16 digits.
inline std::string hash_text(uint64_t hash) { return format("%016llx", (unsigned long long)hash); }

inline uint64_t checksum(std::string_view bytes) {
  Checksum sum;
  sum.add(bytes);
  return sum.value();
}

}  // namespace duet
