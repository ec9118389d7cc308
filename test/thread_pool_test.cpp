// ThreadPool: every index exactly once, on any number of threads; failures come out; pools live
// side by side.
#include "model/machine/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <vector>

namespace duet {
namespace {

TEST(ThreadPool, EveryIndexExactlyOnceInPiecesOfAtMostGrain) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (int64_t n : {0, 1, 2, 7, 100, 1001})
      for (int64_t grain : {1, 3, 64, 5000}) {
        // plain ints: a data race here is one that the sanitizer reports
        std::vector<int> visits(n, 0);
        pool.parallel_for(n, grain, [&](int64_t begin, int64_t end) {
          EXPECT_LT(begin, end);
          EXPECT_LE(end - begin, threads > 1 ? grain : n);  // nobody to share with: one piece
          for (int64_t i = begin; i < end; i++) visits[i]++;
        });
        EXPECT_EQ(visits, std::vector<int>(n, 1))
            << threads << " threads, n " << n << ", grain " << grain;
      }
  }
}

TEST(ThreadPool, WhatPiecesWroteIsSeenByTheNextLoop) {
  ThreadPool pool(3);
  std::vector<int64_t> x(64, 0);
  // short loops: workers come late, join, or find the loop closed
  for (int round = 0; round < 20000; round++) {
    pool.parallel_for(64, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) x[i] += i;
    });
    x[round % 64]++;
  }
  for (int64_t i = 0; i < 64; i++) EXPECT_EQ(x[i], 20000 * i + 20000 / 64 + (i < 20000 % 64));
}

TEST(ThreadPool, WorkersTakePart) {
  ThreadPool pool(2);
  std::mutex mutex;
  std::set<std::thread::id> ids;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (ids.size() < 2 && std::chrono::steady_clock::now() < deadline) {
    pool.parallel_for(8, 1, [&](int64_t, int64_t) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      std::lock_guard lock(mutex);
      ids.insert(std::this_thread::get_id());
    });
  }
  EXPECT_EQ(ids.size(), 2u);
  EXPECT_TRUE(ids.count(std::this_thread::get_id()));
}

TEST(ThreadPool, WorkersWakeFromSleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 5; round++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> sum = 0;
    pool.parallel_for(10, 1, [&](int64_t begin, int64_t) { sum += int(begin); });
    EXPECT_EQ(sum, 45);
  }
}

TEST(ThreadPool, TheFirstExceptionIsRethrownAndThePoolLivesOn) {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 200; round++) {
      EXPECT_THROW(pool.parallel_for(100, 1,
                       [&](int64_t begin, int64_t end) {
                         if (begin <= 37 && 37 < end) throw std::runtime_error("piece 37");
                       }),
          std::runtime_error);
    }
    std::atomic<int> count = 0;
    pool.parallel_for(100, 1, [&](int64_t begin, int64_t end) { count += int(end - begin); });
    EXPECT_EQ(count, 100);
  }
}

TEST(ThreadPool, PoolsOfSeveralRanksCoexist) {
  std::vector<int64_t> sums(4, 0);
  std::vector<std::thread> ranks;
  for (int r = 0; r < 4; r++) {
    ranks.emplace_back([&, r] {
      ThreadPool pool(2);
      for (int round = 0; round < 500; round++) {
        std::atomic<int64_t> sum = 0;
        pool.parallel_for(100, 7, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; i++) sum += i * r;
        });
        sums[r] += sum;
      }
    });
  }
  for (std::thread& t : ranks) t.join();
  for (int r = 0; r < 4; r++) EXPECT_EQ(sums[r], 500 * 4950 * r);
}

}  // namespace
}  // namespace duet
