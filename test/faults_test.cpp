// Faults: of a short run every call of the system that can fail is made to fail, one after the
// other, and the power is cut at every moment that matters (test/faults/). After each, the run is
// resumed. What must hold:
//
//   - duet ends in order: exit status 0 and the right numbers, or 1 or 2 and one line on stderr
//   - what is called complete is whole
//   - the resumed run has the bits of one that was never disturbed, or says in one line why not
//
// `make test` tries a sample; `make faults` (DUET_FAULTS=all) each call, and prints the table.
// Read next: faults/shim.cpp.
#include <algorithm>
#include <climits>
#include <cstdlib>
#include <map>

#include "test/processes.h"
#include "test/run_testing.h"

namespace duet {
namespace {

// What became of the runs with one kind of fault.
struct Tally {
  int calls = 0, tried = 0;
  int unharmed = 0, said_why = 0, killed = 0;  // the disturbed run
  int same_bits = 0, refused = 0, lost = 0;    // the resumed run
};

class Faults : public RunTest {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    GTEST_SKIP() << "a sanitizer's own library must be loaded first";
#endif
    const fs::path folder = fs::path(program_path()).parent_path();
    duet_ = program_path();
    duet_.replace(duet_.rfind("test_duet"), 9, "duet");
    shim_ = (folder / "faults.so").string();
    if (!fs::exists(shim_)) GTEST_SKIP() << "no " << shim_ << ": it is built on Linux with glibc";
    fs::create_directories(root_);
    write_words(root_ + "/words.txt");
    fs::copy(root_, path("fresh"));
    ASSERT_EQ(train(2, "").status, 0);
    fs::copy(root_, path("half"), fs::copy_options::recursive);
    ASSERT_EQ(train(kSteps, "").status, 0);
    expected_ = bits("disk/runs/a");
    ASSERT_EQ(expected_.size(), size_t(kSteps) + 2);  // lines of metrics.jsonl, two files
  }

  // Runs `duet train` to `steps`, or goes on; its output is what it says on stderr.
  Ended train(
      int64_t steps, const std::string& environment, const std::string& more = kAlone) const {
    return run_command(cat("{ timeout -k 1 60 env ", environment, " '", duet_,
        "' train --preset tiny --model n_layers=2 --data '", root_,
        "/words.txt' --seq-len 16 --decay-steps 8 --warmup-steps 2 --device cpu "
        "--val-sequences 2 --sample 0 --log-every 1 --checkpoint-every 1 --resume --out '",
        root_, "/runs/a' --steps ", steps, " ", more, " 2>&1 >/dev/null; }"));
  }
  Ended disturbed(const std::string& fault, const std::string& more) const {
    return train(kSteps,
        cat("LD_PRELOAD='", shim_, "' DUET_FAULT='", fault, "' DUET_FAULT_ROOT='", root_,
            "' DUET_FAULT_COUNTS='", path("counts"), "' DUET_FAULT_TREES='", path("trees"), "'"),
        more);
  }
  void begin_with(const std::string& folder) const {
    fs::remove_all(root_);
    fs::copy(folder, root_, fs::copy_options::recursive);
  }
  std::map<std::string, int> counts(const std::string& more) const {
    const Ended e = disturbed("count 0", more);
    EXPECT_EQ(e.status, 0) << e.output;
    std::map<std::string, int> calls;
    std::ifstream in(path("counts"));
    std::string kind;
    for (int n; in >> kind >> n;) calls[kind] = n;
    return calls;
  }

  static bool in_one_line(const Ended& e) {
    return (e.status == 1 || e.status == 2) && e.output.starts_with("duet: ") &&
        std::count(e.output.begin(), e.output.end(), '\n') == 1;
  }

  // What is complete must be whole, and the run go on to its bits.
  void expect_recovery(Tally& tally, const std::string& what) const {
    for (const std::string& dir : complete_dirs(root_ + "/runs/a"))
      EXPECT_NO_THROW(verify(dir)) << what << ": " << dir;
    const Ended again = train(kSteps, "");
    if (again.status == 0 && bits("disk/runs/a") == expected_) {
      ++tally.same_bits;
    } else if (in_one_line(again)) {
      ++tally.refused;
      RecordProperty(what, again.output);
      if (all()) printf("%s: refused: %s", what.c_str(), again.output.c_str());
    } else {
      ++tally.lost;
      ADD_FAILURE() << what << ": resumed with status " << again.status
                    << (again.status ? "" : ", other numbers") << ": " << again.output;
    }
  }

  // Fails calls `kind` number 1 .. `calls` of the run that begins with `start`, or `most` of them.
  Tally fail_each(const std::string& start, const std::string& kind, int calls, int most,
      const std::string& more = kAlone) const {
    Tally tally{calls};
    for (int n : sample(calls, most)) {
      ++tally.tried;
      const std::string what = cat(fs::path(start).filename().string(), ", ", kind, " ", n);
      begin_with(start);
      const Ended e = disturbed(cat(kind, " ", n), more);
      if (kind == "kill" && e.status == 137)
        ++tally.killed;
      else if (e.status == 0 && e.output.empty() && bits("disk/runs/a") == expected_)
        ++tally.unharmed;
      else if (in_one_line(e))
        ++tally.said_why;
      else
        ADD_FAILURE() << what << ": status " << e.status << ": " << e.output;
      expect_recovery(tally, what);
    }
    return tally;
  }

