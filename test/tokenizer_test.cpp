// Tokenizer: both tables, round trips, longest match, and the files it refuses.
#include "data/tokenizer.h"

#include "test/data_files.h"

namespace duet {
namespace {

class TokenizerTest : public DataFiles {
 protected:
  // A version 2 file of these tokens, whose last is the end-of-text token.
  std::string tokenizer(const std::vector<std::string>& tokens) const {
    std::string bytes = header(20240328, 2, int32_t(tokens.size()), int32_t(tokens.size()) - 1);
    for (const std::string& t : tokens) bytes += char(t.size()) + t;
    return bytes;
  }
};

TEST_F(TokenizerTest, BytesAreTheirOwnIds) {
  const Tokenizer t;
  std::string all;
  for (int b = 255; b >= 0; b--) all += char(b);
  const std::vector<int32_t> ids = t.encode(all);
  ASSERT_EQ(ids.size(), 256u);
  for (int i = 0; i < 256; i++) EXPECT_EQ(ids[size_t(i)], 255 - i);
  EXPECT_EQ(t.decode(ids), all);
  EXPECT_EQ(t.vocab_size(), 256);
}

TEST_F(TokenizerTest, IdsOutsideTheVocabularyBecomeReplacementCharacters) {
  EXPECT_EQ(Tokenizer().decode(std::vector<int32_t>{'a', 256, -1, 'b'}),
      "a\xEF\xBF\xBD\xEF\xBF\xBD"
      "b");
}

TEST_F(TokenizerTest, ReadsTokensAndTakesTheLongestMatch) {
  const std::string zero(1, '\0');
  const Tokenizer t(write("t.bin", tokenizer({"a", "b", "ab", "abba", "b", zero, "<eot>"})));
  EXPECT_EQ(t.vocab_size(), 7);
  // abba, b: the lower of two equal tokens
  EXPECT_EQ(t.encode("abbab"), (std::vector<int32_t>{3, 1}));
  // the longest that matches, shorter than the longest there is
  EXPECT_EQ(t.encode("abb"), (std::vector<int32_t>{2, 1}));
  EXPECT_EQ(t.encode(""), std::vector<int32_t>{});
  EXPECT_EQ(t.decode(std::vector<int32_t>{2, 5, 4, 6}), "ab" + zero + "b<eot>");
  const std::string error = usage_error([&] { t.encode("abc"); });
  expect_contains(error, {"byte 99"});
}

TEST_F(TokenizerTest, KeepsAnyLengthUpTo255) {
  const std::string longest(255, 'x');
  const Tokenizer t(write("t.bin", tokenizer({"x", longest})));
  EXPECT_EQ(t.encode(longest + "x"), (std::vector<int32_t>{1, 0}));
  EXPECT_EQ(t.decode(std::vector<int32_t>{1}), longest);
}

TEST_F(TokenizerTest, ReadsVersionOne) {
  std::string bytes = header(20240328, 1, 50257);
  for (int i = 0; i < 50257; i++) bytes += std::string("\2") + char(i % 256) + char(i / 256);
  const Tokenizer t(write("t.bin", bytes));
  EXPECT_EQ(t.vocab_size(), 50257);
}

TEST_F(TokenizerTest, RefusesBadFilesInOneLineThatNamesThem) {
  const std::string good = tokenizer({"a", "bc"});
  const auto error_of = [&](const std::string& bytes) {
    const std::string file = write("bad.bin", bytes),
                      error = usage_error([&] { Tokenizer t(file); });
    expect_contains(error, {file});
    return error;
  };
  expect_contains(
      usage_error([&] { Tokenizer t(path("none.bin")); }), {path("none.bin"), "No such file"});
  expect_contains(usage_error([&] { Tokenizer t(folder_); }), {folder_});
  expect_contains(error_of(""), {"truncated", "found 0"});
  expect_contains(error_of(good.substr(0, 100)), {"truncated", "1024", "100"});
  expect_contains(error_of(good.substr(0, good.size() - 1)), {"truncated", "token 1 of 2"});
  expect_contains(error_of(good.substr(0, good.size() - 3)), {"truncated", "token 1 of 2"});
  expect_contains(error_of(header(20240520, 2, 1)), {"magic 20240328", "20240520"});
  expect_contains(error_of(header(20240328, 3, 1)), {"version 3", "1 or 2"});
  expect_contains(error_of(header(20240328, 2, 0)), {"vocabulary of 0"});
  expect_contains(error_of(tokenizer({"", "a"})), {"token 0", "length 0"});
}

}  // namespace
}  // namespace duet
