// duet diff: largest differences and the first element against plain loops over the numbers that
// were written; every way in which two files can differ; dumps and checkpoints of runs.
#include "pipeline/checkpoint/diff_command.h"

#include <cmath>
#include <limits>
#include <random>

#include "test/run_testing.h"

namespace duet {
namespace {

struct Written {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<double> values;
};
using Tensors = std::map<std::string, Written>;

constexpr double kInf = std::numeric_limits<double>::infinity(), kNan = NAN;

template <class T> std::string as(const std::vector<double>& values) {
  std::string bytes;
  for (double x : values) {
    const T t = T(x);
    bytes.append(reinterpret_cast<const char*>(&t), sizeof t);
  }
  return bytes;
}

std::string bytes_of(const Written& t) {
  if (t.dtype == "F64") return as<double>(t.values);
  if (t.dtype == "I64") return as<int64_t>(t.values);
  if (t.dtype == "I32") return as<int32_t>(t.values);
  if (t.dtype == "F32") return as<float>(t.values);
  return t.dtype == "BF16" ? as<bf16>(t.values) : as<uint8_t>(t.values);  // of F8 their bits
}

class Diff : public RunTest {
 protected:
  std::string save(const std::string& name, const Tensors& tensors) const {
    fs::create_directories(fs::path(path(name)).parent_path());
    std::vector<TensorSpec> specs;
    for (const auto& [tensor, t] : tensors) specs.push_back({tensor, t.dtype, t.shape});
    FileWriter file(path(name));
    SafetensorsWriter writer(file, specs);
    for (const TensorSpec& spec : writer.tensors()) {
      const std::string bytes = bytes_of(tensors.at(spec.name));
      writer.write(spec.name, bytes.data(), bytes.size());
    }
    writer.finish();
    file.close();
    return path(name);
  }
  // What the command says, and whether all agrees.
  static std::pair<bool, std::string> diff(
      const std::string& a, const std::string& b, double tolerance = 0) {
    std::ostringstream out;
    const bool agree = diff_command({a, b, tolerance}, out);
    return {agree, out.str()};
  }
  static Json json(const std::string& a, const std::string& b, double tolerance = 0) {
    std::ostringstream out;
    const bool agree = diff_command({a, b, tolerance, Format::json}, out);
    const Json j = Json::parse(out.str(), "diff");
    EXPECT_EQ(j.at("agree").boolean(), agree);
    return j;
  }
  static Json of_tensor(const Json& j, const std::string& name) {
    for (const Json& t : j.at("tensors").items())
      if (t.at("tensor").string() == name) return t;
    ADD_FAILURE() << "no tensor " << name;
    return j;
  }
  static std::string first_line_with(const std::string& text, const std::string& word) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);)
      if (line.find(word) != line.npos) return line;
    return "none with " + word;
  }
  const Tensors two_ = {{"model.norm.weight", {"F32", {4}, {1, 2, 3, 4}}},
      {"model.layers.0.self_attn.o_proj.weight", {"F32", {2, 3}, {1, -2, 3, -4, 5, -6}}}};
};

TEST_F(Diff, LargestDifferencesAndFirstElementAreThoseOfPlainLoops) {
  std::mt19937 random(1);
  const auto number = [&] { return double(int(random() % 2001)) - 1000; };
  for (const char* dtype : {"F32", "F64", "BF16", "I32", "I64"})
    for (int64_t n : {1, 7, 65536, 65537, 150001}) {
      Written x{dtype, {n}, {}};
      for (int64_t i = 0; i < n; ++i)  // BF16 holds whole numbers up to 256
        x.values.push_back(std::string(dtype) == "BF16" ? double(random() % 200) : number());
      Written y = x;
      for (int changes = 0; changes < 3; ++changes) y.values[random() % size_t(n)] += 1 + changes;
      const std::string a = save("a", {{"t", x}}), b = save("b", {{"t", y}});
      for (double tolerance : {0.0, 0.0015, 0.5}) {
        double largest = 0, magnitude = 0;
        for (size_t i = 0; i < size_t(n); ++i) {
          largest = std::max(largest, std::abs(x.values[i] - y.values[i]));
          magnitude = std::max({magnitude, std::abs(x.values[i]), std::abs(y.values[i])});
        }
        size_t first = 0;
        while (first < size_t(n) &&
            std::abs(x.values[first] - y.values[first]) <= tolerance * magnitude)
          ++first;
        const Json t = of_tensor(json(a, b, tolerance), "t");
        EXPECT_EQ(t.at("largest_absolute").number(), largest) << dtype << n;
        EXPECT_EQ(t.at("largest_relative").number(), largest / magnitude) << dtype << n;
        ASSERT_EQ(t.at("agrees").boolean(), first == size_t(n)) << dtype << n << " " << tolerance;
        if (first == size_t(n)) continue;
        EXPECT_EQ(t.at("first_beyond").at("element").integer(), int64_t(first));
        EXPECT_EQ(std::stod(t.at("first_beyond").at("a").string()), x.values[first]);
        EXPECT_EQ(std::stod(t.at("first_beyond").at("b").string()), y.values[first]);
      }
    }
}

