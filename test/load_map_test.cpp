// The heat map of a run's loads: what training reports, what is read, what the cells are, what is
// drawn.
#include "pipeline/insight/pictures/load_map.h"

#include "pipeline/insight/pictures/eplb_command.h"
#include "run_testing.h"

namespace duet {
namespace {

class LoadMap : public RunTest {
 protected:
  std::string file(const std::string& text) const {
    std::ofstream(folder_ + "/metrics.jsonl") << text;
    return folder_ + "/metrics.jsonl";
  }
  std::string eplb(const std::string& loads, Format format) const {
    std::ostringstream out;
    eplb_command({.loads = loads,
                     .shape = {.replicas = 4, .groups = 1, .nodes = 1, .gpus = 2},
                     .format = format},
        out);
    return out.str();
  }
};

size_t count(const std::string& text, const std::string& word) {
  size_t n = 0;
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++n;
  return n;
}

const std::string kTwoSteps = R"({"step":7,"moe":[{"layer":2,"tokens_per_expert":[30,10,0,0],)"
                              R"("tokens_per_rank":[20,20],"replan":{"moves":0}}]})"
                              "\n"
                              R"({"step":8,"moe":[{"layer":2,"tokens_per_expert":[15,5,10,10],)"
                              R"("tokens_per_rank":[30,10],"replan":{"moves":3}}]})"
                              "\n";

// Experts stay in order, each once: then the ranks' tokens follow from the experts', with any
// groups and copies of stages.
TEST_F(LoadMap, RanksReportWhatTheyCompute) {
  TrainOptions o = options("run", 2);
  o.dp = 4;
  o.micro_batch_size = 1;
  o.ep = o.pp = 2;
  o.schedule = "dualpipe";
  run(o);
  const RunLoads loads = read_metrics(contents(o.out + "/metrics.jsonl"), "metrics.jsonl");
  ASSERT_EQ(loads.layers.size(), 2u);
  for (const LayerHistory& layer : loads.layers) {
    EXPECT_EQ(layer.ranks, loads_in_order(layer.experts, 2));
    // topk, dp, microbatches, tokens
    EXPECT_EQ(layer.ranks[1][0] + layer.ranks[1][1], 2 * 4 * 4 * 16);
  }
}

TEST_F(LoadMap, ReadsARun) {
  const RunLoads run = read_metrics(kTwoSteps, "metrics.jsonl");
  EXPECT_EQ(run.first_step, 7);
  EXPECT_EQ(run.steps, 2);
  ASSERT_EQ(run.layers.size(), 1u);
  EXPECT_EQ(run.layers[0].layer, 2);
  EXPECT_EQ(run.layers[0].experts, (LayerHistory::Tokens{{30, 10, 0, 0}, {15, 5, 10, 10}}));
  EXPECT_EQ(run.layers[0].ranks, (LayerHistory::Tokens{{20, 20}, {30, 10}}));
  EXPECT_EQ(run.layers[0].moved, std::vector<int64_t>{8});
}

TEST(LoadMapCells, AreMeansOfLoadOverMean) {
  const LayerHistory::Tokens loads = {{3, 1}, {1, 1}, {0, 0}, {0, 8}, {5, 15}};
  // over their mean: 1.5 and .5, 1 and 1, nothing to do, 0 and 2, .5 and 1.5
  EXPECT_EQ(
      heat(loads, 1), (std::vector<std::vector<double>>{{1.5, 1, 1, 0, .5}, {.5, 1, 1, 2, 1.5}}));
  EXPECT_EQ(heat(loads, 2), (std::vector<std::vector<double>>{{1.25, .5, .5}, {.75, 1.5, 1.5}}));
  EXPECT_EQ(loads_in_order({{1, 2, 3, 4, 5, 6}}, 3), (LayerHistory::Tokens{{3, 7, 11}}));
}

TEST_F(LoadMap, DrawsRunsOfOneColour) {
  const std::string svg = eplb(file(kTwoSteps), Format::svg);
  EXPECT_EQ(count(svg, "scale(400 8)"), 3u) << svg;
  // darkest blue: experts 2 and 3 had nothing in the first step
  EXPECT_NE(svg.find("d='M0 2h1M0 3h1'"), std::string::npos);
  EXPECT_NE(svg.find(">0.750<"), std::string::npos);  // before: 40 and 0, 20 and 20
  EXPECT_NE(svg.find(">0.833<"), std::string::npos);  // after: 20 and 20, 30 and 10
  EXPECT_EQ(count(svg, "l3 5h-6z"), 1u);
  // the same load in 1000 steps: columns of three steps, and a line for each expert
  std::string lasting;
  for (int step = 1; step <= 1000; ++step)
    lasting += cat(R"({"step":)", step, R"(,"moe":[{"layer":0,"tokens_per_expert":[3,1]}]})", '\n');
  const std::string one = eplb(file(lasting), Format::svg);
  EXPECT_NE(one.find("a column is 3 steps"), std::string::npos);
  EXPECT_EQ(count(one, "h334"), 2u) << one;
  EXPECT_EQ(count(one, "rank"), 0u);  // one rank has all experts
}

TEST_F(LoadMap, PlansForTheSum) {
  const std::string plan = eplb(file(kTwoSteps), Format::json), csv = folder_ + "/sum.csv";
  std::ofstream(csv) << "45,15,10,10\n";
  EXPECT_EQ(plan, eplb(csv, Format::json));
}

TEST_F(LoadMap, WrongLinesAreNamed) {
  const auto refused = [&](const std::string& from, const std::string& to,
                           const std::string& says) {
    std::string text = kTwoSteps;
    text.replace(text.rfind(from), from.size(), to);
    expect_refused([&] { eplb(file(text), Format::svg); }, {"metrics.jsonl: line 2: ", says});
  };
  refused("}]}", "}", "not valid JSON");
  refused("\"step\":8", "\"step\":9", "step: found 9, allowed: 8");
  refused("\"layer\":2", "\"layer\":3", "layer");
  refused("[30,10]", "[30,10,0]", "moe.tokens_per_rank: found 3 loads, allowed: 2");
  refused("[15,5,10,10]", "[15,5,10,-1]", "moe.tokens_per_expert");
  refused("\"tokens_per_rank\":[30,10],", "",
      "tokens_per_rank: found none, allowed: in all lines or in none");
  expect_refused([&] { eplb(file("{\"step\":1,\"moe\":[]}\n"), Format::svg); },
      {"line 1: moe: found no layer with experts"});
  for (const Format format : {Format::svg, Format::text})  // a run that was killed early
    expect_refused([&] { eplb(file(kTwoSteps.substr(0, kTwoSteps.find('\n'))), format); },
        {"metrics.jsonl: found no whole line"});
  expect_refused([&] { eplb(file(""), Format::svg); }, {"metrics.jsonl"});
  expect_refused([&] { eplb(file(kTwoSteps.substr(0, 20)), Format::text); }, {"metrics.jsonl: "});
}

}  // namespace
}  // namespace duet
