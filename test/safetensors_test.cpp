// safetensors: what is written reads back, the bytes are the format's, and every kind of damage is
// refused by name.
#include "pipeline/checkpoint/safetensors.h"

#include <cmath>
#include <cstring>
#include <random>

#include "test/testing.h"

namespace duet {
namespace {

class Safetensors : public FolderTest {
 protected:
  // A file with this header text and this many bytes of data.
  void raw(const std::string& header, size_t data_bytes) const {
    std::ofstream out(path, std::ios::binary);
    const uint64_t length = header.size();
    out.write(reinterpret_cast<const char*>(&length), 8);
    out << header << std::string(data_bytes, '\0');
  }
  std::string error() const {
    return error_of([&] { SafetensorsReader reader(path); });
  }
  const std::string path = folder_ + "/t.safetensors";
};

std::string tensor(const char* name, const char* dtype, const char* shape, const char* offsets) {
  return cat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape,
      ",\"data_offsets\":", offsets, "}");
}

std::string f4_at(int begin) {
  return tensor("w", "F32", "[4]", cat("[", begin, ",", begin + 16, "]").c_str());
}

TEST_F(Safetensors, RoundTrip) {
  const std::vector<float> w{1, -2, 3.5f, 4, 5, 6};
  const std::vector<bf16> h{bf16(1), bf16(-0.5f), bf16(3)};
  const std::vector<int64_t> ids{-1, int64_t(1) << 40};
  const double norm = 0.1;
  FileWriter out(path);
  SafetensorsWriter writer(out,
      {{"h", "BF16", {3}}, {"w", "F32", {2, 3}}, {"a.w", "F32", {0, 4}}, {"ids", "I64", {2}},
          {"norm", "F64", {}}});
  std::vector<std::string> order;
  for (const TensorSpec& t : writer.tensors()) order.push_back(t.name);
  EXPECT_EQ(order, (std::vector<std::string>{"ids", "norm", "a.w", "w", "h"}));
  writer.write("ids", ids.data(), 16);
  writer.write("norm", &norm, 8);
  writer.write("a.w", nullptr, 0);
  writer.write("w", w.data(), 24);
  writer.write("h", h.data(), 6);
  writer.finish();
  out.close();

  const SafetensorsReader reader(path);
  EXPECT_EQ(reader.tensors().size(), 5u);
  const std::map<std::string, size_t> align{
      {"ids", 8}, {"norm", 8}, {"a.w", 4}, {"w", 4}, {"h", 2}};
  for (const auto& [name, t] : reader.tensors())
    EXPECT_EQ(size_t(t.begin) % align.at(name), 0u) << name;
  EXPECT_EQ(std::memcmp(reader.bytes(reader.at("w", {2, 3}), 0, 24).data(), w.data(), 24), 0);
  EXPECT_EQ(std::memcmp(reader.bytes(reader.at("ids", {2}), 0, 16).data(), ids.data(), 16), 0);
  EXPECT_EQ(reader.at("a.w", {0, 4}).elements(), 0);
  EXPECT_EQ(reader.floats(reader.at("w", {2, 3})), w);
  EXPECT_EQ(reader.floats(reader.at("h", {3})), (std::vector<float>{1, -0.5f, 3}));
  EXPECT_EQ(reader.floats(reader.at("norm", {})), std::vector<float>{0.1f});
  EXPECT_EQ(reader.find("none"), nullptr);
  EXPECT_THROW(reader.floats(reader.at("ids", {2})), UsageError);
}

TEST_F(Safetensors, AFileThatShrinksIsNamed) {
  raw("{" + tensor("w", "F32", "[100000]", "[0,400000]") + "}", 400000);
  const SafetensorsReader reader(path);
  fs::resize_file(path, 200000);
  const auto refused = [&](auto read) {
    try {
      read();
      ADD_FAILURE() << "read from a file that has become shorter";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(path + ": expected 400"), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("became shorter"), std::string::npos) << e.what();
    }
  };
  refused([&] { reader.floats(reader.at("w", {100000})); });
  refused([&] { reader.bytes(reader.at("w", {100000}), 399992, 8); });
}

// Where nobody reads the values the type need not be known, but sizes must be ones that add up.
TEST_F(Safetensors, TensorsOfOtherTypes) {
  raw("{" + tensor("w", "F8_E4M3", "[4]", "[0,4]") + "}", 4);
  const SafetensorsReader reader(path);
  EXPECT_EQ(reader.bytes(reader.at("w", {4}), 0, 4), std::string(4, '\0'));
  EXPECT_THROW(reader.floats(reader.at("w", {4})), UsageError);
  raw("{" + tensor("w", "F8_E4M3", "[1099511627776,1099511627776]", "[0,4]") + "}", 4);
  EXPECT_NE(error().find("overflows 64 bits"), std::string::npos) << error();
}