TEST_F(Diff, EqualFilesAgree) {
  const auto [agree, text] = diff(save("a", two_), save("b", two_));
  EXPECT_TRUE(agree);
  EXPECT_EQ(text, "2 tensors: 2 equal, 0 within, 0 differ\n");
}

TEST_F(Diff, TheFirstElementIsNamedInTheOrderOfTheForwardPass) {
  Tensors other = two_;
  other["model.norm.weight"].values[0] = 9;
  other["model.layers.0.self_attn.o_proj.weight"].values[4] = 5.5;
  const auto [agree, text] = diff(save("a", two_), save("b", other));
  EXPECT_FALSE(agree);
  EXPECT_EQ(first_line_with(text, "the first"),
      "the first beyond 0: model.layers.0.self_attn.o_proj.weight [1, 1], element 4: A 5, B 5.5");
  EXPECT_NE(text.find("2 tensors: 0 equal, 0 within, 2 differ"), text.npos) << text;
  // of the larger magnitude of the two, 6
  EXPECT_EQ(of_tensor(json(path("a"), path("b")), "model.layers.0.self_attn.o_proj.weight")
                .at("largest_relative")
                .number(),
      0.5 / 6);
}

TEST_F(Diff, WithinTheToleranceIsToldAndAgrees) {
  Tensors other = two_;
  other["model.norm.weight"].values[2] = 3.25;
  const auto [agree, text] = diff(save("a", two_), save("b", other), 0.0625);  // 0.25 of 4
  EXPECT_TRUE(agree) << text;
  EXPECT_NE(first_line_with(text, "model.norm.weight").find("within"), text.npos) << text;
  EXPECT_FALSE(diff(path("a"), path("b"), 0.0624).first);
}

TEST_F(Diff, MissingAndMisshapenTensorsAreListed) {
  Tensors other = two_;
  other["model.norm.weight"].shape = {2, 2};
  other["lm_head.weight"] = {"BF16", {1}, {1}};
  other["input_ids"] = {"I32", {1}, {1}};
  Tensors one = two_;
  one["loss"] = {"F64", {}, {3}};
  const auto [agree, text] = diff(save("a", one), save("b", other));
  EXPECT_FALSE(agree);
  const char* lines[] = {"input_ids", "model.norm.weight", "lm_head.weight", "loss"};
  const char* said[] = {"missing in A, B has I32 [1]", "A has F32 [4], B has F32 [2, 2]",
      "missing in A, B has BF16", "missing in B, A has F64 []"};
  size_t at = 0;
  for (int i = 0; i < 4; ++i) {
    EXPECT_NE(first_line_with(text, lines[i]).find(said[i]), text.npos) << text;
    EXPECT_GT(text.find(lines[i]), at) << text;  // in forward order
    at = text.find(lines[i]);
  }
  EXPECT_NE(text.find("5 tensors: 1 equal, 0 within, 4 differ"), text.npos) << text;
}

TEST_F(Diff, NamesThatATerminalWouldObeyAreEscaped) {
  Tensors other = two_;
  other["\x1b[31mred"] = {"F32", {1}, {1}};
  Tensors third = other;
  third["\x1b[31mred"].values = {2};
  EXPECT_EQ(diff(save("a", two_), save("b", other)).second.find('\x1b'), std::string::npos);
  EXPECT_EQ(diff(path("b"), save("c", third)).second.find('\x1b'), std::string::npos);
}

