// Dataset: every kind of source, the split, the hash, and the input it refuses. Oracle: the file's
// contents as a plain vector.
#include "data/dataset.h"

#include "data/batch.h"

#include <sys/stat.h>

#include "test/data_files.h"

namespace duet {
namespace {

class DatasetTest : public DataFiles {
 protected:
  static std::vector<int32_t> ids(const Tokens& tokens, int64_t vocab_size = int64_t(1) << 31) {
    std::vector<int32_t> out(size_t(tokens.size()));
    tokens.copy(0, out, vocab_size);
    return out;
  }
  static std::vector<int32_t> all_ids(const Dataset& d) {
    std::vector<int32_t> out = ids(d.train), val = ids(d.val);
    out.insert(out.end(), val.begin(), val.end());
    return out;
  }
  static std::string text_of(const Dataset& d) {
    std::string text;
    for (const int32_t id : all_ids(d)) text += char(id);
    return text;
  }
  std::string error_of(const std::string& path, int64_t seq_len = 2) const {
    const std::string error = usage_error([&] { load_dataset(path, seq_len); });
    expect_contains(error, {path});
    return error;
  }
};

TEST_F(DatasetTest, TextFileIsItsBytes) {
  std::string text;
  for (int i = 0; i < 100; i++) text += char(255 - i);
  const Dataset d = load_dataset(write("a.txt", text), 4);
  EXPECT_EQ(text_of(d), text);
  EXPECT_EQ(d.train.size(), 90);
  EXPECT_EQ(d.val.size(), 10);
  EXPECT_EQ(d.vocab_size, 256);
  EXPECT_EQ(d.source, path("a.txt"));
  EXPECT_EQ(d.tokenizer_path, "");
  expect_contains(
      describe(d), {path("a.txt"), "100 bytes", "100 tokens", "90 train", "10 validation", "256"});
}

TEST_F(DatasetTest, ValidationHoldsAtLeastOneSequence) {
  const std::string file = write("a.txt", std::string(100, 'x'));
  EXPECT_EQ(load_dataset(file, 40).val.size(), 41);
  EXPECT_EQ(load_dataset(file, 49).val.size(), 50);
  EXPECT_EQ(load_dataset(file, 49).train.size(), 50);
  expect_contains(
      error_of(file, 50), {"too short", "found 100 tokens", "at least 102", "--seq-len 50"});
}

TEST_F(DatasetTest, HashIsFnv1aAndKnowsNoFileFormat) {
  // published test vector
  EXPECT_EQ(load_dataset(write("a.txt", "foobar"), 2).hash, 0x85944171f73967e8u);
  EXPECT_EQ(load_dataset(write("b.bin", gpt2({'f', 'o', 'o', 'b', 'a', 'r'})), 2).hash,
      0x85944171f73967e8u);
  EXPECT_EQ(load_dataset(write("c.bin", llama3({'f', 'o', 'o', 'b', 'a', 'r'})), 1).hash,
      0x85944171f73967e8u);
  EXPECT_NE(load_dataset(write("d.txt", "foobas"), 2).hash, 0x85944171f73967e8u);
}

TEST_F(DatasetTest, FolderJoinsItsTextFilesInOrderOfPath) {
  write("f/b.txt", "22222");
  write("f/a/z.md", "11111");
  write("f/c", "33333");
  write("f/empty.txt", "");
  write("f/binary.dat", std::string("no\0no", 5));
  write("f/.git/config", "never");
  write("f/a/weights.bin", std::string(8, '\0'));  // only *.bin directly in the folder are shards
  const Dataset d = load_dataset(path("f"), 2);
  EXPECT_EQ(text_of(d), "111112222233333");
  EXPECT_EQ(d.hash, load_dataset(write("joined.txt", "111112222233333"), 2).hash);
}

TEST_F(DatasetTest, ShardsKeepWideIds) {
  const Dataset a = load_dataset(write("a.bin", gpt2(counting<uint16_t>(65000, 100))), 4);
  EXPECT_EQ(all_ids(a), counting<int32_t>(65000, 100));
  EXPECT_EQ(a.vocab_size, 50257);
  expect_contains(describe(a), {": 200 bytes, "});
  const Dataset b = load_dataset(write("b.bin", llama3(counting<uint32_t>(128000, 100))), 4);
  EXPECT_EQ(all_ids(b), counting<int32_t>(128000, 100));
  EXPECT_EQ(b.vocab_size, 128256);
  expect_contains(describe(b), {": 400 bytes, "});
}

TEST_F(DatasetTest, FolderOfShardsUsesItsValidationFilesAndFindsTheTokenizer) {
  write("f/x_train_000002.bin", gpt2(counting<uint16_t>(200, 30)));
  write("f/x_train_000001.bin", gpt2(counting<uint16_t>(100, 100)));
  write("f/x_val_000000.bin", gpt2(counting<uint16_t>(900, 20)));
  write("f/gpt2_tokenizer.bin", header(20240328, 2, 1));
  write("f/README.txt", "not tokens");
  const Dataset d = load_dataset(path("f"), 4);
  EXPECT_EQ(ids(d.train), counting<int32_t>(100, 130));
  EXPECT_EQ(ids(d.val), counting<int32_t>(900, 20));
  EXPECT_EQ(d.tokenizer_path, path("f/gpt2_tokenizer.bin"));
  EXPECT_EQ(
      load_dataset(path("f/x_train_000001.bin"), 4).tokenizer_path, path("f/gpt2_tokenizer.bin"));
  EXPECT_EQ(load_dataset(path("f/x_train_000001.bin"), 4).val.size(), 10);
}

TEST_F(DatasetTest, CopyAndSliceMatchAPlainVectorOverFileBorders) {
  write("f/a.txt", "abc");
  write("f/b.txt", "d");
  write("f/c.txt", "efghij");
  const Tokens whole(load_dataset(path("f"), 1).train);  // "abcdefgh"
  const std::vector<int32_t> plain = ids(whole);
  ASSERT_EQ(plain.size(), 8u);
  for (int64_t begin = 0; begin < 8; begin++)
    for (int64_t end = begin + 1; end <= 8; end++) {
      const std::vector<int32_t> expected(plain.begin() + begin, plain.begin() + end);
      std::vector<int32_t> out(expected.size());
      whole.copy(begin, out, 256);
      EXPECT_EQ(out, expected);
      EXPECT_EQ(ids(whole.slice(begin, end)), expected);
    }
  std::vector<int32_t> out(3);
  EXPECT_THROW(whole.copy(6, out, 256), Error);
  EXPECT_THROW(whole.copy(-1, out, 256), Error);
}

TEST_F(DatasetTest, TokenBeyondTheVocabularyIsNamedWithItsFileAndOffset) {
  write("f/a.bin", gpt2({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
  write("f/b.bin", gpt2({1, 2, 3, 500, 5, 6, 7, 600, 9, 10}));
  const Dataset d = load_dataset(path("f"), 2);
  const auto copy = [&](int64_t begin, int64_t count, int64_t vocab_size) {
    std::vector<int32_t> out(static_cast<size_t>(count));
    d.train.copy(begin, out, vocab_size);
  };
  expect_contains(usage_error([&] { copy(8, 8, 500); }),
      {path("f/b.bin"), "token 500 at offset 3", "0 to 499"});
  expect_contains(usage_error([&] { ids(d.train.slice(15, 17), 7); }),
      {path("f/b.bin"), "token 7 at offset 6"});
  expect_contains(usage_error([&] { ids(d.val, 9); }), {path("f/b.bin"), "token 600 at offset 7"});
  copy(8, 8, 501);
  copy(14, 3, 8);

  write("big.bin", llama3({1, 2, 3, 0xffffffffu, 5, 6}));  // negative as an int32
  const Dataset big = load_dataset(path("big.bin"), 2);
  expect_contains(usage_error([&] { ids(big.val, 128256); }),
      {path("big.bin"), "token 4294967295 at offset 3"});
}

TEST_F(DatasetTest, ATokenBeyondTheVocabularyIsRefusedAtTheStart) {
  std::vector<uint16_t> many = counting<uint16_t>(0, 1000);
  many[700] = 60000;
  write("f/b.bin", gpt2(many));
  const Dataset d = load_dataset(path("f"), 2);
  expect_contains(usage_error([&] { BatchSource(d, 2, 1, 50257); }),
      {path("f/b.bin"), "token 60000 at offset 700"});
  BatchSource(d, 2, 1, 60001);
}

// Whatever happens to a file that a run reads from, it is an error, not a signal.
TEST_F(DatasetTest, AFileThatShrinksIsAnError) {
  const std::string text = write("text.txt", std::string(50000, 'x')),
                    shard = write("a.bin", gpt2(counting<uint16_t>(0, 50000)));
  for (const std::string& file : {text, shard}) {
    const Dataset d = load_dataset(file, 8);
    std::filesystem::resize_file(file, 5000);
    std::vector<int32_t> out(9);
    d.train.copy(10, out, 60000);
    const auto read = [&] { d.train.copy(30000, out, 60000); };
    try {
      read();
      ADD_FAILURE() << file << ": read what is no longer there";
    } catch (const Error& e) {
      expect_contains(e.what(), {file, "found 5000:", "shorter"});
    }
  }
}

TEST_F(DatasetTest, TheRunsFolderIsNeverData) {
  write("f/a.txt", "abcdefgh");
  const Dataset before = load_dataset(path("f"), 2, path("f/run"));
  write("f/run/metrics.jsonl", "{}");
  write("f/run/step-000001/config.json", "{}");
  EXPECT_EQ(load_dataset(path("f"), 2, path("f/run")).hash, before.hash);
  EXPECT_EQ(load_dataset(path("f") + "/../f/.", 2, path("f") + "/./run/").hash, before.hash);
  EXPECT_NE(load_dataset(path("f"), 2).hash, before.hash);
  expect_contains(usage_error([&] { load_dataset(path("f"), 2, path("f") + "/run/.."); }),
      {"--data", "folder of --out"});
}

TEST_F(DatasetTest, EmbeddedTextIsTheProjectsOwn) {
  const Dataset d = load_dataset("", 256);
  EXPECT_EQ(d.source, "embedded");
  EXPECT_EQ(text_of(d), embedded_text());
  EXPECT_NE(embedded_text().find("// Dataset: what a run learns from"), std::string_view::npos);
  EXPECT_NE(embedded_text().find("EmbeddedTextIsTheProjectsOwn"), std::string_view::npos);
  EXPECT_EQ(embedded_text().find('\0'), std::string_view::npos);
  EXPECT_GT(d.tokens(), 40000);
}

TEST_F(DatasetTest, RefusesWhatIsNotData) {
  expect_contains(error_of(path("none.txt")), {"No such file", "allowed: a text file"});
  expect_contains(error_of(write("a.txt", "abcdefgh") + "/b"), {"Not a directory"});
  expect_contains(error_of("/dev/null"), {"found a directory or device", "allowed: a text file"});
  expect_contains(error_of(write("empty.txt", "")), {"empty"});
  expect_contains(
      error_of(write("zero.txt", std::string("ab\0cdefgh", 9))), {"not a text file", "zero byte"});
  std::filesystem::create_directories(path("folder/.git"));
  write("folder/.git/config", "text that does not count");
  expect_contains(error_of(path("folder")), {"no text file and no .bin token shard"});
  expect_contains(usage_error([&] { load_dataset("", 0); }), {"--seq-len", "found 0"});
}

TEST_F(DatasetTest, RefusesUnreadableFiles) {
  std::filesystem::create_directories(path("f"));
  std::filesystem::create_symlink(path("gone"), path("f/dangling.bin"));
  expect_contains(
      error_of(path("f")), {path("f/dangling.bin"), "cannot be opened", "No such file"});
  std::filesystem::create_directories(path("g"));
  ASSERT_EQ(mkfifo(path("g/pipe.bin").c_str(), 0600), 0);
  expect_contains(error_of(path("g")), {path("g/pipe.bin"), "expected a file"});
  if (geteuid() == 0) return;  // root reads everything
  const std::string file = write("secret.txt", "abcdefgh");
  chmod(file.c_str(), 0);
  expect_contains(error_of(file), {"cannot be opened", "Permission denied"});
}

TEST_F(DatasetTest, RefusesBadShards) {
  const std::string good = gpt2(counting<uint16_t>(0, 50));
  const auto error_with = [&](const std::string& bytes) {
    return error_of(write("bad.bin", bytes));
  };
  expect_contains(error_with(""), {"truncated", "found 0 bytes", "1024"});
  expect_contains(error_with(good.substr(0, 1000)), {"truncated", "found 1000 bytes"});
  expect_contains(error_with(good.substr(0, good.size() - 1)),
      {"truncated", "says 50 tokens", "1124 bytes", "found 1123"});
  expect_contains(error_with(good + "x"), {"too long", "found 1125"});
  expect_contains(error_with(std::string(2000, 'x')),
      {"not a token shard", "found magic 2021161080", "20240520 or 20240801"});
  expect_contains(
      error_with(shard<uint16_t>(20240520, 2, {1})), {"GPT-2", "unknown version 2", "expected 1"});
  expect_contains(error_with(shard<uint32_t>(20240801, 1, {1})),
      {"Llama 3", "unknown version 1", "expected 7"});
  expect_contains(error_with(gpt2({})), {"0 tokens"});
  expect_contains(error_with(header(20240520, 1, -5)), {"-5 tokens"});
  expect_contains(error_with(gpt2({1, 2, 3})), {"too short", "found 3 tokens", "at least 6"});
}

TEST_F(DatasetTest, RefusesFoldersOfShardsThatDoNotFit) {
  write("mixed/a.bin", gpt2(counting<uint16_t>(0, 50)));
  write("mixed/b.bin", llama3(counting<uint32_t>(0, 50)));
  expect_contains(error_of(path("mixed")), {"mixed/b.bin", "Llama 3", "one kind"});
  write("val/x_val_0.bin", gpt2(counting<uint16_t>(0, 50)));
  expect_contains(error_of(path("val")), {"validation shards only"});
  write("val/x_train_0.bin", gpt2(counting<uint16_t>(0, 10)));
  expect_contains(
      error_of(path("val"), 10), {"found 10 tokens in the training shards", "at least 11"});
}

}  // namespace
}  // namespace duet
