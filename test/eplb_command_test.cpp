// duet eplb: load files, output and refusals.
#include "pipeline/insight/pictures/eplb_command.h"

#include <sstream>

#include "model/base/json.h"
#include "test/testing.h"

namespace duet {
namespace {

class EplbCommand : public FolderTest {
 protected:
  static std::string run(const EplbCommandOptions& o) {
    std::ostringstream out;
    eplb_command(o, out);
    return out.str();
  }
  // The message, without the folder's name; and nothing was written.
  std::string error_of(const EplbCommandOptions& o) const {
    std::ostringstream out;
    try {
      eplb_command(o, out);
    } catch (const UsageError& e) {
      EXPECT_EQ(out.str(), "");
      std::string text = e.what();
      const size_t at = text.find(folder_ + "/");
      return at == std::string::npos ? text : text.erase(at, folder_.size() + 1);
    }
    return "no error";
  }
};

TEST_F(EplbCommand, LinesAreWholeWhereBothBarsAreFull) {
  const std::string text = run({.loads = write("a.csv", "1,2,3\n"),
      .shape = {.replicas = 3, .groups = 1, .nodes = 1, .gpus = 1}});
  EXPECT_NE(text.find("█ 6         2 1 0\n"), std::string::npos) << text;
}

TEST_F(EplbCommand, JsonOfThePublishedExample) {
  const Json j = Json::parse(run({.format = Format::json}), "t");
  EXPECT_EQ(j.at("phy2log").dump(),
      "[[5,6,5,7,8,4,3,4,10,9,10,2,0,1,11,1],[7,10,6,8,6,11,8,9,2,4,5,1,5,0,3,1]]");
  EXPECT_EQ(j.at("logcnt").dump(), "[[1,2,1,1,2,2,1,1,1,1,2,1],[1,2,1,1,1,2,2,1,2,1,1,1]]");
  EXPECT_EQ(j.at("log2phy").items()[0].items()[5].dump(), "[0,2]");
  EXPECT_EQ(j.at("log2phy").items()[1].items()[0].dump(), "[13,-1]");
  EXPECT_EQ(j.at("gpu_load").items()[0].items()[0].number(), 121.5);
  EXPECT_DOUBLE_EQ(j.at("balancedness").items()[0].number(), 1033. / 8 / 156);
  EXPECT_EQ(j.members().size(), 5u);
}

TEST_F(EplbCommand, CsvAndJsonSayTheSame) {
  EplbCommandOptions o{
      .shape = {.replicas = 6, .groups = 1, .nodes = 1, .gpus = 2}, .format = Format::json};
  o.loads = write("a.csv", "1, 2.5,3e1,4\r\n\n0,0,0,9\n");
  const std::string csv = run(o);
  o.loads = write("a.json", " {\"weight\": [[1, 2.5, 30, 4], [0, 0, 0, 9]]}");
  EXPECT_EQ(run(o), csv);
  EXPECT_EQ(Json::parse(csv, "t").at("phy2log").items().size(), 2u);
}

TEST_F(EplbCommand, EveryFormSaysTheSame) {
  EplbCommandOptions o{
      .shape = {.replicas = 6, .groups = 1, .nodes = 1, .gpus = 2}, .format = Format::json};
  o.loads = write("a.csv", "3,5,30,4\n0,0,2,9\n");
  const std::string csv = run(o);
  int n = 0;
  for (const char* text :
      {"[[3,5,30,4],[0,0,2,9]]", "\n[[[1,5,0,4],[0,0,2,0]],[[2,0,30,0],[0,0,0,9]]]",
          "{\"logical_count\":[[3,5,30,4],[0,0,2,9]]}",
          "{\"rank\":0,\"logical_count\":[[[1,5,0,4],[0,0,2,0]],[[2,0,30,0],[0,0,0,9]]]}",
          "\xEF\xBB\xBF{\"weight\":[[3,5,30,4],[0,0,2,9]]}",
          "\xEF\xBB\xBF"
          "3,5,30,4\n0,0,2,9\n",
          "layer_id,expert_id,count\n3,0,3\n3,1,5\n3,2,30\n3,3,4\n7,3,9\n7,2,2\n",
          "\xEF\xBB\xBFstep, count "
          ",expert_id,layer_id\r\n1,1,0,3\r\n2,2,0,3\r\n1,5,1,3\r\n1,30,2,3\r\n"
          "1,4,3,3\r\n1,9,3,4\r\n1,2,2,4\r\n"}) {
    o.loads = write(cat(n++, ".any"), text);
    EXPECT_EQ(run(o), csv) << text;
  }
}

TEST_F(EplbCommand, WrongDumpsAreNamed) {
  const auto error = [&](const std::string& text) { return error_of({.loads = write("d", text)}); };
  EXPECT_EQ(error("[[1,2],[1,2,3]]"), "d: layer 1: expected 2 experts like layer 0, found 3");
  EXPECT_EQ(error("[[[1],[2]],[[1]]]"), "d: found a step of 1 layers, allowed: 2 like the first");
  EXPECT_EQ(
      error("[[[1,2]],[[1]]]"), "d, layer 0: found 1 experts, allowed: 2 like the first step");
  EXPECT_EQ(error("[]"), "d: expected at least one layer of at least one expert, found none");
  const std::string load = ": expected a load, a finite number >= 0, found ";
  EXPECT_EQ(error("[1,[2]]"), "d, layer 0, expert 1" + load + "[2]");
  EXPECT_EQ(error("[[3e38],[3e38],[-1]]"), "d, layer 2, expert 0" + load + "-1");
  EXPECT_EQ(error("[[1,2],[1,null]]"), "d, layer 1, expert 1" + load + "null");
  EXPECT_EQ(error("[[3e38],[3e38],[\"1\"]]"), "d, layer 2, expert 0" + load + "\"1\"");
  EXPECT_EQ(error("layer_id,expert_id\n1,2\n"), "d: line 1: expected a column count, found none");
  EXPECT_EQ(error("layer_id,expert_id,count\n1,2\n"), "d: line 2: expected 3 columns, found 2");
  EXPECT_EQ(error("layer_id,expert_id,count\n1,99999999,2\n"),
      "d: line 2: expert_id: found '99999999', allowed: 0 to 16383");
  EXPECT_EQ(error("layer_id,expert_id,count\n1,2,x\n"),
      "d: line 2, column 3: expected a number, found 'x'");
  EXPECT_EQ(error("layer_id,expert_id,count\n"),
      "d: expected at least one layer of at least one expert, found none");
}

TEST_F(EplbCommand, WhatIsIgnoredOrWastedIsSaid) {
  const std::string loads = write("a.csv", "90,132,40,61,104,165,39,4");
  EXPECT_EQ(
      error_of({.loads = loads, .shape = {.replicas = 15, .groups = 8, .nodes = 4, .gpus = 15}}),
      "--gpus 15: expected a multiple of --nodes 4");
  const Json j = Json::parse(run({.loads = loads,
                                 .shape = {.replicas = 12, .groups = 8, .nodes = 3, .gpus = 4},
                                 .format = Format::json}),
      "t");
  EXPECT_EQ(j.at("remark").string(),
      "--nodes 3 does not divide --groups 8: planned without groups and nodes");
  // one expert, two slots
  const std::string twice = write("b.csv", "100,1\n");
  const std::string text =
      run({.loads = twice, .shape = {.replicas = 4, .groups = 1, .nodes = 1, .gpus = 1}});
  EXPECT_NE(text.find("0* 0* 0* 1\n"), std::string::npos) << text;
  EXPECT_NE(text.find("several replicas of an expert on one GPU"), std::string::npos) << text;
  EXPECT_EQ(run({}).find("several replicas"), std::string::npos);
}

// As a run and its pictures count them.
TEST_F(EplbCommand, LayersHaveTheFilesNumbers) {
  const auto text = [&](const std::string& loads) {
    return run(
        {.loads = write("l", loads), .shape = {.replicas = 2, .groups = 1, .nodes = 1, .gpus = 1}});
  };
  const std::string line = R"({"step":1,"moe":[{"layer":1,"tokens_per_expert":[3,5]},)"
                           R"({"layer":4,"tokens_per_expert":[2,9]}]})"
                           "\n";
  const std::string run = text(line), listed = text("layer_id,expert_id,count\n4,1,9\n1,0,3\n");
  for (const std::string& found : {run, listed}) {
    EXPECT_NE(found.find("\nlayer 1: balancedness"), std::string::npos) << found;
    EXPECT_NE(found.find("\nlayer 4: balancedness"), std::string::npos) << found;
  }
  EXPECT_NE(text("3,5\n2,9\n").find("\nlayer 0: balancedness"), std::string::npos);
  std::string twice = line;
  EXPECT_EQ(error_of({.loads = write("l", twice.replace(twice.find("4"), 1, "1"))}),
      "l: line 1: moe.layer: expected an integer in 2 .. 1048576, found 1");
}

TEST_F(EplbCommand, TextShowsBothPoliciesWork) {
  const std::string loads = write("a.csv", "90,132,40,61,104,165,39,4,73,56,183,86");
  EXPECT_NE(run({.loads = loads}).find("balancedness 0.540 -> 0.828"), std::string::npos);
  EXPECT_NE(
      run({.loads = loads, .planning = {EplbPolicy::balanced, true}}).find("replicas may leave"),
      std::string::npos);
  EXPECT_NE(run({.loads = loads, .shape = {.replicas = 16, .groups = 3, .nodes = 2, .gpus = 8}})
                .find("--nodes 2 does not divide --groups 3"),
      std::string::npos);
  EXPECT_NE(run({}).find("\nlayer 1: balancedness"), std::string::npos);  // the demonstration
}

TEST_F(EplbCommand, WrongInputIsNamed) {
  EXPECT_EQ(error_of({.loads = folder_ + "/none.csv"}),
      "none.csv: cannot be opened: No such file or directory");
  EXPECT_EQ(error_of({.loads = write("e.csv", "\n")}),
      "e.csv: expected at least one layer of at least one expert, found none");
  EXPECT_EQ(error_of({.loads = write("a.csv", "1,2\n1,x\n")}),
      "a.csv: line 2, column 2: expected a number, found 'x'");
  EXPECT_EQ(error_of({.loads = write("a.csv", "1,2,\n")}),
      "a.csv: line 1, column 3: expected a number, found ''");
  EXPECT_EQ(error_of({.loads = write("a.csv", "1,nan\n")}),
      "a.csv: line 1, column 2: expected a number, found 'nan'");
  EXPECT_EQ(error_of({.loads = write("a.csv", "1,-2\n")}),
      "a.csv: line 1, column 2: expected a load, a finite number >= 0, found -2");
  EXPECT_EQ(error_of({.loads = write("a.csv", "1,2\n1\n")}),
      "a.csv: layer 1: expected 2 experts like layer 0, found 1");
  EXPECT_EQ(error_of({.loads = write("a.json", "{\"weight\": [[1e39]]}")}),
      "a.json: weight, layer 0, expert 0: expected a load, a finite number >= 0, found 1e+39");
  EXPECT_NE(error_of({.loads = write("a.json", "{\"weights\": [[1]]}")}), "no error");
  EXPECT_EQ(error_of({.format = Format::svg}),
      "--format svg: expected --loads OUT/metrics.jsonl of a training run, found none");
  EXPECT_EQ(error_of({.loads = write("b.csv", "1,2\n"), .format = Format::svg}),
      "--format svg: expected --loads OUT/metrics.jsonl of a training run, found b.csv");
  EXPECT_EQ(error_of({.planning = {.replicas_may_leave_node = true}}),
      "--replicas-may-leave-node: expected with --policy balanced, found deepseek");
  EXPECT_EQ(error_of({.shape = {.replicas = 20, .groups = 4, .nodes = 2, .gpus = 8}}),
      "--replicas 20: expected a multiple of --gpus 8");
}

}  // namespace
}  // namespace duet
