// Json: what is written reads back to the same bits, and what is wrong is named.
#include "model/base/json.h"

#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "model/base/read_file.h"
#include "test/processor_clock.h"
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
  EXPECT_EQ(error_of([] { Json::parse("{\"a\\nb\": 1}", "f").at("x"); }),
      "f: expected the key \"x\", found \"a?b\"");
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

// model.safetensors.index.json of DeepSeek-V3 has 91,991 tensors.
TEST(Json, ReadsAModelsIndexAtOnce) {
  std::string text = "{\"weight_map\":{";
  for (int i = 0; i < 91991; ++i)
    text += cat(i ? "," : "", "\"model.layers.", i / 1500, ".mlp.experts.", i, ".weight\":\"model-",
        i % 163, ".safetensors\"");
  const double begin = processor_seconds();
  const Json::Object map = Json::parse(text + "}}", "index").at("weight_map").members();
  // looked up one by one, keys take a minute; under SAN=thread at once is two seconds
  EXPECT_LT(processor_seconds() - begin, 10);
  ASSERT_EQ(map.size(), 91991u);
  EXPECT_EQ(map[91990].first, "model.layers.61.mlp.experts.91990.weight");
  EXPECT_EQ(map[91990].second.string(), "model-58.safetensors");
}

TEST(Json, NumbersHaveBounds) {
  const Json j = Json::parse(R"({"x":2.5,"n":9223372036854775807})", "f");
  EXPECT_EQ(j.at("x").number(0, 3), 2.5);
  EXPECT_EQ(
      error_of([&] { j.at("x").number(0, 2); }), "f: x: expected a number in 0 .. 2, found 2.5");
  EXPECT_EQ(
      error_of([&] { j.at("x").number(3); }), "f: x: expected a number of at least 3, found 2.5");
  EXPECT_EQ(error_of([&] { j.at("n").integer(0, 9); }),
      "f: n: expected an integer in 0 .. 9, found 9223372036854775807");
}

TEST(Json, LongTextsAreShortenedInMessages) {
  const std::string big(100000, 'x');
  for (const std::string& text : {"\"" + big, "{\"" + big + "\":1,\"" + big + "\":2}",
           "[" + big + "]", "{\"a\":\"" + big + "\"}", "{\"" + big + "\":{\"a\":\"\"}}"})
    EXPECT_LT(error_of([&] {
      const Json j = Json::parse(text, "f");
      j.members().at(0).second.integer();
    }).size(),
        600u);
}

class ReadFile : public FolderTest {};

TEST_F(ReadFile, LeavesOutTheByteOrderMark) {
  EXPECT_EQ(read_file(write("a", "\xEF\xBB\xBF{}\n")), "{}\n");
  EXPECT_EQ(read_file(write("b", "\xEF\xBB")), "\xEF\xBB");
  EXPECT_EQ(read_file(write("c", "")), "");
  EXPECT_EQ(Json::load(path("a")).dump(), "{}");
  const std::string long_text(200001, 'y');
  EXPECT_EQ(read_file(write("d", long_text)), long_text);
}

TEST_F(ReadFile, RefusesWhatIsNoFileWithoutWaiting) {
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  EXPECT_EQ(error_of([&] { read_file(path("pipe")); }),
      path("pipe") + ": expected a file, found a pipe or device");
  EXPECT_EQ(error_of([&] { read_file("/dev/zero"); }),
      "/dev/zero: expected a file, found a pipe or device");
  EXPECT_EQ(error_of([&] { read_file(folder_); }), folder_ + ": cannot be read: Is a directory");
  EXPECT_EQ(error_of([&] { read_file(path("none")); }),
      path("none") + ": cannot be opened: No such file or directory");
}

}  // namespace
}  // namespace duet
