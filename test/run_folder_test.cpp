// A run and its folder: what a run begins from, what makes it the same run, who may write there,
// what is kept, and how a run that is stopped ends.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <regex>

#include "pipeline/train/compare_command.h"
#include "pipeline/train/trainer.h"
#include "test/processes.h"
#include "test/run_testing.h"

namespace duet {
namespace {

class Runs : public RunTest {
 protected:
  TrainOptions resumed(const std::string& out, int64_t steps) const {
    TrainOptions o = options(out, steps);
    o.resume = true;
    return o;
  }
  std::string checkpoint(const std::string& out, int64_t step) const {
    return checkpoint_dir(path(out), step);
  }
  static bool says(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  }
};

// --- --init --------------------------------------------------------------------------------------

TEST_F(Runs, InitTakesTheWeightsAlone) {
  TrainOptions first = options("first", 3);
  first.dp = first.ep = 2;
  first.balancer.interval = 2;
  first.balancer.threshold = 1;
  run(first);
  fs::create_directory(path("weights"));
  for (const char* name : {"config.json", "model.safetensors"})
    fs::copy_file(checkpoint("first", 3) + "/" + name, path("weights/") + name);
  TrainOptions a = options("a", 3), b = options("b", 3);
  a.dp = b.dp = a.ep = b.ep = 2;
  a.balancer.interval = b.balancer.interval = 2;
  a.model = b.model = {};
  a.init = checkpoint("first", 3);
  b.init = path("weights");
  run(a);
  run(b);
  EXPECT_EQ(bits("a"), bits("b"));
}

TEST_F(Runs, InitAndModelContradict) {
  run(options("first", 1));
  TrainOptions o = options("second", 1);
  o.init = checkpoint("first", 1);
  o.model = parse_sizes("n_layers=3");
  expect_refused([&] { run(o); }, {"--model", "n_layers=3", "--init"});
  EXPECT_FALSE(fs::exists(o.out));
}

TEST_F(Runs, CompareBeginsFromTheWeights) {
  run(options("first", 3));
  CompareOptions c{.schedules = {"1f1b"}, .train = options("", 1)};
  c.train.model = {};
  c.train.preset = "tiny";
  c.train.init = checkpoint("first", 3);
  c.train.pp = 2;
  c.train.format = Format::json;
  std::ostringstream text;
  EXPECT_TRUE(compare_command(c, text));
  TrainOptions o = options("second", 1);
  o.model = {};
  o.init = c.train.init;
  run(o);
  std::ifstream metrics(path("second/metrics.jsonl"));
  std::string line;
  std::getline(metrics, line);
  EXPECT_TRUE(says(text.str(), Json::parse(line, "").at("loss_hex").string())) << text.str();
}

TEST_F(Runs, OverwriteSparesWhatInitNames) {
  run(options("run", 2));
  TrainOptions o = options("run", 1);
  o.model = {};
  o.overwrite = true;
  fs::create_directory_symlink(path("run"), path("link"));
  for (const std::string& init :
      {checkpoint("run", 2), path("link/step-000002"), path("run/./step-000002/")}) {
    o.init = init;
    expect_refused([&] { run(o); }, {"--init", "--overwrite"});
    EXPECT_NO_THROW(verify(checkpoint("run", 2)));
  }
}

// --- the same run --------------------------------------------------------------------------------

TEST_F(Runs, AnotherRunIsNotResumed) {
  run(options("run", 2));
  const auto refused = [&](auto change, const std::vector<std::string>& words) {
    TrainOptions o = resumed("run", 4);
    change(o);
    expect_refused([&] { run(o); }, words);
    EXPECT_FALSE(fs::exists(checkpoint("run", 4)));
  };
  refused([](TrainOptions& o) { o.seed = 7; }, {"--seed", "7", " 0,", "--init"});
  refused([](TrainOptions& o) { o.seq_len = 8; }, {"--seq-len", "8", "16", "--init"});
  refused([](TrainOptions& o) { o.microbatches = 8; }, {"--microbatches", "8", "4", "--init"});
  refused([](TrainOptions& o) { o.dp = 2; }, {"--dp", "8", "4", "--init"});
  refused([this](TrainOptions& o) { o.data = write("other", contents(words_) + "x"); },
      {"--data", "--init"});
  refused([](TrainOptions& o) { o.overwrite = true; }, {"--overwrite", "--resume"});
  refused([](TrainOptions& o) { o.dump_step = 2; }, {"--dump-step", "2"});

  TrainOptions same = resumed("run", 4);  // the same batch, otherwise divided
  same.dp = 2;
  same.microbatches = 2;
  same.data = write("same.txt", contents(words_));
  same.adamw.lr = 0.001;
  EXPECT_TRUE(says(run(same), "changed --lr 0.001, so far 0.002"));
  EXPECT_TRUE(
      says(run(resumed("run", 3)), "nothing to do: the run has done 4 steps, --steps is 3"));
}

TEST_F(Runs, OnlyExactNamesAreCheckpoints) {
  run(options("run", 2));
  for (const char* name :
      {"step-000009-good", "step-0000009", "step-9", "step-+00009", "best", "step-99999999999"})
    fs::copy(checkpoint("run", 2), path("run/") + name);
  EXPECT_EQ(newest_checkpoint(path("run")), checkpoint("run", 2));
  EXPECT_EQ(newest_checkpoint(path("run/")), path("run/") + "step-000002");
  TrainOptions o = options("run", 1);
  o.overwrite = true;
  run(o);
  EXPECT_FALSE(fs::exists(checkpoint("run", 2)));
  for (const char* name : {"step-000009-good", "step-9", "best"})
    EXPECT_NO_THROW(verify(path("run/") + name));
  fs::rename(checkpoint("run", 1), checkpoint("run", 5));
  expect_refused(
      [&] { run(resumed("run", 6)); }, {"step-000005/trainer.json", "found step 1", "5"});
}

TEST_F(Runs, AbsurdNumbersInACheckpointAreRefused) {
  run(options("run", 1));
  const auto with = [&](const std::string& file, const std::string& from, const std::string& to) {
    const std::string path = checkpoint("run", 1) + "/" + file, good = contents(path);
    std::ofstream(path) << std::regex_replace(good, std::regex(from), to);
    EXPECT_NE(contents(path), good);
    const std::string text = contents(path);
    expect_refused(
        [&] {
          if (file == "config.json")
            checkpoint_config(checkpoint("run", 1));
          else
            Json::load(path).at("step").integer(0, kMostSteps);
        },
        {file});
    expect_refused([&] { run(resumed("run", 2)); }, {file});
    std::ofstream(path) << good;
  };
  with("trainer.json", "\"step\": 1", "\"step\": 9223372036854775807");
  with("trainer.json", "\"step\": 1", "\"step\": -1");
  with("config.json", "\"hidden_size\": [0-9]+", "\"hidden_size\": 9223372036854775807");
  with("config.json", "\"vocab_size\": [0-9]+", "\"vocab_size\": 1000000000000000000");
}

// --- its folder ----------------------------------------------------------------------------------

TEST_F(Runs, MetricsSurviveWhatIsWrongWithThem) {
  run(options("whole", 6));
  TrainOptions o = options("run", 4);
  run(o);
  const std::string metrics = path("run/metrics.jsonl"), good = contents(metrics);
  std::vector<std::string> lines;
  std::istringstream in(good);
  for (std::string line; std::getline(in, line);) lines.push_back(line + "\n");
  // a line of zeros instead of the third, and half a line at the end
  std::ofstream(metrics, std::ios::binary) << lines[0] << lines[1] << std::string(30, '\0') << "\n"
                                           << lines[3] << "{\"step";
  const std::string text = run(resumed("run", 6));
  EXPECT_TRUE(says(text, "metrics.jsonl: line 3 is not a step's")) << text;
  EXPECT_TRUE(says(text, "metrics.jsonl: lacks step 3")) << text;
  std::ifstream now(metrics);
  std::vector<int64_t> steps;
  for (std::string line; std::getline(now, line);)
    steps.push_back(Json::parse(line, "").at("step").integer());
  EXPECT_EQ(steps, (std::vector<int64_t>{1, 2, 4, 5, 6}));
  fs::remove(metrics);
  EXPECT_TRUE(says(run(resumed("run", 7)), "metrics.jsonl: lacks steps 1 to 6"));
}

TEST_F(Runs, AFolderIsOneRunsAtATime) {
  run(options("run", 1));
  int ready[2], end[2];
  ASSERT_EQ(pipe(ready) + pipe(end), 0);
  const pid_t child = fork();
  if (child == 0) {
    const int lock = open(path("run/.lock").c_str(), O_RDWR);
    const std::string me = std::to_string(getpid());
    if (flock(lock, LOCK_EX) != 0 || pwrite(lock, me.data(), me.size(), 0) < 0) _exit(1);
    char c = 'x';
    _exit(::write(ready[1], &c, 1) == 1 && read(end[0], &c, 1) == 1 ? 0 : 1);
  }
  char c;
  ASSERT_EQ(read(ready[0], &c, 1), 1);
  TrainOptions over = options("run", 1);
  over.overwrite = true;
  expect_refused(
      [&] { run(resumed("run", 2)); }, {"--out", "in use by process", std::to_string(child)});
  expect_refused([&] { run(over); }, {"--out", std::to_string(child)});
  EXPECT_NO_THROW(verify(checkpoint("run", 1)));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_NO_THROW(run(resumed("run", 2)));
}

TEST_F(Runs, KeepsTheLastAndGoesBackOnDemand) {
  run(options("whole", 6));
  TrainOptions o = options("run", 6);
  o.checkpoint_every = 1;
  o.keep_last = 3;
  run(o);
  std::vector<int64_t> kept;
  for (const auto& [step, dir] : run_checkpoints(o.out)) kept.push_back(step);
  EXPECT_EQ(kept, (std::vector<int64_t>{4, 5, 6}));

  std::ofstream(checkpoint("run", 6) + "/optimizer.safetensors", std::ios::app) << "x";
  fs::resize_file(checkpoint("run", 5) + "/model.safetensors", 1000);
  o.resume = true;
  expect_refused(
      [&] { run(o); }, {"step-000006/optimizer.safetensors", "step-000004", "--from-step 4"});
  o.from_step = 3;
  expect_refused([&] { run(o); }, {"--from-step", "3", "4, 5, 6"});
  o.from_step = 4;
  const std::string text = run(o);
  EXPECT_TRUE(says(text, "step-000006.aside")) << text;
  EXPECT_TRUE(fs::exists(checkpoint("run", 5) + ".aside/DONE"));
  EXPECT_EQ(bits("run"), bits("whole"));
}

TEST_F(Runs, SomebodysConfigIsNoRun) {
  write("model/config.json", "{}");
  TrainOptions o = options("model", 1);
  expect_refused([&] { run(o); }, {"--out", "config.json", "not a run's"});
  write("notes/note", "not a run's");
  TrainOptions back = options("notes", 1);
  back.resume = true, back.from_step = 5;
  expect_refused([&] { run(back); }, {"--from-step", "5"});
  for (const std::string& out : {o.out, back.out})  // not even a lock
    EXPECT_EQ(std::distance(fs::directory_iterator(out), {}), 1);
}

// --- how it ends ---------------------------------------------------------------------------------

TEST_F(Runs, OneDocumentWhateverHappened) {
  TrainOptions o = options("run", 2);
  o.format = Format::json;
  const auto document = [&] { return Json::parse(run(o), "document"); };
  EXPECT_EQ(document().at("checkpoint").string(), checkpoint("run", 2));
  o.resume = true;
  const Json again = document();
  EXPECT_EQ(again.at("step").integer(), 2);
  EXPECT_EQ(again.at("checkpoint").string(), checkpoint("run", 2));
  o = options("none", 0);
  EXPECT_FALSE(says(run(o), "saved"));
  o = options("none2", 0);
  o.format = Format::json;
  EXPECT_TRUE(document().at("checkpoint").is_null());
}

// A run in a process of its own, which gets the signal after its first step.
TEST_F(Runs, ASignalIsAcknowledgedAndIsTheStatus) {
  for (const int signal : {SIGINT, SIGTERM}) {
    TrainOptions o = options(cat("run-", signal), 1'000'000);
    o.format = Format::json;
    const std::string heard = path("heard"), said = path("said");
    const pid_t child = fork();
    if (child == 0) {
      if (!freopen(heard.c_str(), "w", stderr)) _exit(1);
      std::ofstream out(said);
      const int status = train_command(o, out);
      out.close();
      _exit(status);
    }
    for (int i = 0; i < 6000 && contents(o.out + "/metrics.jsonl").empty(); ++i) usleep(10000);
    kill(child, signal);
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -1, 128 + signal);
    EXPECT_TRUE(says(contents(heard), "duet: stopping after this step; again to end now"));
    const Json document = Json::parse(contents(said), "document");
    EXPECT_EQ(document.at("stopped_by_signal").integer(), signal);
    EXPECT_EQ(document.at("checkpoint").string(), newest_checkpoint(o.out));
    EXPECT_NO_THROW(verify(newest_checkpoint(o.out)));
  }
}

// A step of hours ends at a signal too, though its messages are under way.
TEST_F(Runs, AStepThatOneRankGivesUpEndsForAllAndChangesNothing) {
  for (const auto& [schedule, ep] : {std::pair("1f1b", 1), {"dualpipe", 1}, {"zbv", 1},
           {"interleaved", 1}, {"1f1b", 2}, {"dualpipe", 2}}) {
    TrainOptions o = options("", 2);
    o.model = parse_sizes("n_layers=8");
    o.schedule = schedule;
    o.pp = 4 / ep;
    o.dp = o.ep = ep;
    o.microbatches = 8;
    const Job job = make_job(o);
    run_ranks(job.run, [&](Comm& world) {
      const std::unique_ptr<Device> device = make_device(job, world);
      Trainer trainer(job, world, *device);
      train_step(trainer, 1);
      const uint64_t before = fingerprint(trainer);
      trainer.long_steps = true;
      int asked = 0;
      const auto give_up = [&] { return ++asked > 6 && world.rank() == 1; };
      const StepResult r = train_step(
          trainer, 2, {"", [&] { return asked > 6 && world.rank() == 1 ? 15 : 0; }, give_up});
      EXPECT_TRUE(r.given_up) << o.schedule;
      EXPECT_TRUE(world.rank() != 1 || asked == 7) << "asked on after it gave up";
      EXPECT_EQ(r.stop, 15);
      EXPECT_EQ(fingerprint(trainer), before) << o.schedule;
    });
  }
}

TEST_F(Runs, TheFirstLinesSpeakOfWhatThereIs) {
  TrainOptions o = options("", 1);
  o.model = parse_sizes("n_layers=2,first_k_dense=2");
  const std::string text = run(o);
  EXPECT_FALSE(says(text, "routed experts")) << text;
  EXPECT_TRUE(says(text, "dense layers")) << text;
}

// --- the program ---------------------------------------------------------------------------------

class Program : public FolderTest {
 protected:
  void SetUp() override {
    duet_ = program_path();
    duet_.replace(duet_.rfind("test_duet"), 9, "duet");
    if (!fs::exists(duet_)) GTEST_SKIP() << duet_ << ": make test builds it";
    duet_ = "'" + duet_ + "'";
  }
  std::string duet_;
};

TEST_F(Program, LostOutputIsAFailure) {
  const std::string train = "train --preset tiny --steps 1 --sample 0 --out '" + path("run") + "'";
  const std::string generate = "generate --tokens 1 --from '" + path("run") + "'";
  for (const char* command : {"schedule", "eplb", "--help", "--version", "plan", "analyze", "diff",
           "bench --preset tiny --steps 1", "compare --steps 1 --schedules 1f1b", train.c_str(),
           generate.c_str()}) {
    const Ended e = run_command(cat("( ", duet_, " ", command, " > /dev/full )"));
    EXPECT_EQ(e.status, 1) << command << e.output;
    EXPECT_NE(e.output.find("standard output"), std::string::npos) << command << e.output;
  }
}

// Files that the run opens do not take the place of a stream that is closed.
TEST_F(Program, ClosedStreamsStayClosed) {
  const std::string run = cat(duet_, " train --preset tiny --steps 1 --sample 0 --out '");
  const Ended e = run_command(cat("( ", run, path("a"), "' <&- >&- )"));
  EXPECT_EQ(e.status, 1) << e.output;
  EXPECT_NE(e.output.find("standard output"), std::string::npos) << e.output;
  EXPECT_EQ(run_command(cat("( ", run, path("b"), "' >/dev/null 2>&- )")).status, 0);
  for (const std::string& out : {path("a"), path("b")}) {
    EXPECT_NO_THROW(verify(checkpoint_dir(out, 1)));
    EXPECT_LT(contents(out + "/.lock").size(), 100u) << contents(out + "/.lock");
    EXPECT_EQ(contents(out + "/metrics.jsonl").find("loss "), std::string::npos);
  }
}

TEST_F(Program, AFileThatMayNotGrowIsAnError) {
  const Ended e = run_command(cat("( ulimit -f 8; ", duet_,
      " train --preset tiny --steps 1 --sample 0 --out '", path("a"), "' >/dev/null )"));
  EXPECT_EQ(e.status, 1) << e.output;
  EXPECT_NE(e.output.find("File too large"), std::string::npos) << e.output;
  EXPECT_EQ(newest_checkpoint(path("a")), "");
}

TEST_F(Program, NeedsNoLargeStack) {
  const Ended e =
      run_command("ulimit -s 128; " + duet_ + " train --preset tiny --steps 1 --pp 2 --sample 0");
  EXPECT_EQ(e.status, 0) << e.output;
}

TEST_F(Program, UsesTheCoresThatItMay) {
  if (run_command("taskset -c 0 true").status != 0) GTEST_SKIP() << "no taskset here";
  const Ended one =
      run_command("taskset -c 0 " + duet_ + " train --preset tiny --steps 1 --sample 0");
  EXPECT_NE(one.output.find("1 thread"), std::string::npos) << one.output;
}

}  // namespace
}  // namespace duet
