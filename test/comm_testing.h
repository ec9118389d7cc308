// What the tests of comm/ share: who runs them, payloads that every rank can tell, and the error
// that a run ends with.
#pragma once
#include <gtest/gtest.h>

#include <chrono>

#include "comm/comm.h"

namespace duet {

// Threads, or the processes of the launcher that started this program.
inline RunOptions here() {
  const int processes = find_launcher().ranks;
  if (processes > 1) return {.transport = Wire::mpi, .ranks = processes, .timeout = 30};
  return {.transport = Wire::local, .ranks = 4, .timeout = 30};
}

template <class T> Tensor view(std::vector<T>& v, int64_t rows, int64_t cols) {
  return {v.data(), DtypeOf<T>::value, rows, cols, cols};
}

// Integers below 2^11, so that sums over a few ranks are exact in every dtype.
template <class T> std::vector<T> exact(int rank, int64_t n, int salt = 0) {
  std::vector<T> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++)
    v[size_t(i)] = T((rank * 7919 + i * 104729 + salt * 31) % 2048 - 1024);
  return v;
}

// What run_ranks throws, soon.
inline std::string error_of(const RunOptions& options, const std::function<void(Comm&)>& rank) {
  const auto begin = std::chrono::steady_clock::now();
  std::string text = "no error";
  try {
    run_ranks(options, rank);
  } catch (const UsageError& e) {
    text = cat("usage: ", e.what());
  } catch (const std::exception& e) {
    text = e.what();
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  return text;
}

}  // namespace duet
