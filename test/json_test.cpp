// Json: what is written reads back to the same bits, and what is wrong is named.
#include "model/base/json.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "test/testing.h"

namespace duet {
namespace {

TEST(Json, KeepsOrderAndTypes) {
  const std::string text =
      R"({"z":1,"a":[true,null,-2.5,"x\"y"],"m":{"k":9223372036854775807},"e":{},"l":[]})";
  const Json j = Json::parse(text, "t");
  EXPECT_EQ(j.dump(), text);
  EXPECT_EQ(j.at("z").integer(), 1);
  EXPECT_EQ(j.at("z").number(), 1.0);
  EXPECT_TRUE(j.at("a").items()[0].boolean());
  EXPECT_TRUE(j.at("a").items()[1].is_null());
  EXPECT_EQ(j.at("a").items()[2].number(), -2.5);
  EXPECT_EQ(j.at("a").items()[3].string(), "x\"y");
  EXPECT_EQ(j.at("m").at("k").integer(), std::numeric_limits<int64_t>::max());
  EXPECT_FALSE(j.find("none"));
}

TEST(Json, ATemporaryGivesValues) {
  int64_t sum = 0;
  for (const Json& x : Json::parse(R"({"a":{"b":[1,2,3]}})", "t").at("a").at("b").items())
    sum += x.integer();
  EXPECT_EQ(sum, 6);
}

TEST(Json, BuildsAndIndents) {
  Json j = Json::object({{"name", "duet"}, {"pp", 4}, {"on", true}, {"none", Json()}});
  j.set("ranks", Json(std::vector<std::vector<std::string>>{{"0F0", "0B0"}, {}})).set("pp", 8u);
  EXPECT_EQ(j.dump(), R"({"name":"duet","pp":8,"on":true,"none":null,"ranks":[["0F0","0B0"],[]]})");
  EXPECT_EQ(Json::parse(j.dump(2), "t").dump(), j.dump());
  EXPECT_EQ(Json::object({{"a", Json(std::vector<int>{1, 2})}, {"b", Json::object()}}).dump(2),
      "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {}\n}");
}

TEST(Json, CopiesAndPartsAreIndependent) {
  const Json whole = Json::parse(R"({"a":{"b":[1]}})", "t");
  Json part = whole.at("a"), copy = part;
  part.set("b", Json()).set("c", 2);
  Json list = copy.at("b");
  list.push(2).push(list);
  EXPECT_EQ(part.dump(), R"({"b":null,"c":2})");
  EXPECT_EQ(list.dump(), "[1,2,[1,2]]");
  EXPECT_EQ(copy.dump(), R"({"b":[1]})");
  EXPECT_EQ(whole.dump(), R"({"a":{"b":[1]}})");
}

TEST(Json, DoublesRoundTripBitForBit) {
  std::mt19937_64 random(7);
  for (int n = 0; n < 20000; ++n) {
    const uint64_t bits = random();
    double x;
    std::memcpy(&x, &bits, 8);
    if (!std::isfinite(x)) continue;
    const Json j = Json::parse(Json(x).dump(), "t");
    ASSERT_FALSE(j.is_integer());
    const double y = j.number();
    ASSERT_EQ(std::memcmp(&x, &y, 8), 0) << Json(x).dump();
  }
  EXPECT_EQ(Json(0.1).dump(), "0.1");
  EXPECT_EQ(Json(1.0).dump(), "1.0");
  EXPECT_EQ(Json(-0.0).dump(), "-0.0");
  EXPECT_EQ(Json(std::nan("")).dump(), "null");
  EXPECT_EQ(Json(HUGE_VAL).dump(), "null");
  EXPECT_EQ(Json::parse("18446744073709551615", "t").number(), 18446744073709551615.0);
}

TEST(Json, BytesThatAreNotUtf8AreReplaced) {
  const std::string out = Json(std::string("a\xff\x01")).dump();
  EXPECT_EQ(Json::parse(out, "t").string(), "a\xef\xbf\xbd\x01");
}

TEST(Json, ErrorsNameThePlaceWhatIsExpectedAndWhatIsFound) {
  const Json j =
      Json::parse(R"({"d_model":"big","rope":{"theta":[1,"two"]},"n":0})", "config.json");
  EXPECT_EQ(error_of([&] { j.at("d_model").integer(); }),
      "config.json: d_model: expected an integer, found \"big\"");
  EXPECT_EQ(error_of([&] { j.at("rope").at("theta").items()[1].number(); }),
      "config.json: rope.theta: expected a number, found \"two\"");
  EXPECT_EQ(error_of([&] { j.at("n").integer(1, 8); }),
      "config.json: n: expected an integer in 1 .. 8, found 0");
  EXPECT_EQ(error_of([&] { j.at("n").integer(1); }),
      "config.json: n: expected an integer of at least 1, found 0");
  EXPECT_EQ(error_of([&] { j.at("layers"); }),
      "config.json: expected the key \"layers\", found \"d_model\", \"rope\", \"n\"");
  EXPECT_EQ(error_of([&] { j.at("n").at("x"); }), "config.json: n: expected an object, found 0");
  EXPECT_EQ(error_of([&] { Json(2.5).integer(); }), "expected an integer, found 2.5");
}

TEST(Json, RefusesWhatIsNotJson) {
  for (const char* bad :
      {"", "{", "[1,]", "{\"a\":1,}", "NaN", "01", "{} x", "\"\xff\"", "{'a':1}"}) {
    EXPECT_EQ(
        error_of([&] { Json::parse(bad, "f"); }).rfind("f: not valid JSON: parse error at", 0), 0u)
        << bad;
  }
  EXPECT_EQ(error_of([&] { Json::parse(R"({"x":{"a":1,"b":2,"a":3}})", "f"); }),
      "f: x: the key \"a\" occurs twice");
  const std::string deep(1000000, '[');
  EXPECT_NE(
      error_of([&] { Json::parse(deep, "f"); }).find("nested deeper than the 200 levels allowed"),
      std::string::npos);
  EXPECT_EQ(error_of([&] { Json::load("/none.json"); }),
      "/none.json: cannot be opened: No such file or directory");
  EXPECT_EQ(error_of([&] { Json::load("/"); }), "/: cannot be read: Is a directory");
}

}  // namespace
}  // namespace duet
