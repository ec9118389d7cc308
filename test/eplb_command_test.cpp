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
  const std::string text =
      run({.loads = write("a.csv", "1,2,3\n"), .replicas = 3, .groups = 1, .nodes = 1, .gpus = 1});
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
  EplbCommandOptions o{.replicas = 6, .groups = 1, .nodes = 1, .gpus = 2, .format = Format::json};
  o.loads = write("a.csv", "1, 2.5,3e1,4\r\n\n0,0,0,9\n");
  const std::string csv = run(o);
  o.loads = write("a.json", " {\"weight\": [[1, 2.5, 30, 4], [0, 0, 0, 9]]}");
  EXPECT_EQ(run(o), csv);
  EXPECT_EQ(Json::parse(csv, "t").at("phy2log").items().size(), 2u);
}

TEST_F(EplbCommand, TextShowsBothPoliciesWork) {
  const std::string loads = write("a.csv", "90,132,40,61,104,165,39,4,73,56,183,86");
  EXPECT_NE(run({.loads = loads}).find("balancedness 0.540 -> 0.828"), std::string::npos);
  EXPECT_NE(run({.loads = loads, .policy = EplbPolicy::balanced, .replicas_may_leave_node = true})
                .find("replicas may leave"),
      std::string::npos);
  EXPECT_NE(run({.loads = loads, .groups = 3}).find("--nodes 2 does not divide --groups 3"),
      std::string::npos);
  EXPECT_NE(run({}).find("\nlayer 1: balancedness"), std::string::npos);  // the demonstration
}

TEST_F(EplbCommand, WrongInputIsNamed) {
  EXPECT_EQ(error_of({.loads = folder_ + "/none.csv"}), "--loads none.csv: cannot be read");
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
      "a.json: weight, layer 0: expected a load, a finite number >= 0, found 1e+39");
  EXPECT_NE(error_of({.loads = write("a.json", "{\"weight\": [[null]]}")}), "no error");
  EXPECT_NE(error_of({.loads = write("a.json", "{\"weights\": [[1]]}")}), "no error");
  EXPECT_EQ(error_of({.format = Format::svg}),
      "--format svg: expected --loads OUT/metrics.jsonl of a training run, found none");
  EXPECT_EQ(error_of({.loads = write("b.csv", "1,2\n"), .format = Format::svg}),
      "--format svg: expected --loads OUT/metrics.jsonl of a training run, found b.csv");
  EXPECT_EQ(error_of({.replicas_may_leave_node = true}),
      "--replicas-may-leave-node: expected with --policy balanced, found deepseek");
  EXPECT_EQ(error_of({.replicas = 20}), "--replicas 20: expected a multiple of --gpus 8");
}

}  // namespace
}  // namespace duet
