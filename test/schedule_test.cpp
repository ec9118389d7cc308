// Actions as text, schedules as files, and the published grids of small cases.
#include "pipeline/schedule/schedule.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <sstream>

#include "pipeline/schedule/add_comms.h"
#include "pipeline/schedule/checker.h"
#include "test/random_schedule.h"

namespace duet {
namespace {

std::string csv(const Schedule& s) {
  std::ostringstream out;
  write_csv(out, s);
  return out.str();
}

Schedule from_text(const std::string& text) { return read_csv(text, "file.csv"); }

void expect_same(const Schedule& a, const Schedule& b) {
  EXPECT_EQ(a.pp, b.pp);
  EXPECT_EQ(a.microbatches, b.microbatches);
  EXPECT_EQ(a.two_directions, b.two_directions);
  EXPECT_EQ(a.rank_of, b.rank_of);
  EXPECT_EQ(a.ranks, b.ranks);
}

std::string error_of(const std::string& text) {
  try {
    from_text(text);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(Action, TextGoesOutAndIn) {
  for (const char* text : {"2F0", "2I0", "2W0", "2B0", "0F123", "15SEND_F3", "1RECV_F0", "1SEND_B7",
           "0RECV_B7", "(0F3;15B10)OVERLAP_F_B"}) {
    const auto action = parse_action(text);
    ASSERT_TRUE(action.has_value()) << text;
    EXPECT_EQ(to_string(*action), text);
  }
  EXPECT_EQ(parse_action("  2F0\r"), (Action{Kind::F, 2, 0}));
  EXPECT_EQ(parse_action("(0F3;15B10)OVERLAP_F_B"), (Action{Kind::F, 0, 3, 15, 10}));
}

TEST(Action, OtherTextIsRefused) {
  for (const char* text : {"", " ", "F", "2F", "F0", "2f0", "2X0", "-1F0", "2F-1", "2F0x", "2 F0",
           "99999999999F0", "2UNSHARD", "()", "(2F0)OVERLAP_F_B", "(2F0;3B0)",
           "(2F0;3B0)OVERLAP_F_", "(2B0;3F0)OVERLAP_F_B", "(2F0;3I0)OVERLAP_F_B",
           "(2F0;3B0;1B0)OVERLAP_F_B", "(;)OVERLAP_F_B", "()OVERLAP_F_B;", "2F0)OVERLAP_F_B"}) {
    EXPECT_FALSE(parse_action(text).has_value()) << text;
  }
}

TEST(Schedule, GPipeAndOneFOneBAsPublished) {
  EXPECT_EQ(
      csv(make_schedule("gpipe", {2, 3})), "0F0,0F1,0F2,0B0,0B1,0B2\n1F0,1F1,1F2,1B0,1B1,1B2\n");
  EXPECT_EQ(csv(make_schedule("1f1b", {4, 6})),
      "0F0,0F1,0F2,0F3,0B0,0F4,0B1,0F5,0B2,0B3,0B4,0B5\n"
      "1F0,1F1,1F2,1B0,1F3,1B1,1F4,1B2,1F5,1B3,1B4,1B5\n"
      "2F0,2F1,2B0,2F2,2B1,2F3,2B2,2F4,2B3,2F5,2B4,2B5\n"
      "3F0,3B0,3F1,3B1,3F2,3B2,3F3,3B3,3F4,3B4,3F5,3B5\n");
}

TEST(Schedule, InterleavedAsPublished) {
  EXPECT_EQ(csv(make_schedule("interleaved", {2, 4, 2})),
      "0F0,0F1,2F0,2F1,0F2,2B0,0F3,2B1,2F2,0B0,2F3,0B1,2B2,2B3,0B2,0B3\n"
      "1F0,1F1,3F0,3B0,3F1,3B1,1F2,1B0,1F3,1B1,3F2,3B2,3F3,3B3,1B2,1B3\n");
}

TEST(Schedule, ZeroBubbleAsPublished) {
  EXPECT_EQ(csv(make_schedule("zb1p", {3, 4})),
      "0F0,0F1,0F2,0I0,0W0,0F3,0I1,0W1,0I2,0W2,0I3,0W3\n"
      "1F0,1F1,1I0,1F2,1I1,1W0,1F3,1I2,1W1,1I3,1W2,1W3\n"
      "2F0,2I0,2F1,2I1,2F2,2I2,2W0,2F3,2I3,2W1,2W2,2W3\n");
  EXPECT_EQ(csv(make_schedule("zbv", {2, 4})),
      "0F0,0F1,0F2,3F0,3I0,3W0,3F1,3I1,3W1,0F3,0I0,0W0,3F2,3I2,3W2,0I1,0W1,3F3,3I3,3W3,0I2,0W2,0I3,"
      "0W3\n"
      "1F0,2F0,1F1,2F1,2I0,2W0,1F2,1I0,1W0,2F2,2I1,2W1,1F3,1I1,1W1,2F3,2I2,2W2,1I2,2I3,1I3,1W2,2W3,"
      "1W3\n");
}

TEST(Schedule, DualPipeStepByStep) {
  EXPECT_EQ(csv(make_schedule("dualpipe", {2, 4})),
      "0F0,3F2,0F1,3B2,(3F3;0B0)OVERLAP_F_B,3B3,0I1,0W1\n"
      "2F2,1F0,2F3,1B0,(1F1;2B2)OVERLAP_F_B,1B1,2I3,2W3\n");
  const Schedule s = make_schedule("dualpipe", {4, 8});
  EXPECT_EQ(csv(s).substr(0, csv(s).find('\n')),
      "0F0,0F1,"                                    // 1: nF0
      "0F2,7F4,"                                    // 2: nF0F1
      "7I4,7W4,7F5,"                                // 3: nB1W1F1
      "(0F3;7B5)OVERLAP_F_B,(7F6;0B0)OVERLAP_F_B,"  // 4: nF0B1F1B0
      "7B6,(7F7;0B1)OVERLAP_F_B,"                   // 5: nB1F1B0
      "7B7,0I2,"                                    // 6: nB1B0
      "0W2,0I3,"                                    // 7: nWB0
      "0W3");                                       // 8: nW
  EXPECT_EQ(s.rank_of, (std::vector<int>{0, 1, 2, 3, 3, 2, 1, 0}));
  EXPECT_EQ(csv(make_schedule("dualpipev", {1, 3})),
      "0F0,1F0,0F1,1B0,(1F1;0B0)OVERLAP_F_B,(0F2;1B1)OVERLAP_F_B,(1F2;0B1)OVERLAP_F_B,1B2,0I2,"
      "0W2\n");
}

TEST(Schedule, SizesThatDoNotExistAreRefusedByName) {
  const auto error = [](const char* name, const ScheduleSize& size) -> std::string {
    try {
      make_schedule(name, size);
    } catch (const UsageError& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(error("dualpipe", {3, 20}), "--pp: dualpipe needs an even number of ranks, found 3");
  EXPECT_NE(error("dualpipe", {4, 9}).find("--microbatches: dualpipe needs an even number"),
      std::string::npos);
  EXPECT_EQ(error("dualpipe", {4, 6}),
      "--microbatches: dualpipe needs at least 2 per rank, 8 for --pp 4, found 6");
  EXPECT_NE(error("dualpipev", {4, 7}).find("found 7"), std::string::npos);
  EXPECT_EQ(
      error("interleaved", {4, 8, 1}), "--virtual-stages: interleaved needs 2 or more, found 1");
  EXPECT_NE(error("gpipe", {0, 8}).find("--pp"), std::string::npos);
  EXPECT_NE(error("gpipe", {2, 0}).find("--microbatches"), std::string::npos);
  EXPECT_NE(error("magic", {2, 2})
                .find("gpipe, 1f1b, interleaved, zb1p, zb-h2, zbv, v-half, v-min, dualpipe, "
                      "dualpipev, or a file"),
      std::string::npos);
  EXPECT_NE(error("nowhere.csv", {0, 0}).find("nowhere.csv: cannot be opened"), std::string::npos);
}

TEST(ScheduleFile, EveryGeneratorReadsBackWithItsPlacement) {
  for (const ScheduleKind& kind : schedule_kinds()) {
    for (const ScheduleSize size : {ScheduleSize{2, 4, 2}, {4, 8, 3}, {4, 14, 2}, {8, 20, 2}}) {
      SCOPED_TRACE(cat(kind.name, " ", size.pp, " ", size.microbatches));
      const Schedule s = kind.make(size);
      EXPECT_EQ(csv(s).find('#'), std::string::npos);
      expect_same(from_text(csv(s)), s);
    }
  }
}

TEST(ScheduleFile, RandomSchedulesReadBack) {
  std::mt19937 rng(1);
  for (int i = 0; i < 300; ++i) {
    const Schedule s = random_schedule(random_shape(rng), rng);
    expect_same(from_text(csv(s)), s);
  }
}

TEST(ScheduleFile, RemarksAndEmptyCellsAreSkipped) {
  const Schedule s = from_text("# a remark\n\n0F0, ,0B0,\n");
  EXPECT_EQ(csv(s), "0F0,0B0\n");
  EXPECT_FALSE(s.two_directions);
}

TEST(ScheduleFile, ErrorsNameLineAndCell) {
  EXPECT_NE(error_of("0F0,0B0\n1F0,,1Q0\n").find("file.csv:2, cell 3: expected an action"),
      std::string::npos);
  EXPECT_NE(
      error_of("0F0,0SEND_F0\n").find("file.csv:1, cell 2: found 0SEND_F0"), std::string::npos);
  EXPECT_NE(error_of("").find("found none"), std::string::npos);
  EXPECT_NE(error_of("0F0,2F0\n").find("stage 1 is missing"), std::string::npos);
  EXPECT_NE(error_of("0F99999999\n").find("expected numbers below"), std::string::npos);
}

// As PyTorch writes them once they are lowered.
TEST(ScheduleFile, SendsAndReceivesAreMatchedAndLeftOut) {
  for (const ScheduleKind& kind : schedule_kinds()) {
    const Schedule s = kind.make({4, 8, 2});
    expect_same(from_text(csv(add_comms(s))), s);
  }
  const std::string lowered = "0F0,0SEND_F0,0RECV_B0,0B0\n1RECV_F0,1F0,1B0,1SEND_B0\n";
  EXPECT_EQ(csv(from_text(lowered)), "0F0,0B0\n1F0,1B0\n");
  const auto error = [&](const std::string& from, const std::string& to) {
    std::string text = lowered;
    return error_of(text.replace(text.find(from), from.size(), to));
  };
  EXPECT_EQ(error("0SEND_F0", ""),
      "file.csv:2, cell 1: found 1RECV_F0, but no cell has 0SEND_F0, the other end of the message");
  EXPECT_EQ(error("1RECV_F0", "0SEND_F0"), "file.csv:2, cell 1: found 0SEND_F0 a second time");
  EXPECT_EQ(error("0RECV_B0", "1RECV_B0"),
      "file.csv:1, cell 3: found 1RECV_B0 in a row that does not run stage 1");
  EXPECT_EQ(error("1SEND_B0", "9SEND_B0"),
      "file.csv:2, cell 4: found 9SEND_B0 in a row that does not run stage 9");
  // of what there is not, though both ends are there
  EXPECT_EQ(error_of("0F0,0SEND_F5,0B0\n1RECV_F5,1F0,1B0\n"),
      "file.csv:1, cell 2: found 0SEND_F5, but its row has no forward of stage 0 for microbatch 5");
  EXPECT_EQ(error("1SEND_B0", "1SEND_B1"),
      "file.csv:2, cell 4: found 1SEND_B1, but its row has no backward of stage 1 for microbatch "
      "1");
  // sent before it is made, received after it is needed
  EXPECT_EQ(error("0F0,0SEND_F0", "0SEND_F0,,0F0"),
      "file.csv:1, cell 1: found 0SEND_F0 before its forward in cell 3");
  EXPECT_EQ(error("1B0,1SEND_B0", "1SEND_B0,1I0,1W0"),
      "file.csv:2, cell 3: found 1SEND_B0 before its backward in cell 4");
  EXPECT_EQ(error("1RECV_F0,1F0", "1F0,1RECV_F0"),
      "file.csv:2, cell 2: found 1RECV_F0 after its forward in cell 1");
}

// As PyTorch 2.15 writes them, with all that concerns its own runtime.
TEST(ScheduleFile, WhatALoweredScheduleSaysBesideIsLeftOut) {
  const std::string lowered =
      "0UNSHARD,0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0I0,0WAIT_SEND_F0,0W0,0RECV_B1,0B1,"
      "0WAIT_SEND_F1,0REDUCE_GRAD,0WAIT_REDUCE_GRAD,0RESHARD\n"
      "1UNSHARD,1RECV_F0,1F0,1RECV_F1,1B0,1SEND_B0,1F1,1B1,1SEND_B1,1REDUCE_GRAD,"
      "1WAIT_REDUCE_GRAD,1RESHARD,1WAIT_SEND_B0,1WAIT_SEND_B1\n";
  EXPECT_EQ(csv(from_text(lowered)), "0F0,0F1,0I0,0W0,0B1\n1F0,1B0,1F1,1B1\n");
  // a V: nothing is sent between stages 0 and 1
  EXPECT_EQ(csv(from_text("0UNSHARD,1UNSHARD,0F0,1F0,0F1,1B0,(1F1;0B0)OVERLAP_F_B,1REDUCE_GRAD,1B1,"
                          "0I1,0W1,0REDUCE_GRAD,1WAIT_REDUCE_GRAD,1RESHARD,0RESHARD\r\n")),
      "0F0,1F0,0F1,1B0,(1F1;0B0)OVERLAP_F_B,1B1,0I1,0W1\n");
  // no I and no W, and yet not the B of old
  EXPECT_EQ(csv(from_text("0F0,0SEND_F0,0RECV_B0,0B0,0WAIT_SEND_F0\n1RECV_F0,1F0,1B0,1SEND_B0\n")),
      "0F0,0B0\n1F0,1B0\n");
  const auto error = [&](const std::string& from, const std::string& to) {
    std::string text = lowered;
    return error_of(text.replace(text.find(from), from.size(), to));
  };
  for (const char* wrong : {"0UNSHRD", "0UNSHARD0", "UNSHARD", "0RESHARD_", "0WAIT_SEND_F",
           "0WAIT_RECV_F0", "0WAIT_RESHARD", "0WAIT_F0"})
    EXPECT_NE(error("0UNSHARD", wrong)
                  .find(cat("file.csv:1, cell 1: expected an action such as "
                            "0F1, 2I0, 2W0, 2B0 or (0F1;7B0)OVERLAP_F_B, "
                            "found ",
                      wrong)),
        std::string::npos)
        << error("0UNSHARD", wrong);
  EXPECT_EQ(error("1UNSHARD", "7UNSHARD"),
      "file.csv:2, cell 1: found 7UNSHARD in a row that does not run stage 7");
  EXPECT_EQ(error("0WAIT_SEND_F1", "0WAIT_SEND_F9"),
      "file.csv:1, cell 12: found 0WAIT_SEND_F9, but its row has no forward of stage 0 for "
      "microbatch 9");
}

TEST(ScheduleFile, OldNamesOfBackwardsAreRead) {
  EXPECT_EQ(csv(from_text("0F0,0BW0\n1F0,1B0,1W0\n")), "0F0,0B0\n1F0,1I0,1W0\n");
  EXPECT_EQ(csv(from_text("# I\n0F0,0B0,,0W0\n")), "0F0,0I0,0W0\n");
  EXPECT_EQ(csv(from_text("0F0,0BW0\n")), "0F0,0B0\n");
  EXPECT_EQ(csv(from_text("0F0,0B0\n")), "0F0,0B0\n");
  EXPECT_NE(
      error_of("0F0,0I0,0W0,0F1,0BW1\n").find("cell 5: expected an action"), std::string::npos);
}

TEST(ScheduleFile, ATypingErrorIsNamedAndNotWhatItLeavesMissing) {
  EXPECT_EQ(error_of("0F0,0F1,0F2\n1F0,1F1,100F2\n"),
      "file.csv:2, cell 3: found stage 100, but stages 2 to 99 are missing: no row has an action "
      "of it");
  EXPECT_EQ(error_of("# x\n0F0,,0F100\n"),
      "file.csv:2, cell 3: found microbatch 100, but microbatches 1 to 99 are missing: no row has "
      "an "
      "action of it");
  EXPECT_EQ(error_of("1F0\n"),
      "file.csv:1, cell 1: found stage 1, but stage 0 is missing: no row has an action of it");
  const std::string big(100000, 'x');
  EXPECT_LT(error_of("0F0," + big + "\n").size(), 400u);
}

// What would take stages x microbatches is not taken for a few cells.
TEST(ScheduleFile, FewCellsTakeLittleMemory) {
  EXPECT_NE(error_of("0F1048574\n").find("cell 1: found microbatch 1048574"), std::string::npos);
  std::string text, row;
  for (int m = 0; m < 5000; ++m) row += cat(m ? "," : "", "0F", m);
  for (int stage = 1; stage < 1000; ++stage) text += cat("\n", stage, "F0");
  try {
    check(from_text(row + text));
    FAIL();
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("found 5999 actions, expected at least 10000000 for 5000 "
                                         "microbatches through 1000 stages"),
        std::string::npos)
        << e.what();
  }
}

// Reader and checker count alike: from 1, remarks and empty cells too.
TEST(ScheduleFile, TheCheckerNamesLinesAndCells) {
  const auto expect_refused = [](const char* text, const std::vector<std::string>& words) {
    try {
      check(from_text(text));
      ADD_FAILURE() << text;
    } catch (const UsageError& e) {
      for (const std::string& word : words)
        EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
    }
  };
  expect_refused("# a remark\n0F0,0B0\n\n1F0,1I0\n", {"lacks a W at stage 1", "rank 1 (line 4):"});
  expect_refused("0F0,,0B0,0B0\n",
      {"0B0 comes a second time, the first is line 1, cell 3\n",
          "rank 0 (line 1):  0F0  0B0 >0B0<"});
  EXPECT_NE(error_of("0F0,,0B0,junk\n").find("file.csv:1, cell 4: expected"), std::string::npos);
  expect_refused("\n0F0,0SEND_F0,0RECV_B0,,0B0,0F1,0B1\n1RECV_F0,1F0,1F1,1B0,1SEND_B0,1B1\n",
      {"rank 0 at 0B0 (line 2, cell 5) waits for 1I0; rank 1 at 1F1 (line 3, cell 3) waits for "
       "0F1"});
  expect_refused(",0F0,0F1,0F2,0F3,0F4,0F5,0F6,0F7,0B0,0B1,0B2,0B3,0B4,0B5,0B6,0B7,0B7\n",
      {"rank 0 (line 1)  .. from 10:  0B0"});
}

TEST(ScheduleFile, SizesGivenMustBeTheFiles) {
  const std::string path = testing::TempDir() + "schedule_test.csv";
  std::ofstream(path) << csv(make_schedule("1f1b", {2, 4}));
  EXPECT_EQ(make_schedule(path, {0, 0}).pp, 2);
  EXPECT_EQ(make_schedule(path, {2, 4}).microbatches, 4);
  EXPECT_THROW(make_schedule(path, {4, 4}), UsageError);
  EXPECT_THROW(make_schedule(path, {2, 5}), UsageError);
}

TEST(Schedule, GeneratorsAreQuick) {
  const auto start = std::chrono::steady_clock::now();
  size_t actions = 0;
  for (const ScheduleKind& kind : schedule_kinds()) {
    for (const auto& row : kind.make({64, 1024, 2}).ranks) actions += row.size();
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_GT(actions, 10 * 64 * 1024u);
  EXPECT_LT(seconds, 2);
}

}  // namespace
}  // namespace duet