TEST_F(Safetensors, BytesAreTheFormats) {
  FileWriter out(path);
  SafetensorsWriter writer(out, {{"b", "I32", {1}}});
  const int32_t seven = 7;
  writer.write("b", &seven, 4);
  writer.finish();
  out.close();
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}})";
  std::string expected("\x58\0\0\0\0\0\0\0", 8);
  expected += header + std::string(0x58 - header.size(), ' ') + std::string("\7\0\0\0", 4);
  EXPECT_EQ(contents(path), expected);
}

TEST_F(Safetensors, WriterWantsEveryTensorInOrder) {
  FileWriter out(path);
  SafetensorsWriter writer(out, {{"a", "F32", {2}}, {"b", "F32", {1}}});
  const float x[3] = {};
  EXPECT_THROW(writer.write("b", x, 4), Error);
  EXPECT_THROW(writer.write("a", x, 4), Error);
  writer.write("a", x, 8);
  EXPECT_THROW(writer.write("a", x, 8), Error);
  EXPECT_THROW(writer.finish(), Error);
  writer.write("b", x, 4);
  writer.finish();
  EXPECT_THROW(writer.write("b", x, 4), Error);
}

TEST_F(Safetensors, AtNamesTheTensor) {
  raw("{" + tensor("w", "F32", "[2,3]", "[0,24]") + "}", 24);
  const SafetensorsReader reader(path);
  auto at_error = [&](const std::string& name, const std::vector<int64_t>& shape) -> std::string {
    try {
      reader.at(name, shape);
    } catch (const UsageError& e) {
      return std::string(e.what()).substr(path.size());
    }
    return "no error";
  };
  EXPECT_EQ(at_error("w", {2, 3}), "no error");
  EXPECT_EQ(at_error("v", {2, 3}), ": tensor v is missing (the file has 1 tensors)");
  EXPECT_EQ(at_error("w", {3, 2}), ": w: expected shape [3, 2], found [2, 3]");
}

TEST_F(Safetensors, RefusesDamageByName) {
  struct Case {
    std::string header;
    size_t data;
    std::string error;
  };
  const std::string f4 = tensor("a", "F32", "[4]", "[0,16]");
  const std::vector<Case> cases = {
      {"{" + f4 + "}", 16, "no error"},
      {"{}", 0, "no error"},
      {"{" + f4 + "}", 15,
          ": a: the data ends at byte 16, but the file has only 15 bytes of data: truncated?"},
      {"{" + f4 + "}", 17, ": 1 bytes after the last tensor"},
      {"{" + tensor("a", "F16", "[4]", "[0,8]") + "}", 8, "no error"},
      {"{" + tensor("a", "F16", "[4]", "[0,4]") + "}", 4,
          ": a: F16 [4] needs 8 bytes, data_offsets give 4"},
      {"{" + tensor("a", "F8_E4M3", "[4]", "[0,4]") + "," + f4_at(4) + "}", 20, "no error"},
      {"{" + tensor("a", "F8_E4M3", "[4]", "[0,4]") + "," + f4_at(8) + "}", 24,
          ": w: a gap of 4 bytes before it"},
      {"{" + tensor("a", "F32", "[5]", "[0,16]") + "}", 16,
          ": a: F32 [5] needs 20 bytes, data_offsets give 16"},
      {"{" + tensor("a", "F32", "[-1]", "[0,4]") + "}", 4,
          ": a.shape: expected an integer of at least 0, found -1"},
      {"{" + tensor("a", "F32", "[4294967296,4294967296]", "[0,0]") + "}", 0,
          ": a: the shape overflows 64 bits: [4294967296, 4294967296]"},
      {"{" + tensor("a", "F32", "[1]", "[4,0]") + "}", 4,
          ": a.data_offsets: expected an integer of at least 4, found 0"},
      {"{" + tensor("a", "F32", "[1]", "[0]") + "}", 4, ": a: expected two data_offsets, found 1"},
      {"{" + f4 + "," + tensor("b", "F32", "[1]", "[12,16]") + "}", 16,
          ": b: overlaps the tensor before it by 4 bytes"},
      {"{" + f4 + "," + tensor("b", "F32", "[1]", "[20,24]") + "}", 24,
          ": b: a gap of 4 bytes before it"},
      {"{" + f4 + "," + f4 + "}", 16, ": the key \"a\" occurs twice"},
      {"{\"a\":{\"dtype\":\"F32\"}}", 0, ": a: expected the key \"shape\", found \"dtype\""},
      {"[]", 0, ": expected an object, found []"},
  };
  for (const Case& c : cases) {
    raw(c.header, c.data);
    const std::string found = error();
    EXPECT_EQ(
        c.error == "no error" ? found : found.substr(std::min(path.size(), found.size())), c.error)
        << c.header;
  }
}

