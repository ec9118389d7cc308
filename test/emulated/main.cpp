// The tests that run on the emulated GPU: of its own, of what needs a GPU, and of whole runs. Four
// GPUs, unless the environment says otherwise; what the emulation holds against a test fails it.
// Tests of comm/ that need none are the other binary's, but for CommOverlap's, of which one does.
#include <gtest/gtest.h>

#include <cstdlib>

#include "test/emulated/emulated.h"

namespace {

class Complaints : public testing::EmptyTestEventListener {
  void OnTestEnd(const testing::TestInfo&) override {
    for (const std::string& text : emulated::complaints()) ADD_FAILURE() << text;
  }
};

}  // namespace

int main(int argc, char** argv) {
  setenv("DUET_EMULATED_GPUS", "4", 0);
  if (!getenv("GTEST_FILTER")) GTEST_FLAG_SET(filter, "-Cpu/*:CommHost.*");
  testing::InitGoogleTest(&argc, argv);
  testing::UnitTest::GetInstance()->listeners().Append(new Complaints);
  return RUN_ALL_TESTS();
}