TEST_F(Diff, NumbersThatAreNotFinite) {
  const auto one = [&](double a, double b) {
    const std::string x = save("a", {{"t", {"F32", {2}, {1, a}}}}),
                      y = save("b", {{"t", {"F64", {2}, {1, b}}}});
    return diff(x, y, 1e20).first;
  };
  EXPECT_TRUE(one(kNan, kNan));
  EXPECT_TRUE(one(kInf, kInf));
  EXPECT_TRUE(one(0.0, -0.0));
  for (const auto& [a, b] : std::vector<std::pair<double, double>>{
           {kNan, 1}, {1, kNan}, {kInf, 1}, {kInf, -kInf}, {kNan, kInf}, {-kInf, kNan}})
    EXPECT_FALSE(one(a, b)) << a << " " << b;
  EXPECT_NE(first_line_with(diff(path("a"), path("b")).second, "the first").find("A -inf, B nan"),
      std::string::npos);
}

TEST_F(Diff, WholeNumbersBeyondADoublesMantissaAreToldApart) {
  const auto file = [&](const char* name, int64_t value) {
    FileWriter out(path(name));
    SafetensorsWriter writer(out, {{"t", "I64", {1}}});
    writer.write("t", &value, 8);
    writer.finish();
    out.close();
    return path(name);
  };
  const int64_t big = (int64_t(1) << 60) + 1;
  EXPECT_EQ(first_line_with(diff(file("a", big), file("b", big - 1)).second, "the first"),
      cat("the first beyond 0: t [0], element 0: A ", big, ", B ", big - 1));
}

// The published weights of DeepSeek-V3 are E4M3.
TEST_F(Diff, FloatsOfEightBits) {
  const std::vector<double> bits = {0, 1, 8, 0x38, 0x7e, 0x7f, 0x80 + 0x38};
  const std::vector<double> e4m3 = {0, std::ldexp(1, -9), std::ldexp(1, -6), 1, 448, kNan, -1},
                            e5m2 = {
                                0, std::ldexp(1, -16), std::ldexp(1, -13), 0.5, kNan, kNan, -0.5};
  const Tensors eight = {{"a", {"F8_E4M3", {7}, bits}}, {"b", {"F8_E5M2", {7}, bits}}};
  const Tensors wide = {{"a", {"F32", {7}, e4m3}}, {"b", {"F32", {7}, e5m2}}};
  EXPECT_TRUE(diff(save("a", eight), save("b", wide)).first) << diff(path("a"), path("b")).second;
  Tensors other = eight;
  other.at("a").values[4] = 0x7d;
  const Json j = of_tensor(json(path("a"), save("c", other)), "a");
  EXPECT_EQ(j.at("largest_absolute").number(), 32);
  EXPECT_FALSE(diff(path("a"), path("c")).first);
}

TEST_F(Diff, ModelsInSeveralFilesAndTheirIndex) {
  save("whole/model.safetensors", two_);
  auto half = two_.begin();
  save("parts/1.safetensors", {*half});
  save("parts/2.safetensors", {*std::next(half)});
  const std::string index = write("parts/model.safetensors.index.json",
      cat("{\"weight_map\": {\"", half->first, "\": \"1.safetensors\", \"", std::next(half)->first,
          "\": \"2.safetensors\"}}"));
  EXPECT_TRUE(diff(path("whole"), path("parts")).first);
  EXPECT_TRUE(diff(index, path("whole/model.safetensors")).first);
  save("parts/2.safetensors", two_);
  expect_refused([&] { diff(index, path("whole")); }, {"in two files"});
  save("parts/2.safetensors", {{"other", {"F32", {1}, {1}}}});
  expect_refused(
      [&] { diff(index, path("whole")); }, {index, std::next(half)->first, "2.safetensors"});
}

TEST_F(Diff, WrongInputIsRefused) {
  const std::string a = save("a", two_), b = save("b", {{"other", {"F32", {1}, {1}}}});
  expect_refused([&] { diff("", ""); }, {"A, B: found none"});
  expect_refused([&] { diff(a, ""); }, {"A, B: found only A"});
  expect_refused([&] { diff(a, path("nothing")); }, {"nothing"});
  expect_refused([&] { diff(a, folder_); }, {"model.safetensors"});
  expect_refused([&] { diff(a, write("text", "no tensors at all")); }, {"text", "safetensors"});
  expect_refused([&] { diff(a, b); }, {"no tensor in common"});
}

