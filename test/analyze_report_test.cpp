// What analyze writes: text, JSON, a timeline, a cost profile; and what it says of duet's own
// traces.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "analyze_testing.h"
#include "model/base/json.h"
#include "pipeline/insight/trace/analyze_command.h"
#include "pipeline/insight/trace/report.h"
#include "pipeline/schedule/simulator.h"
#include "pipeline/train/train_command.h"
#include "testing.h"

namespace duet {
namespace {

using AnalyzeReport = FolderTest;

TEST_F(AnalyzeReport, SaysLoudlyThatNothingCommunicates) {
  const std::string trace = write("t.json", TraceText().kernel("gemm", 7, 0, 1000).text());
  std::ostringstream out;
  analyze_command({.traces = {trace}}, {}, out);
  EXPECT_NE(out.str().find("NOTHING WAS CLASSED AS COMMUNICATION"), std::string::npos);
  EXPECT_NE(out.str().find("--classify"), std::string::npos);
  EXPECT_NE(out.str().find("gemm"), std::string::npos);
}

// A name from somebody's file: what a terminal would obey is escaped, what does not fit is cut
// between characters.
TEST_F(AnalyzeReport, NamesOfOthersArePrintable) {
  std::string long_name;
  for (int i = 0; i < 60; ++i) long_name += "\u00e9\u20ac";
  TraceText t;
  t.annotation("\\u001b[31mred", 0, 30);
  t.kernel(long_name, 7, 1000, 3000, 1).kernel("nccl\\u0007X", 27, 1000, 5000, 21);
  t.event(
      "kernel", "of a stream", {0, 8}, 100, 200, R"("stream":"\u20ac\u20ac\u20ac\u20ac\u20ac")");
  const std::string trace = write("t.json", t.text());
  for (const Format format : {Format::text, Format::json, Format::svg}) {
    std::ostringstream out;
    analyze_command({.traces = {trace}, .format = format}, {}, out);
    const std::string said = out.str();
    EXPECT_EQ(said.find_first_of("\x1b\x07"), said.npos) << said;
    for (std::string_view left = said; !left.empty(); left.remove_prefix(character_length(left)))
      ASSERT_GT(character_length(left), 0u) << said;
  }
}

TEST_F(AnalyzeReport, DrawsATimelineAndWritesAProfile) {
  TraceText t;
  t.annotation("attn(F)", 0, 10).annotation("dispatch(F)", 20, 30).annotation("attn(B)", 40, 50);
  t.kernel("a<b&c>", 7, 1000, 3000, 1)
      .kernel("ncclX", 27, 1000, 5000, 21)
      .kernel("b", 7, 5000, 9000, 41);
  const std::string trace = write("t.json", t.text());
  std::ostringstream svg;
  analyze_command(
      {.traces = {trace}, .format = Format::svg, .profile = folder_ + "/p.json"}, {}, svg);
  EXPECT_EQ(svg.str().rfind("<svg ", 0), 0u);
  for (const char* part : {"attn(F)", "</svg>", "exposed, "})
    EXPECT_NE(svg.str().find(part), std::string::npos) << part;
  const CostProfile profile = read_profile(folder_ + "/p.json");
  ASSERT_EQ(profile.stages.size(), 1u);
  EXPECT_DOUBLE_EQ(profile.stages[0].F, 2e-6);
  EXPECT_DOUBLE_EQ(profile.stages[0].I, 2e-6);  // a B without a W: half of it
  EXPECT_DOUBLE_EQ(profile.stages[0].W, 2e-6);
  EXPECT_DOUBLE_EQ(profile.stages[0].FB, 6e-6);
  const Json components = Json::load(folder_ + "/p.json").at("components");
  EXPECT_DOUBLE_EQ(components.at("dispatch").at("F").number(), 4e-6);
  // A single entry is every stage's, so that the simulator says of it what it says of costs of 1.
  for (const char* name : {"1f1b", "dualpipe"}) {
    const Schedule s = make_schedule(name, {4, 12, 1});
    EXPECT_NEAR(simulate(s, profile).makespan, 2e-6 * simulate(s, {{StageCosts()}}).makespan, 1e-15)
        << name;
  }
}

TEST_F(AnalyzeReport, OfARecordedRunSaysWhatItsLastLineSaid) {
  TrainOptions o;
  o.preset = "tiny", o.model = parse_sizes("n_layers=4"), o.seq_len = 16, o.microbatches = 4,
  o.steps = 3;
  o.dp = o.ep = o.pp = 2, o.schedule = "dualpipe", o.device = DeviceKind::cpu, o.threads = 1;
  o.val_sequences = 4, o.sample = 0;
  std::string last;
  std::ostringstream out;
  analyze_command(
      {},
      [&](const std::string& file, std::ostream& lines) {
        o.trace = file;
        std::ostringstream run;
        train_command(o, run);
        lines << run.str();
        last = run.str().substr(run.str().rfind("steps  mean of ranks"));
      },
      out);
  const std::string text = out.str();
  EXPECT_NE(text.find(last, text.find(last) + 1), std::string::npos) << last << "not again in\n"
                                                                     << text;
  EXPECT_NE(text.find("collectives matched over ranks"), std::string::npos) << text;
  EXPECT_NE(text.find("dispatch F, for experts F"), std::string::npos) << text;
}

TEST_F(AnalyzeReport, OfADamagedRecordingNothingStays) {
  std::string file;
  const auto record = [&](const std::string& f, std::ostream&) { std::ofstream(file = f) << "{"; };
  std::ostringstream out;
  EXPECT_THROW(analyze_command({}, record, out), UsageError);
  EXPECT_FALSE(fs::exists(file)) << file;
}

}  // namespace
}  // namespace duet
