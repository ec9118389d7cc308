// duet compare: layouts beside schedules, whose bits are those of one rank; one whose bits are not,
// which is told with its step and its tensor; and what is refused.
#include "pipeline/train/compare_command.h"

#include "test/run_testing.h"

namespace duet {
namespace {

class Compare : public RunTest {
 protected:
  CompareOptions layouts(const std::string& text, int64_t steps = 2) const {
    CompareOptions o;
    o.layouts = split(text, ';');
    o.train = options("", steps);
    o.train.model = parse_sizes("n_layers=8");
    o.train.microbatches = 16;
    o.train.pp = 4;
    o.train.format = Format::json;
    return o;
  }
  static std::pair<bool, std::vector<Json>> rows(const CompareOptions& o) {
    std::ostringstream out;
    const bool same = compare_command(o, out);
    return {same, Json::parse(out.str(), "compare").at("rows").items()};
  }
};

TEST_F(Compare, LayoutsAndSchedulesHaveTheBitsOfOneRank) {
  CompareOptions o = layouts(
      "dp=4 ep=4; dp=2 ep=2 pp=2 schedule=dualpipe; pp=4 schedule=zbv micro-batch-size=2; "
      "dp=4 ep=4 redundant-experts=4 eplb-interval=2 eplb-threshold=1; pp=2 split=5,3 threads=2");
  o.schedules = {"1f1b", "dualpipe"};
  const auto [same, all] = rows(o);
  EXPECT_TRUE(same);
  ASSERT_EQ(all.size(), 8u);
  EXPECT_EQ(all[0].at("schedule").string(), "one rank");
  EXPECT_EQ(all[2].at("schedule").string(), "dualpipe");
  EXPECT_EQ(all[3].at("schedule").string(), "dp=4 ep=4");
  for (const Json& row : all) {
    EXPECT_TRUE(row.at("identical").boolean()) << row.dump();
    EXPECT_TRUE(row.at("first_tensor_that_differs").is_null());
    EXPECT_EQ(row.at("final_loss_hex").string(), all[0].at("final_loss_hex").string());
    EXPECT_EQ(row.at("fingerprint").string(), all[0].at("fingerprint").string());
  }
  EXPECT_EQ(all[3].at("ideal_bubble").number(), 0);  // pp is 1 unless the layout states it
  EXPECT_EQ(all[4].at("parameter_copies").integer(), 2);
}

// Quotas of tokens cut what a segment adds to an expert's gradient in two, so its bits change. Up
// to then all gradients were the same, so the weights are: nothing before the first layer of
// experts can differ in that step, and in that layer only experts.
TEST_F(Compare, AnotherSumIsToldWithItsStepAndTensor) {
  const std::string moving = "dp=4 ep=4 redundant-experts=16 eplb-interval=1 eplb-threshold=1";
  CompareOptions o = layouts(moving + ";" + moving + " replica-split=token", 3);
  o.train.seq_len = 64;
  const auto [same, all] = rows(o);
  EXPECT_FALSE(same);
  EXPECT_TRUE(all[1].at("identical").boolean());
  ASSERT_FALSE(all[2].at("identical").boolean());
  const int64_t step = all[2].at("first_step_that_differs").integer(1, 3);
  const std::string tensor = all[2].at("first_tensor_that_differs").string();
  EXPECT_EQ(tensor.find("model.layers.1.mlp.experts."), 0u) << tensor;
  // its weights are still the same, so all that it computes forward is
  EXPECT_EQ(all[2].at("first_activation_that_differs").string(), "none");
  o.train.format = Format::text;
  std::ostringstream text;
  EXPECT_FALSE(compare_command(o, text));
  EXPECT_NE(text.str().find(cat("differ from step ", step, ": ", tensor)), std::string::npos)
      << text.str();
}

// An order that matters is no fault of the layout, and the table says so.
TEST_F(Compare, SumsBeyondTheirLimitAreTold) {
  CompareOptions o = layouts("dp=2", 1);
  EXPECT_TRUE(rows(o).second[1].at("near_the_limit_of_exact_sums").is_null());
  o.train.balance_loss = 1000;
  o.train.seq_len = 32;
  const std::string said = rows(o).second[1].at("near_the_limit_of_exact_sums").string();
  EXPECT_EQ(said.find("step 1: a sum of gradients came to "), 0u) << said;
  o.train.format = Format::text;
  std::ostringstream text;
  compare_command(o, text);
  for (const char* row : {"one rank", "dp=2"})
    EXPECT_NE(text.str().find(cat(row, ": step 1: a sum of gradients")), std::string::npos)
        << text.str();
}

TEST_F(Compare, WrongLayoutsAreRefused) {
  const auto refused = [&](const std::string& text, const std::vector<std::string>& words) {
    expect_refused([&] { rows(layouts(text)); }, words);
  };
  refused("dp=2; tp=2", {"--layouts: found 'tp=2'", "'tp=2'", "allowed: dp=4", "eplb-interval"});
  refused("dp=2 lr=1", {"--layouts", "'lr=1'"});
  refused("dp=2 help=1", {"--layouts", "'help=1'"});
  refused("dp", {"--layouts", "'dp'"});
  refused("dp=x", {"--layouts: found 'dp=x'", "--dp: found 'x', allowed: 0 to 4096"});
  refused("dp=2 dp=4", {"--layouts", "--dp"});
  refused("overlap=yes", {"--overlap: found 'yes', allowed: on, off"});
  refused("dp=3", {"--layouts: found 'dp=3'", "3 dp x 1 micro-batch-size", "16 sequences"});
  refused("dp=4 microbatches=3", {"4 dp x 1 micro-batch-size x 3 microbatches", "16 sequences"});
  refused("dp=2 ep=4", {"--ep: found 4"});
  EXPECT_TRUE(rows(layouts("dp=4 microbatches=4", 1)).first);
}

}  // namespace
}  // namespace duet