// Names of a model of two layers in the order in which the forward pass comes by.
TEST_F(Diff, ForwardOrder) {
  std::vector<std::string> names = {"input_ids", "targets", "model.embed_tokens.weight"};
  for (const char* layer : {"0.", "2.", "10."})
    for (const char* part : {"input_layernorm", "self_attn.q_a_proj", "self_attn.q_a_layernorm",
             "self_attn.q_b_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.kv_a_layernorm",
             "self_attn.kv_b_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp.gate",
             "mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj",
             "mlp.shared_experts.down_proj", "mlp.experts.2.gate_proj", "mlp.experts.2.up_proj",
             "mlp.experts.2.down_proj", "mlp.experts.10.gate_proj"})
      names.push_back(cat("model.layers.", layer, part, ".weight"));
  for (const char* name : {"model.norm.weight", "lm_head.weight", "logits", "loss",
           "grad.model.embed_tokens.weight", "grad.model.layers.1.mlp.down_proj.weight",
           "grad.lm_head.weight", "m.model.embed_tokens.weight", "v.model.embed_tokens.weight"})
    names.push_back(name);
  std::vector<std::string> sorted = names;
  std::shuffle(sorted.begin(), sorted.end(), std::mt19937(2));
  std::sort(sorted.begin(), sorted.end(), [](const std::string& a, const std::string& b) {
    return forward_place(a) < forward_place(b);
  });
  EXPECT_EQ(sorted, names);
  EXPECT_LT(forward_place("layer.2.topk_idx"), forward_place("layer.2.output"));
  EXPECT_LT(forward_place("layer.2.output"), forward_place("layer.10.topk_idx"));
}

// Dumps carry what goes from layer to layer, in global sequence order: those of two layouts are
// equal, and of two seeds differ from the first layer on. Checkpoints likewise, with moments.
TEST_F(Diff, RunsUnderTwoLayouts) {
  TrainOptions one = options("one", 2), other = options("other", 2), seed = options("seed", 2);
  one.microbatches = 16;
  other.dp = other.ep = other.pp = other.micro_batch_size = 2;
  other.microbatches = 4;
  other.schedule = "dualpipe";
  other.model = one.model = seed.model = parse_sizes("n_layers=4");
  seed.seed = 1;
  seed.microbatches = 16;
  for (TrainOptions* o : {&one, &other, &seed}) {
    o->dump_step = 2;
    run(*o);
  }
  const auto dump = [&](const char* run) { return path(cat(run, "/dump-step-2.safetensors")); };
  const auto [agree, text] = diff(dump("one"), dump("other"));
  EXPECT_TRUE(agree) << text;
  EXPECT_EQ(first_difference(dump("one"), dump("other")), "");
  EXPECT_EQ(first_difference(dump("one"), dump("seed")).find("input_ids ["), 0u);
  const SafetensorsReader reader(dump("other"));
  const ModelConfig config = checkpoint_config(newest_checkpoint(path("one")));
  for (int64_t layer = 0; layer < 4; ++layer) {
    const SafetensorsReader::Entry& output =
        reader.at(cat("layer.", layer, ".output"), {16, 16, config.d_model});
    EXPECT_EQ(output.dtype, "F32");
    const std::string choices = cat("layer.", layer, ".topk_idx");
    EXPECT_EQ(reader.find(choices) == nullptr, config.dense(layer)) << layer;
    if (config.dense(layer)) continue;
    const SafetensorsReader::Entry& t = reader.at(choices, {16, 16, config.topk});
    ASSERT_EQ(t.dtype, "I32");
    const std::string chosen = reader.bytes(t, 0, t.size);
    for (int64_t i = 0; i < t.elements(); ++i) {
      int32_t expert;
      memcpy(&expert, chosen.data() + i * 4, 4);
      ASSERT_TRUE(expert >= 0 && expert < config.n_routed) << expert;
    }
  }
  const std::string of_seeds = diff(dump("one"), dump("seed")).second;
  EXPECT_NE(first_line_with(of_seeds, "the first").find("input_ids"), of_seeds.npos) << of_seeds;
  EXPECT_NE(of_seeds.find("layer.0.output"), of_seeds.npos);

  const auto checkpoints = diff(path("one"), path("other"));
  EXPECT_TRUE(checkpoints.first) << checkpoints.second;
  EXPECT_FALSE(diff(path("one"), path("seed")).first);
  EXPECT_EQ(
      of_tensor(json(path("one"), path("other")), "m.lm_head.weight").at("agrees").boolean(), true);
}

}  // namespace
}  // namespace duet