// Every half there is: sign, exponent and fraction by the format's definition.
TEST_F(Safetensors, HalvesAreConverted) {
  std::vector<uint16_t> bits(1 << 16);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = uint16_t(i);
  FileWriter out(path);
  SafetensorsWriter writer(out, {{"h", "F16", {1 << 16}}});
  writer.write("h", bits.data(), 2 << 16);
  writer.finish();
  out.close();
  const SafetensorsReader reader(path);
  const std::vector<float> found = reader.floats(reader.at("h", {1 << 16}));
  for (int i = 0; i < 1 << 16; ++i) {
    const int e = i >> 10 & 31, f = i & 1023;
    if (e == 31) {
      EXPECT_TRUE(f ? std::isnan(found[i]) : std::isinf(found[i])) << i;
    } else {
      const double size =
          e ? (1 + f / 1024.) * std::pow(2., e - 15) : f / 1024. * std::pow(2., -14);
      ASSERT_EQ(double(found[i]), i >> 15 ? -size : size) << i;
    }
    ASSERT_TRUE(std::isnan(found[i]) || std::signbit(found[i]) == bool(i >> 15)) << i;
  }
  EXPECT_EQ(found[0x3c00], 1.f);
  EXPECT_EQ(found[0x7bff], 65504.f);
  EXPECT_EQ(found[0x8001], -0x1p-24f);
}

TEST_F(Safetensors, WhatIsNotFiniteIsNamed) {
  for (const auto& [bad, text] :
      std::map<float, std::string>{{INFINITY, "inf"}, {-INFINITY, "-inf"}}) {
    const float values[] = {0, 1, bad, std::nanf("")};
    FileWriter out(path);
    SafetensorsWriter writer(out, {{"e.bias", "F32", {4}}});
    writer.write("e.bias", values, 16);
    writer.finish();
    out.close();
    const SafetensorsReader reader(path);
    EXPECT_TRUE(std::isnan(reader.floats(reader.at("e.bias", {4}))[3]));
    EXPECT_EQ(error_of([&] { reader.finite(reader.at("e.bias", {4})); }),
        path + ": e.bias: found " + text + " at element 2, allowed: finite numbers");
  }
}

// A tensor that is not read may have any type; one that is read may not.
TEST_F(Safetensors, OtherTypesAreRefusedOnlyWhereTheyAreRead) {
  raw("{" + tensor("a", "F8_E4M3", "[4]", "[0,4]") + "," + f4_at(4) + "}", 20);
  const SafetensorsReader reader(path);
  EXPECT_EQ(reader.floats(reader.at("w", {4})), std::vector<float>(4));
  EXPECT_EQ(error_of([&] { reader.floats(reader.at("a", {4})); }),
      path + ": a: expected dtype F32, BF16, F16 or F64, found F8_E4M3");
}

TEST_F(Safetensors, RefusesWhatIsNotSafetensors) {
  EXPECT_EQ(error(), path + ": cannot be opened: No such file or directory");
  std::ofstream(path) << "short";
  EXPECT_EQ(error(), path + ": expected a safetensors file, found only 5 bytes");
  std::ofstream(path) << "a text that is longer than eight bytes";
  EXPECT_EQ(error(),
      path +
          ": expected a header of at most 30 bytes, found 8367816168101388385: "
          "truncated, or not a safetensors file");
  fs::remove(path);
  fs::create_directory(path);
  EXPECT_EQ(error(), path + ": expected a file, found a directory or device");
}

// Cut anywhere, or with any byte of the header altered, a file either still reads as a valid one or
// is refused: never a crash.
TEST_F(Safetensors, RandomDamageNeverCrashes) {
  raw("{" + tensor("a", "F32", "[4]", "[0,16]") + "," + tensor("b", "BF16", "[2,2]", "[16,24]") +
          "}",
      24);
  const std::string good = contents(path);
  for (size_t cut = 0; cut < good.size(); cut += 3) {
    std::ofstream(path, std::ios::binary) << good.substr(0, cut);
    EXPECT_NE(error(), "no error") << cut;
  }
  std::mt19937 random(3);
  int refused = 0;
  for (int n = 0; n < 150; ++n) {
    std::string bad = good;
    for (int k = 0; k < 1 + n % 3; ++k) bad[random() % (bad.size() - 24)] = char(random());
    std::ofstream(path, std::ios::binary) << bad;
    refused += error() != "no error";
  }
  EXPECT_GT(refused, 75);
}

}  // namespace
}  // namespace duet
