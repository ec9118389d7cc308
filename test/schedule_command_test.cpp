// What `duet schedule` prints.
#include "pipeline/insight/pictures/schedule_command.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "model/base/json.h"
#include "testing.h"

namespace duet {
namespace {

std::string output(const ScheduleOptions& options, const Terminal& terminal = {}) {
  std::ostringstream out;
  schedule_command(options, out, terminal);
  return out.str();
}

size_t count(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = text.find(what); at != text.npos; at = text.find(what, at + 1)) ++n;
  return n;
}

bool has(const std::string& text, const std::string& what) { return text.find(what) != text.npos; }

TEST(ScheduleCommand, GridIsToScale) {
  const std::string text = output({.schedule = "1f1b", .pp = 2, .microbatches = 3});
  EXPECT_TRUE(has(text,
      "rank 0 F0 F1 ......B0    F2 B1    ...B2    \n"
      "rank 1 ...F0 B0    F1 B1    F2 B2    ......\n"))
      << text;
  EXPECT_TRUE(has(text, "makespan 12, bubble 25.0%"));
  const std::string pair = output({.schedule = "dualpipe", .pp = 2, .microbatches = 4});
  EXPECT_TRUE(has(pair, "rank 0 F0 f2 F1 b2    [f3B0   ]b3    I1 W1 \n")) << pair;
}

TEST(ScheduleCommand, NarrowTerminalsFoldTheGrid) {
  const std::string text =
      output({.schedule = "gpipe", .pp = 4, .microbatches = 20}, {.color = false, .columns = 80});
  std::istringstream lines(text);
  int folded = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("rank")) continue;
    EXPECT_LE(line.size(), 80u);
    folded += line.starts_with("rank 0");
  }
  EXPECT_EQ(folded, 3);  // 69 units of 3 columns, 73 a band
}

TEST(ScheduleCommand, ColourOnlyWhenAsked) {
  EXPECT_EQ(count(output({}), "\033"), 0u);
  const std::string colored = output({}, {.color = true, .columns = 0});
  EXPECT_GT(count(colored, "\033[38;5;16;48;5;222m"), 20u);
}

TEST(ScheduleCommand, DemonstrationIsDualPipe8x20) {
  const std::string text = output({});
  EXPECT_TRUE(has(text, "DualPipe: 8 ranks, 20 microbatches"));
  EXPECT_TRUE(has(text, "makespan 66, bubble 9.1%, with F=1 I=1 W=1 B=2 FB=3"));
}

TEST(ScheduleCommand, ComparisonShowsTheClaims) {
  const std::string small = output({.compare = true});
  EXPECT_TRUE(has(small,
      "DualPipe              16     66.00     9.1%          9.0              2           +22.7%"))
      << small;
  EXPECT_TRUE(has(small, "ZB1P                   8     67.00"));
  EXPECT_TRUE(has(small, "ZBV                   16     63.50"));
  EXPECT_TRUE(has(small, "a pair of DualPipe must save 8.8%"));
  const std::string large = output({.pp = 16, .microbatches = 120, .compare = true});
  EXPECT_TRUE(has(large, "+8.3%")) << large;
  EXPECT_TRUE(has(large, "a pair of DualPipe must save 18.9%"));
  const std::string odd = output({.pp = 4, .microbatches = 13, .compare = true});
  EXPECT_TRUE(has(odd, "left out: --microbatches: dualpipe needs an even number"));
  const std::string two = output({.schedule = "1f1b,zbv", .compare = true});
  EXPECT_TRUE(has(two, "ZBV") && !has(two, "DualPipe"));
}