  // Numbers 1 .. calls, or `most` of them, evenly spread.
  static std::vector<int> sample(int calls, int most) {
    std::vector<int> chosen;
    const int n = std::min(calls, most);
    for (int i = 0; i < n; ++i)
      chosen.push_back(1 + int(int64_t(i) * (calls - 1) / std::max(1, n - 1)));
    return chosen;
  }
  static int few_or_all(int few) { return all() ? INT_MAX : few; }
  static bool all() { return std::getenv("DUET_FAULTS") != nullptr; }

  static void print_head() {
    printf("%-34s %6s %6s | %8s %8s %6s | %9s %8s %5s\n", "what failed", "calls", "tried",
        "unharmed", "said why", "killed", "same bits", "refused", "lost");
  }
  static void print(const std::string& what, const Tally& t) {
    printf("%-34s %6d %6d | %8d %8d %6d | %9d %8d %5d\n", what.c_str(), t.calls, t.tried,
        t.unharmed, t.said_why, t.killed, t.same_bits, t.refused, t.lost);
    fflush(stdout);
  }

  // Every kind of call of a run, by name in the table.
  void fail_all(const std::string& name, const std::string& start, int most) const {
    begin_with(start);
    const std::map<std::string, int> calls = counts(kAlone);
    print_head();
    for (const auto& [kind, n] : calls) {
      if (kind == "new") continue;
      const Tally tally = fail_each(start, kind, n, most);
      print(cat(name, ", ", kind), tally);
      EXPECT_EQ(tally.refused, 0) << kind;
    }
    for (const char* kind : {"full", "kill"}) {
      const Tally tally = fail_each(start, kind, calls.at("write"), most);
      print(cat(name, kind[0] == 'f' ? ", write and all after" : ", kill -9 in a write"), tally);
      EXPECT_EQ(tally.refused, 0) << kind;
    }
  }

  // Takes every state in which a power cut could leave the folder, and goes on from it.
  void cut_power(const std::string& name, const std::string& start, int most) const {
    begin_with(start);
    const Ended e = disturbed("power 0", kAlone);
    ASSERT_EQ(e.status, 0) << e.output;
    EXPECT_EQ(bits("disk/runs/a"), expected_);
    std::map<std::string, std::vector<std::string>> trees;  // by what is lost
    for (const auto& entry : fs::directory_iterator(path("trees")))
      if (const std::string tree = entry.path().filename().string(); tree != "graves")
        trees[tree.substr(5)].push_back(tree);
    for (const auto& [cut, of_cut] : trees) {
      const std::string done = path("trees/done-" + cut + "/runs/a");
      EXPECT_EQ(newest_checkpoint(done), cat(done, "/step-00000", kSteps))
          << name << ": what was saved is gone after a power cut, " << cut;
    }
    for (auto& [cut, of_cut] : trees) {
      std::sort(of_cut.begin(), of_cut.end());
      Tally tally{int(of_cut.size())};
      for (int n : sample(int(of_cut.size()), most)) {
        ++tally.tried;
        begin_with(path("trees/" + of_cut[size_t(n) - 1]));
        expect_recovery(tally, cat(name, ", power cut ", of_cut[size_t(n) - 1]));
      }
      print(cat(name, ", power cut, ", cut), tally);
    }
  }

  static constexpr int64_t kSteps = 4;
  static constexpr const char* kAlone = "--threads 1 --microbatches 2";
  std::string duet_, shim_, root_ = path("disk");
  std::vector<std::string> expected_;
};

TEST_F(Faults, EachCallOfATrainingFails) { fail_all("train", path("fresh"), few_or_all(6)); }
TEST_F(Faults, EachCallOfAResumeFails) { fail_all("resume", path("half"), few_or_all(4)); }

TEST_F(Faults, AllocationsOfATrainingFail) {
  begin_with(path("half"));
  const int calls = counts(kAlone).at("new");
  print_head();
  const Tally tally = fail_each(path("half"), "new", calls, all() ? 200 : 30);
  print("resume, new", tally);
  EXPECT_EQ(tally.refused, 0);
}

TEST_F(Faults, ThreadsThatCannotStart) {
  print_head();
  for (const char* more : {"--threads 1 --pp 2 --microbatches 2",
           "--threads 1 --dp 2 --ep 2 --microbatches 1", "--threads 3 --microbatches 2"}) {
    begin_with(path("half"));
    const Tally tally = fail_each(path("half"), "thread", counts(more).at("thread"), 8, more);
    print(cat("resume ", more), tally);
  }
}

TEST_F(Faults, ThePowerIsCut) {
  print_head();
  cut_power("train", path("fresh"), few_or_all(8));
  fs::remove_all(path("trees"));
  cut_power("resume", path("half"), few_or_all(8));
}

}  // namespace
}  // namespace duet
