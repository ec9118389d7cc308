// BatchSource: purity, each window once an epoch, who gets which sequence. Oracle of the
// permutation: count who is hit.
#include "data/batch.h"

#include <algorithm>
#include <cstdlib>
#include <set>

#include "test/data_files.h"

namespace duet {
namespace {

class BatchTest : public DataFiles {
 protected:
  // Tokens 0, 1, 2, ..., so that a sequence shows where it comes from.
  Dataset numbers(int64_t count, int64_t seq_len) const {
    return load_dataset(write("n.bin", llama3(counting<uint32_t>(0, count))), seq_len);
  }
  static std::vector<int32_t> sequence(
      const BatchSource& source, uint64_t seed, int64_t step, int64_t i, int64_t seq_len) {
    std::vector<int32_t> out(size_t(seq_len) + 1, -1);
    source.sequence(seed, step, i, out);
    return out;
  }
};

TEST(Permute, IsABijectionForEverySizeAndKey) {
  for (int64_t n = 1; n <= 300; n++)
    for (const uint64_t key : {uint64_t(0), uint64_t(1), ~uint64_t(0)}) {
      std::vector<int> hits(size_t(n), 0);
      for (int64_t i = 0; i < n; i++) {
        const int64_t to = permute(i, n, key);
        ASSERT_TRUE(0 <= to && to < n);
        hits[size_t(to)]++;
      }
      ASSERT_EQ(hits, std::vector<int>(size_t(n), 1)) << "n " << n << " key " << key;
    }
  EXPECT_THROW(permute(5, 5, 0), Error);
  EXPECT_THROW(permute(-1, 5, 0), Error);
}

TEST(Permute, SpreadsOverALargeRange) {
  const int64_t n = int64_t(1) << 40;
  std::set<int64_t> seen;
  for (int64_t i = 0; i < 2000; i++) seen.insert(permute(i * 12345678, n, 7));
  EXPECT_EQ(seen.size(), 2000u);
  EXPECT_LT(*seen.begin(), n / 100);
  EXPECT_GT(*seen.rbegin(), n - n / 100);
}

TEST(Permute, ShufflesEvenly) {
  // Where index 0 goes, over many keys: every place about equally often (100 expected, standard
  // deviation 10).
  std::vector<int> hits(20, 0);
  for (uint64_t key = 0; key < 2000; key++) hits[size_t(permute(0, 20, key * 1000))]++;
  EXPECT_GT(*std::min_element(hits.begin(), hits.end()), 50);
  EXPECT_LT(*std::max_element(hits.begin(), hits.end()), 150);
  // Neighbours do not stay neighbours: of 1000, about 2 do by chance.
  int neighbours = 0;
  for (int64_t i = 0; i < 1000; i++)
    neighbours += std::abs(permute(i, 1001, 5) - permute(i + 1, 1001, 5)) == 1;
  EXPECT_LT(neighbours, 20);
}

TEST_F(BatchTest, SequencesAreRunsOfTheTrainingTokens) {
  const Dataset d = numbers(1000, 7);
  const BatchSource source(d, 7, 5, 128256);
  for (int64_t step = 0; step < 100; step++)
    for (int64_t i = 0; i < 5; i++) {
      const std::vector<int32_t> s = sequence(source, 3, step, i, 7);
      EXPECT_EQ(s, counting<int32_t>(source.position(3, step, i), 8));
      EXPECT_LT(s.back(), d.train.size());
    }
}

TEST_F(BatchTest, PureFunctionOfSeedAndStep) {
  const Dataset d = numbers(5000, 16);
  const BatchSource a(d, 16, 4, 128256), b(d, 16, 4, 128256);
  std::vector<std::vector<int32_t>> forward, backward;
  for (int64_t n = 0; n < 400; n++) forward.push_back(sequence(a, 1, n / 4, n % 4, 16));
  // in another order
  for (int64_t n = 399; n >= 0; n--) backward.push_back(sequence(b, 1, n / 4, n % 4, 16));
  std::reverse(backward.begin(), backward.end());
  EXPECT_EQ(forward, backward);
  // in the middle, by a new process
  const BatchSource resumed(load_dataset(path("n.bin"), 16), 16, 4, 128256);
  for (int64_t n = 250; n < 400; n++)
    EXPECT_EQ(sequence(resumed, 1, n / 4, n % 4, 16), forward[size_t(n)]);
}

TEST_F(BatchTest, SeedsDiffer) {
  const BatchSource source(numbers(5000, 16), 16, 4, 128256);
  for (uint64_t seed = 0; seed < 20; seed++) {
    int same = 0;
    for (int64_t n = 0; n < 200; n++)
      same += source.position(seed, n / 4, n % 4) == source.position(seed + 1, n / 4, n % 4);
    EXPECT_LT(same, 20);
  }
}

TEST_F(BatchTest, EachWindowOncePerEpochAtAnOffsetOfItsOwn) {
  for (const int64_t count : {20, 23, 40, 57, 64, 1000, 1009})
    for (const int64_t batch : {1, 3, 8}) {
      const int64_t seq_len = 8;
      const Dataset d = numbers(count, seq_len);
      const BatchSource source(d, seq_len, batch, 128256);
      const int64_t windows = source.windows();
      EXPECT_GE((windows + 2) * seq_len, d.train.size())
          << "less than two windows may rest in an epoch";
      std::set<int64_t> offsets;
      for (int64_t epoch = 0; epoch < 30; epoch++) {
        std::vector<int64_t> starts;
        for (int64_t n = epoch * windows; n < (epoch + 1) * windows; n++)
          starts.push_back(source.position(9, n / batch, n % batch));
        std::sort(starts.begin(), starts.end());
        for (int64_t w = 0; w < windows; w++)
          ASSERT_EQ(starts[size_t(w)], starts[0] + w * seq_len) << "count " << count;
        EXPECT_GE(starts.front(), 0);
        EXPECT_LE(starts.back() + seq_len, d.train.size() - 1);
        offsets.insert(starts.front());
      }
      const int64_t possible = d.train.size() - windows * seq_len;
      EXPECT_GE(int64_t(offsets.size()), (possible + 1) / 2) << "count " << count;
    }
}

TEST_F(BatchTest, EveryTokenIsATargetSoonerOrLater) {
  const Dataset d = numbers(100, 8);
  const BatchSource source(d, 8, 1, 128256);
  std::set<int32_t> targets;
  for (int64_t step = 0; step < 2000; step++) {
    const std::vector<int32_t> s = sequence(source, 2, step, 0, 8);
    targets.insert(s.begin() + 1, s.end());
  }
  // all but the very first, which nothing precedes
  EXPECT_EQ(int64_t(targets.size()), d.train.size() - 1);
}

TEST_F(BatchTest, OrderChangesFromEpochToEpoch) {
  const BatchSource source(numbers(1000, 8), 8, 1, 128256);
  int same = 0;
  for (int64_t n = 0; n < source.windows(); n++)
    same += source.position(4, n, 0) / 8 == source.position(4, n + source.windows(), 0) / 8;
  EXPECT_LT(same, source.windows() / 4);
}

TEST_F(BatchTest, ValidationIsConsecutive) {
  const Dataset d = numbers(1000, 8);  // validation: tokens 900 .. 999
  const BatchSource source(d, 8, 4, 128256);
  ASSERT_EQ(source.val_sequences(), 12);
  std::vector<int32_t> out(9);
  for (int64_t i = 0; i < 12; i++) {
    source.val_sequence(i, out);
    EXPECT_EQ(out, counting<int32_t>(900 + 8 * i, 9));
  }
  EXPECT_THROW(source.val_sequence(12, out), Error);
}

TEST_F(BatchTest, SequenceIndexDealsTheBatchOutOnce) {
  for (const int64_t dp : {1, 2, 3})
    for (const int64_t microbatches : {1, 4})
      for (const int64_t size : {1, 5}) {
        std::vector<int64_t> order;
        for (int64_t m = 0; m < microbatches; m++)
          for (int64_t r = 0; r < dp; r++)
            for (int64_t j = 0; j < size; j++) order.push_back(sequence_index(m, r, dp, size, j));
        EXPECT_EQ(order, counting<int64_t>(0, dp * microbatches * size));
      }
}

TEST_F(BatchTest, RefusesTokensBeyondTheVocabulary) {
  const auto run = [&] { BatchSource(numbers(1000, 8), 8, 1, 500); };
  expect_contains(usage_error(run), {path("n.bin"), "at offset", "0 to 499"});
  const Dataset text = load_dataset(write("a.txt", std::string(100, 'x')), 8);
  expect_contains(usage_error([&] { BatchSource(text, 8, 1, 255); }),
      {"vocab_size", "255", "256", path("a.txt")});
}

TEST_F(BatchTest, ChecksItsArguments) {
  const BatchSource source(numbers(1000, 8), 8, 4, 128256);
  std::vector<int32_t> out(9), small(8);
  EXPECT_THROW(source.sequence(1, 0, 4, out), Error);
  EXPECT_THROW(source.sequence(1, -1, 0, out), Error);
  EXPECT_THROW(source.sequence(1, 0, 0, small), Error);
  EXPECT_THROW(BatchSource(numbers(1000, 8), 2000, 1, 128256), Error);
}

}  // namespace
}  // namespace duet