TEST(ScheduleCommand, JsonAndCsv) {
  const std::string json =
      output({.schedule = "gpipe", .pp = 2, .microbatches = 1, .format = Format::json});
  EXPECT_EQ(Json::parse(json, "json").dump(),
      R"({"schedule":"gpipe","pp":2,"microbatches":1,"ranks":[["0F0","0B0"],["1F0","1B0"]],)"
      R"("makespan":6.0,"bubble_fraction":[0.5,0.5],"peak_activations":[1,1]})");
  EXPECT_EQ(output({.schedule = "gpipe", .pp = 2, .microbatches = 1, .format = Format::csv}),
      "0F0,0B0\n1F0,1B0\n");
  EXPECT_EQ(count(output({.format = Format::json, .compare = true}), "\"makespan\""), 10u);
}

TEST(ScheduleCommand, SvgIsWholeAndHasEveryAction) {
  const std::string svg = output({.format = Format::svg});
  EXPECT_TRUE(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
  EXPECT_EQ(count(svg, "<text"), count(svg, "</text>"));
  // F, B, I, W, two shades each
  const size_t legend = 8;
  // F, I or B; W
  EXPECT_EQ(count(svg, "class='a'") - legend,
      8 * (20 + 20) + count(output({.format = Format::csv}), "W"));
  EXPECT_EQ(count(svg, "class='p'") - 1, count(output({.format = Format::csv}), "OVERLAP"));
}

TEST(ScheduleCommand, FilesAreCheckedFirst) {
  const std::string good = testing::TempDir() + "good.csv", bad = testing::TempDir() + "bad.csv";
  std::ofstream(good) << "0F0,0F1,0F2,0F3,0B1,0B0,0B2,0B3\n";
  std::ofstream(bad) << "0F0,0B0,0F1\n";
  EXPECT_TRUE(has(output({.schedule = good}), "makespan 12, bubble 0.0%"));
  EXPECT_THROW(output({.schedule = good, .pp = 2}), UsageError);
  std::ostringstream out;
  EXPECT_THROW(schedule_command({.schedule = bad}, out, {}), UsageError);
  EXPECT_EQ(out.str(), "");
}

TEST(ScheduleCommand, WrongOptions) {
  EXPECT_THROW(output({.format = Format::csv, .compare = true}), UsageError);
  EXPECT_THROW(output({.schedule = "1f1b,zbv"}), UsageError);
}

// What is printed with `--cost`, or the refusal.
std::string output_at(const std::string& cost, ScheduleOptions o) {
  o.pp = 2, o.microbatches = 4;
  std::string text;
  const std::string refused = error_of([&] {
    o.cost = read_costs(cost);
    text = output(o);
  });
  return text.empty() ? refused : text;
}

TEST(ScheduleCommand, CostsComeFromAProfileToo) {
  const TemporaryFolder folder;
  const auto file = [&](const std::string& stages) {
    const std::string path = folder.path + "/costs.json";
    std::ofstream(path) << R"({"unit":"s","stages":[)" << stages << R"(],"components":{}})";
    return path;
  };
  const std::string one = R"({"F":0.002,"I":0.003,"W":0.001,"FB":0.005})";
  const std::string slow = R"({"F":0.004,"I":0.003,"W":0.001,"FB":0.008})";
  for (const ScheduleOptions& o : {ScheduleOptions{.schedule = "1f1b"},
           ScheduleOptions{.schedule = "dualpipe", .format = Format::json},
           ScheduleOptions{.schedule = "1f1b,dualpipe", .compare = true}}) {
    const std::string keys = output_at("F=2,I=3,W=1,FB=5", o);
    EXPECT_TRUE(has(keys, "makespan")) << keys;
    EXPECT_EQ(output_at(file(one), o), keys);
  }
  EXPECT_TRUE(has(output_at(file(one + "," + slow), {.schedule = "1f1b"}), "F=3 I=3 W=1"));
  EXPECT_TRUE(has(output_at(file(one + "," + one + "," + one), {.schedule = "1f1b"}),
      "--cost: found a profile of 3 stages, allowed: 1 or the schedule's 2"));
  EXPECT_TRUE(has(output_at(file(one + "," + slow), {.compare = true}), "with --compare: 1"));
}

}  // namespace
}  // namespace duet
