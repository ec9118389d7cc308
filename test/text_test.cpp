// Lists, numbers with units, ranges and key=value, as people write them.
#include "model/base/text.h"

#include <gtest/gtest.h>

#include <random>

#include "model/base/json.h"
#include "test/data_files.h"

namespace duet {
namespace {

using Parts = std::vector<std::string>;

TEST(Text, SplitsAtCommas) {
  EXPECT_EQ(split(""), Parts());
  EXPECT_EQ(split("a"), Parts({"a"}));
  EXPECT_EQ(split(" a ,b\t,,c d\r"), Parts({"a", "b", "", "c d"}));
  EXPECT_EQ(split("a,"), Parts({"a", ""}));
  EXPECT_EQ(split(","), Parts({"", ""}));
  EXPECT_EQ(split("1;2,3", ';'), Parts({"1", "2,3"}));
}

TEST(Text, NumbersAreWholeTextsWithinTheirType) {
  EXPECT_EQ(parse_number<int>("-17"), -17);
  EXPECT_EQ(parse_number<int>("2147483647"), INT32_MAX);
  EXPECT_EQ(parse_number<int64_t>("9223372036854775807"), INT64_MAX);
  EXPECT_EQ(parse_number<uint64_t>("18446744073709551615"), UINT64_MAX);
  EXPECT_EQ(parse_number<double>("2.5e-3"), 2.5e-3);
  EXPECT_EQ(parse_number<int>("010"), 10);
  for (const char* text : {"", " 1", "1 ", "1x", "x", "+1", "0x10", "1e3", "1.0", "2147483648"})
    EXPECT_FALSE(parse_number<int>(text)) << text;
  for (const char* text : {"9223372036854775808", "4294967296000000000000"})
    EXPECT_FALSE(parse_number<int64_t>(text)) << text;
  EXPECT_FALSE(parse_number<uint64_t>("-1"));
  for (const char* text : {"", "nan", "inf", "-inf", "1e999", "1.5.2", "1,5"})
    EXPECT_FALSE(parse_number<double>(text)) << text;
}

TEST(Text, QuantitiesHaveOneOfTheUnits) {
  EXPECT_EQ(parse_quantity("40GB/s", kBandwidths), 40e9);
  EXPECT_EQ(parse_quantity("2.5 MB/s", kBandwidths), 2.5e6);
  EXPECT_DOUBLE_EQ(parse_quantity("5us", kTimes).value_or(0), 5e-6);
  constexpr Unit counts[] = {{"", 1}, {"k", 1e3}, {"T", 1e12}};
  EXPECT_EQ(parse_quantity("14.5T", counts), 14.5e12);
  EXPECT_EQ(parse_quantity("128k", counts), 128e3);
  EXPECT_EQ(parse_quantity("7", counts), 7);
  for (const char* text : {"", "5", "GB/s", "5gb/s", "5GB/s.", "nanGB/s", "5 us"})
    EXPECT_FALSE(parse_quantity(text, kBandwidths)) << text;
}

TEST(Text, Ranges) {
  EXPECT_EQ(parse_range("2-5"), std::pair(int64_t(2), int64_t(5)));
  EXPECT_EQ(parse_range("3"), std::pair(int64_t(3), int64_t(3)));
  EXPECT_EQ(parse_range("5-2"), std::pair(int64_t(5), int64_t(2)));
  for (const char* text :
      {"", "-", "x", "2-", "-2", "2-3-4", "2 3", "2--3", "1.5", "9223372036854775808"})
    EXPECT_FALSE(parse_range(text)) << text;
}

TEST(Text, KeysAreKnownAndComeOnce) {
  std::string seen;
  const auto take = [&](const std::string& key, const std::string& value) {
    seen += cat("[", key, ":", value, "]");
    return key == "a" || key == "b";
  };
  read_keys("--x", "a=1, b = 2=3", "a=, b=", take);
  EXPECT_EQ(seen, "[a:1][b:2=3]");
  read_keys("--x", "", "a=, b=", take);
  for (const char* text : {"c=1", "a=1,a=2", "a=1,", ",", "=1"})
    expect_contains(usage_error([&] { read_keys("--x", text, "a=, b=", take); }),
        {"--x: found '", "', allowed: a=, b=, each once"});
}

TEST(Text, NamesOfOthersArePrintableAndCutBetweenCharacters) {
  EXPECT_EQ(one_line("dispatch \u00e9"), "dispatch \u00e9");
  EXPECT_EQ(one_line("a\x1b[31m\nb\tc\x7f\xc2\x9b\xff"), "a\\x1b[31m b c\\x7f\\xc2\\x9b\\xff");
  EXPECT_EQ(fitted("four", 4), "four");
  const std::string text = "a\u00e9\u20ac\U0001F600b";  // 1 + 2 + 3 + 4 + 1 bytes
  const char* cut[] = {
      "..", "a..", "a..", "a\u00e9..", "a\u00e9..", "a\u00e9..", "a\u00e9\u20ac.."};
  for (size_t most = 2; most < 9; ++most) EXPECT_EQ(fitted(text, most), cut[most - 2]) << most;
}

TEST(Text, LongAndManyLinedTextsAreShortened) {
  EXPECT_EQ(shortened("as it is"), "as it is");
  EXPECT_EQ(shortened("a\nb\tc"), "a?b?c");
  const std::string text = shortened(std::string(100000, 'x') + "end");
  EXPECT_LT(text.size(), 140u);
  expect_contains(text, {"xxx...", "end (100003 characters)"});
}

std::string printed(const std::vector<std::string>& pieces) {
  Printable printable;
  std::string all;
  for (const std::string& piece : pieces) all += printable.add(piece);
  return all + printable.add("", true);
}

TEST(Printable, LeavesTextAndEscapesTheRest) {
  EXPECT_EQ(printed({"a\tb\n\u00e9\u20ac\U0001F600"}), "a\tb\n\u00e9\u20ac\U0001F600");
  EXPECT_EQ(printed({"\x1b[2J\x07\r\x7f", std::string(1, '\0')}), "\\x1b[2J\\x07\\x0d\\x7f\\x00");
  EXPECT_EQ(printed({"\xc2\x9b"
                     "31m"}),
      "\\xc2\\x9b31m");  // a control character of two bytes
  EXPECT_EQ(printed({"\xff"
                     "a\x80\xc3("}),
      "\\xffa\\x80\\xc3(");
  // longer than need be, a surrogate, beyond U+10FFFF, cut off
  EXPECT_EQ(printed({"\xc0\xaf \xe0\x80\xaf"}), "\\xc0\\xaf \\xe0\\x80\\xaf");
  EXPECT_EQ(printed({"\xed\xa0\x80"}), "\\xed\\xa0\\x80");
  EXPECT_EQ(printed({"\xf4\x90\x80\x80"}), "\\xf4\\x90\\x80\\x80");
  EXPECT_EQ(printed({"\xe2\x82"}), "\\xe2\\x82");
}

TEST(Printable, WaitsForTheRestOfACharacter) {
  Printable printable;
  EXPECT_EQ(printable.add("a\xf0\x9f"), "a");
  EXPECT_EQ(printable.add("\x98"), "");
  EXPECT_EQ(printable.add("\x80"
                          "b"),
      "\U0001F600b");
  EXPECT_EQ(printed({"\xe2", "x"}), "\\xe2x");
}

// Whatever the bytes, and however they are cut, what comes out is the same, and is text.
TEST(Printable, RandomBytesInAnyPieces) {
  std::mt19937 random(1);
  for (int n = 0; n < 2000; ++n) {
    std::string bytes;
    for (int i = 0; i < 12; ++i)
      bytes += char(random() % 3 ? 0x80 + random() % 128 : random() % 128);
    std::vector<std::string> pieces;
    for (char c : bytes) pieces.emplace_back(1, c);
    const std::string once = printed({bytes});
    ASSERT_EQ(printed(pieces), once);
    ASSERT_EQ(Json::parse(Json(once).dump(), "t").string(), once);  // valid UTF-8
    for (unsigned char c : once) ASSERT_TRUE((c >= ' ' && c != 127) || c == '\n' || c == '\t');
  }
}

TEST(Format, IsNotCut) { EXPECT_EQ(format("%s!", std::string(5000, 'a').c_str()).size(), 5001u); }

}  // namespace
}  // namespace duet
