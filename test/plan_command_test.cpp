// What-if, the command's answers and refusals, and how errors of published runs are counted.
#include "pipeline/insight/plan/plan_command.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "model/base/read_file.h"
#include "pipeline/insight/plan/report.h"
#include "pipeline/insight/plan/validate.h"
#include "test/plan_testing.h"
#include "test/processes.h"

namespace duet {
namespace {

TEST(PlanWhatIf, EplbLevelsTheBusiestGpu) {
  std::vector<float> loads(64, 1);
  loads[0] = 8;
  const double before = expert_imbalance({loads}, 8, 64), after = expert_imbalance({loads}, 8, 72);
  EXPECT_NEAR(before, 15.0 / (71.0 / 8), 1e-6);
  EXPECT_LT(after, 1.1);
}

TEST(PlanWhatIf, ReplicasTakeMemory) {
  const PlanJob job = plan_job(find_model("mixtral-8x7b"), 16, 16, 1024, "h200");
  const PlanLayout l = plan_layout(job, "ep=8,imbalance=1.5");
  PlanLayout more = l;
  more.replicas = 16;
  const Memory one = predict(job, l).memory, two = predict(job, more).memory;
  const double experts = 32.0 * 3 * 4096 * 14336;  // a rank's: of each layer one
  EXPECT_NEAR((two.parameters - one.parameters) / (2 * experts), 1, 1e-9);
  EXPECT_NEAR((two.gradients - one.gradients) / (4 * experts), 1, 1e-9);
  EXPECT_NEAR(two.optimizer / one.optimizer, 1, 1e-9);  // which two ranks, now four, share
  for (auto& [slots, fits] : {std::pair(16, true), {64, false}})
    EXPECT_EQ(what_if(job, predict(job, l), l, slots).back().fits, fits) << slots;
  expect_plan_refused([&] { what_if(job, predict(job, l), l, 72); },
      {"--replicas", "72", "8 experts", "64", "each rank"});
}

std::string run(const PlanOptions& o) {
  std::ostringstream out;
  plan_command(o, out);
  return out.str();
}
// A small job with layout options "pp=4,...".
PlanOptions job_with(const std::string& options, const std::string& model = "llama-3-8b") {
  PlanOptions o{.model = model, .cluster = "h100", .gpus = 16, .batch = 64, .seq_len = 4096};
  for (const auto& [key, value] : read_layout_text(options, "test")) o.layout[key] = value;
  return o;
}
Json answer_to(PlanOptions o) {
  o.format = Format::json;
  return Json::parse(run(o), "answer");
}

TEST(PlanCommand, NamesTheOptionThatLeavesNothing) {
  const auto refused = [](const std::string& options, const std::vector<std::string>& words) {
    expect_plan_refused([&] { run(job_with(options)); }, words);
  };
  refused("pp=64", {"--pp: found 64", "16"});
  refused("etp=2", {"--etp: found 2", "no experts"});
  refused("split=1+2", {"--split: found 3 layers", "32"});
  refused("split=8+8+8+8,schedule=1f1b,pp=2", {"--split: found 4 stages", "allowed: 2"});
  refused("schedule=zbv,pp=1", {"--schedule: zbv needs pp 2"});
  refused("schedule=1f1b,virtual-stages=2,pp=4", {"--virtual-stages: found 2", "1f1b"});
  refused("virtual-stages=40", {"--virtual-stages: found 80 stages", "34"});
  for (const char* zero : {"2", "3"})
    refused(cat("schedule=dualpipe,zero=", zero), {"--zero: found", "dualpipe"});
  const auto of_experts = [](const std::string& options, const std::vector<std::string>& words) {
    expect_plan_refused([&] { run(job_with(options, "deepseek-v3")); }, words);
  };
  of_experts("ep=512", {"--ep: found 512", "256 experts"});
  of_experts("ep=256,tp=1,dtype=nvfp4", {"--dtype", "nvfp4"});
  of_experts("ep=64", {"--ep", "16 GPUs"});
  expect_plan_refused(
      [] { read_layout_text("pp=2,pp=4", "--layouts"); }, {"--layouts", "pp=2", "pp=4", "once"});
}

TEST(PlanCommand, KeepsWhatIsFixed) {
  for (const char* schedule : {"dualpipe", "zbv", "interleaved", "gpipe"}) {
    const std::string layout =
        answer_to(job_with(cat("schedule=", schedule))).at("layout").string();
    EXPECT_NE(layout.find(cat("schedule=", schedule)), layout.npos) << layout;
  }
  const std::string layout = answer_to(job_with("virtual-stages=4")).at("layout").string();
  EXPECT_NE(layout.find("virtual-stages=4"), layout.npos) << layout;
  EXPECT_NE(layout.find("schedule=interleaved"), layout.npos) << layout;
}

TEST(PlanCommand, PrintsAsManyLayoutsAsAsked) {
  PlanOptions o = job_with("");
  for (const int top : {1, 3, 7}) {
    o.top = top;
    const Json answer = answer_to(o);
    EXPECT_EQ(int(answer.at("next").items().size()), top - 1);
    const bool why = run(o).find("the second takes longer by: ") != std::string::npos;
    EXPECT_EQ(why, top > 1);
    if (top == 1) continue;
    // the parts that differ most make up most of what differs
    double sum = 0;
    const Json parts = answer.at("search").at("second_takes_longer_by_s");
    for (const auto& [_, seconds] : parts.members()) sum += seconds.number();
    const double second = answer.at("next").items()[0].at("step_s").number();
    EXPECT_GT(sum / (second - answer.at("step_s").number()), 0.5);
  }
}

TEST(PlanCommand, NearestChangesLeast) {
  const Json answer =
      answer_to(job_with("tp=1,pp=1,dp=16,zero=1,recompute=none,micro-batch-size=4"));
  EXPECT_FALSE(answer.at("fits").boolean());
  const std::string nearest = answer.at("nearest").string();
  EXPECT_NE(nearest.find("options changed: 1"), nearest.npos) << nearest;
}

// With the options that were given, on the whole nodes that are named and not on one fewer.
TEST(PlanCommand, FitsOnTheGpusThatItNames) {
  struct Asked {
    const char *model, *options;
    int gpus, batch, seq_len;
    const char* cluster;
  };
  for (const Asked& a : {Asked{"llama-2-13b", "tp=2", 4, 64, 2048, "a100-40g"},
           {"llama-2-13b", "dtype=bf16", 1, 64, 2048, "a100-40g"},
           {"mixtral-8x22b", "recompute=none", 4, 256, 2048, "a100-80g"},
           {"gpt3-175b", "zero=1", 8, 64, 8192, "a100-80g"},
           {"llama-3-70b", "tp=2", 2, 64, 4096, "h100"}}) {
    PlanOptions o = job_with(a.options, a.model);
    o.cluster = a.cluster, o.gpus = a.gpus, o.batch = a.batch, o.seq_len = a.seq_len;
    const std::string said = plan_refusal([&] { run(o); }), text = " that fit: --gpus ";
    const size_t at = said.find(text);
    ASSERT_NE(at, said.npos) << a.model << " " << said;
    const auto fits = [&](int64_t gpus) {
      o.gpus = gpus;
      std::string answer;
      return plan_refusal([&] { answer = run(o); }) == "nothing was refused" &&
          answer.find("DOES NOT FIT") == answer.npos;
    };
    const int64_t gpus = std::stoll(said.substr(at + text.size()));
    EXPECT_EQ(said.find("whole nodes") != said.npos, gpus > 8);
    EXPECT_TRUE(fits(gpus)) << a.model << " " << a.options << " " << gpus;
    EXPECT_FALSE(gpus > a.gpus + 1 && fits(gpus > 8 ? gpus - 8 : gpus - 1))
        << a.model << " " << gpus;
  }
}

// Each change's step is that of its layout when it is asked for.
TEST(PlanCommand, ChangesAreWhatTheyWouldBe) {
  for (const char* options : {"overlap-ep=1,ep=8,pp=4,recompute=full,micro-batch-size=1",
           "ep=8,pp=4,micro-batch-size=1", "overlap-ep=1,ep=4,pp=4,schedule=zbv"}) {
    PlanOptions o = job_with(options, "mixtral-8x7b");
    o.gpus = 32, o.batch = 256;
    const Json changes = answer_to(o).at("what_if");
    int schedules = 0;
    for (const Json& change : changes.items()) {
      PlanOptions asked = job_with("tp=1,cp=1,etp=1,recompute=none", "mixtral-8x7b");
      asked.gpus = 32, asked.batch = 256;
      for (const auto& [key, value] : read_layout_text(change.at("layout").string(), "change"))
        asked.layout[key] = value;
      const Json again = answer_to(asked);
      const std::string what = change.at("change").string();
      EXPECT_NEAR(again.at("step_s").number() / change.at("step_s").number(), 1, 1e-9) << what;
      EXPECT_EQ(again.at("fits").boolean(), change.at("fits").boolean()) << what;
      if (!what.starts_with("schedule ")) continue;
      ++schedules;
      // nor is there a faster one with what was given
      for (const auto& [key, value] : read_layout_text(options, "test")) asked.layout[key] = value;
      if (!std::string(options).ends_with("zbv")) asked.layout.erase("virtual-stages");
      asked.layout["schedule"] = what.substr(9, what.find(',') - 9);
      EXPECT_NEAR(answer_to(asked).at("step_s").number() / change.at("step_s").number(), 1, 1e-9)
          << what;
    }
    EXPECT_GE(schedules, 4);
  }
}

TEST(PlanCommand, AListIsWhatItsFileHas) {
  const auto answer = [](const std::string& options) {
    PlanOptions o = job_with(options, "mixtral-8x7b");
    o.gpus = 64, o.batch = 256;
    return answer_to(o);
  };
  const std::string rest = "ep=8,micro-batch-size=1,zero=1,recompute=selective,imbalance=1.2";
  const double step = answer("schedule=dualpipe,pp=4,dp=16," + rest).at("step_s").number();
  for (const char* name : {"/mine.csv", "/dualpipe-x.csv"}) {
    const std::string path = ::testing::TempDir() + name;
    std::ofstream file(path);
    write_csv(file, make_schedule("dualpipe", {4, 16, 1}));
    file.close();
    // its pp and its microbatches are the layout's
    const Json of_file = answer("schedule=" + path + ",tp=1,cp=1," + rest);
    EXPECT_DOUBLE_EQ(of_file.at("step_s").number(), step) << of_file.at("layout").string();
    expect_plan_refused([&] { answer("pp=8,schedule=" + path); }, {"--pp: found 8", "4", name});
    expect_plan_refused([&] { answer("zero=3,schedule=" + path); }, {"--zero: found 3", name});
  }
}

TEST(PlanCommand, LoadsCountAtEveryEp) {
  const std::string path = ::testing::TempDir() + "/loads.json";
  const auto imbalance = [&](const std::string& loads, int ep) {
    std::ofstream(path) << loads;
    PlanOptions o = job_with(cat("micro-batch-size=1,ep=", ep), "mixtral-8x7b");
    o.loads = path;
    const std::string layout = answer_to(o).at("layout").string();
    const size_t at = layout.find("imbalance=");
    return at == layout.npos ? 1.0 : std::stod(layout.substr(at + 10));
  };
  const std::string one = "[9, 1, 1, 1, 1, 1, 1, 1]";
  EXPECT_NEAR(imbalance(one, 8), 9 / 2.0, 1e-5);
  EXPECT_NEAR(imbalance(one, 4), 10 / 4.0, 1e-5);
  EXPECT_NEAR(imbalance(one, 1), 1, 1e-5);
  const std::string even = "[1, 1, 1, 1, 1, 1, 1, 1]";
  EXPECT_NEAR(imbalance("{\"weight\": [" + one + ", " + even + "]}", 8), (4.5 + 1) / 2, 1e-5);
  EXPECT_NEAR(imbalance("layer_id,expert_id,count\n0,7,2\n", 8), 8, 1e-5) << "vLLM's dump";
  EXPECT_NEAR(imbalance("9,1,1,1,1,1,1,1\n1,1,1,1,1,1,1,1\n", 8), (4.5 + 1) / 2, 1e-5);
  const std::string step = R"("moe":[{"layer":1,"tokens_per_expert":[5,2,1,2,2,2,1,1]}]})";
  EXPECT_NEAR(imbalance("{\"step\":1," + step + "\n{\"step\":2," + step + "\n", 8), 2.5, 1e-5);
  EXPECT_EQ(plan_refusal([&] { imbalance("[[1, 2]]", 8); }),
      "--loads: " + path + ": found 2 loads of a layer, allowed: the model's 8 routed experts");
  PlanOptions both = job_with("imbalance=2", "mixtral-8x7b");
  both.loads = path;
  expect_plan_refused([&] { run(both); }, {"--imbalance", "--loads"});
}

TEST(PlanCommand, ExplainsAndRefuses) {
  PlanOptions v3;
  v3.demonstration = true;
  const std::string text = run(v3);
  for (const char* part : {"schedule=dualpipe", "step", "bubble", "1F1B", "with EPLB",
           "with schedule 1f1b", "+30%", "error"})
    EXPECT_NE(text.find(part), text.npos) << part << "\n" << text;
  v3.format = Format::json;
  const Json json = Json::parse(run(v3), "answer"), parts = json.at("parts_s");
  double sum = 0;
  for (const auto& [_, seconds] : parts.members()) sum += seconds.number();
  EXPECT_NEAR(sum / json.at("step_s").number(), 1, 1e-4);
  EXPECT_TRUE(json.at("fits").boolean());

  const auto with = [&](const std::function<void(PlanOptions&)>& change) {
    return [=] {
      PlanOptions o{
          .model = "llama-3-8b", .cluster = "h100", .gpus = 16, .batch = 64, .seq_len = 4096};
      change(o);
      std::ostringstream out;
      plan_command(o, out);
    };
  };
  EXPECT_EQ(plan_refusal(with([](PlanOptions&) {})), "nothing was refused");
  expect_plan_refused(
      with([](PlanOptions& o) { o.layout["tp"] = "3", o.layout["pp"] = "1"; }), {"--tp", "16"});
  expect_plan_refused(with([](PlanOptions& o) { o.layout["tp"] = "x"; }), {"--tp", "x", "1 to"});
  expect_plan_refused(with([](PlanOptions& o) { o.layout["ep"] = "2"; }), {"--ep", "no experts"});
  expect_plan_refused(
      with([](PlanOptions& o) { o.batch = 7, o.layout["dp"] = "16"; }), {"--batch", "7"});
  expect_plan_refused(
      with([](PlanOptions& o) { o.layout["dtype"] = "nvfp4"; }), {"--dtype", "nvfp4"});
  expect_plan_refused(with([](PlanOptions& o) { o.layouts = "tp=4 qq=1"; }), {"qq", "allowed"});
  expect_plan_refused(
      with([](PlanOptions& o) { o.layouts = "pp=3"; }), {"pp=3", "16", "a multiple of"});
  expect_plan_refused(with([](PlanOptions& o) { o.model = "deepseek-v3", o.gpus = 2; }),
      {"does not fit on 2 GPUs", "GB needed", "the fewest whole nodes that fit: --gpus "});
  expect_plan_refused(with([](PlanOptions& o) { o.replicas = 4; }), {"--replicas", "without"});
}

TEST(PlanCommand, SaysWhatItsErrorIsKnownFrom) {
  const auto error = [](const char* model, const char* cluster) {
    return known_error(plan_job(find_model(model), 8, 8, 1024, cluster));
  };
  EXPECT_NE(error("llama-3-8b", "h100").find("suites like this: 13%"), std::string::npos);
  for (const char* model : {"llama-3-8b", "mixtral-8x7b"})
    for (const char* cluster : {"h200", "h800"})
      EXPECT_EQ(error(model, cluster).find("no suite of this GPU"), 0u);
  EXPECT_EQ(error("mixtral-8x7b", "a100-80g").find("no published run"), 0u);
  const std::string path = ::testing::TempDir() + "/profile.json";
  std::ofstream(path) << write_profile({{StageCosts()}});
  std::ostringstream out;
  plan_command({.layout = {{"pp", "2"}}, .profile = path}, out);
  EXPECT_NE(out.str().find("points off"), std::string::npos) << out.str();
}

TEST(PlanCommand, TheScriptNamesADuetThatIsNotThere) {
  const std::string script = "scripts/check_plan.py";
  if (!std::filesystem::exists(script) || run_command("python3 --version").status)
    GTEST_SKIP() << "no python3, or not in duet's folder";
  const Ended ended = run_command("python3 " + script + " --duet ./nope");
  EXPECT_EQ(ended.status, 2);
  EXPECT_EQ(ended.output, "--duet: ./nope: No such file or directory\n");
}

TEST(PlanCommand, AnInterruptedMeasurementLeavesTheOldFile) {
  const std::string path = ::testing::TempDir() + "/here.json";
  std::ofstream(path) << "old";
  std::ostringstream out;
  const pid_t child = fork();
  if (child == 0) plan_command({.measure = path}, out), _exit(0);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  kill(child, SIGKILL);
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status)) << "it took less than 0.3 s";
  EXPECT_EQ(read_file(path), "old");
  expect_plan_refused([&] { plan_command({.measure = "/no/such/folder/f"}, out); }, {"/no/such"});
}

TEST(PlanValidate, AStagesTimeIsItsRanksChunksTogether) {
  const Record r = read_record(Json::parse(R"({"id": "r", "suite": "s",
    "model": {"type": "gpt", "layers": 12, "hidden": 2048, "heads": 16, "vocab": 51200},
    "hardware": {"gpu": "A100-80G", "gpus": 2}, "batch": {"global_sequences": 8, "seq_len": 64},
    "layout": {"pp": 2, "schedule": "interleaved", "virtual_stages": 3},
    "measured": {"bubble_rate": 0.1},
    "stage_times_ms": {"F": 30, "B": 15, "W": 6, "comm": 1}})",
      "r"));
  ASSERT_EQ(r.profile.value().stages.size(), 6u);
  EXPECT_NEAR(r.profile->stages[1].F, 0.01, 1e-12);
  EXPECT_NEAR(r.profile->stages[1].FB, 0.017, 1e-12);
  EXPECT_NEAR(r.profile->forward_message, 0.001, 1e-12);
}

TEST(PlanValidate, CountsErrorsAsItSays) {
  const auto record = [](const char* id, const char* measured, int tp, const char* suite = "s") {
    const std::string layout = cat(R"("layout": {"tp": )", tp, R"(, "pp": 1, "dp": )", 8 / tp,
        R"(, "cp": 1, "zero": 1, "recompute": "none"})");
    return cat(R"({"id": ")", id, R"(", "suite": ")", suite, R"(", "measured": )", measured, ", ",
        layout, R"(,
      "model": {"type": "gpt", "layers": 12, "hidden": 2048, "heads": 16, "vocab": 51200,
                "ffn": 8192},
      "hardware": {"gpu": "A100-80G", "gpus": 8},
      "batch": {"global_sequences": 64, "micro_batch_size": 1, "seq_len": 2048}})");
  };
  const std::string path = ::testing::TempDir() + "/runs.json";
  std::ofstream(path) << R"({"records": [)" << record("a", R"({"step_s": 1})", 1) << ","
                      << record("b", R"({"step_s": 2})", 2) << ","
                      << record("c", R"({"out_of_memory": true})", 4) << ","
                      << record("e", R"({"out_of_memory": true})", 4, "t") << R"(, {"id": "d"}]})";
  const Validation v = validate(path);
  ASSERT_EQ(v.records.size(), 4u);
  ASSERT_EQ(v.unpredicted.size(), 1u);
  EXPECT_EQ(v.unpredicted[0].first, "d");
  const Json e = v.document.at("suites").at("s");
  const double a = std::abs(v.records[0].predicted - 1),
               b = std::abs(v.records[1].predicted / 2 - 1);
  EXPECT_NEAR(e.at("mape").number(), (a + b) / 2, 1e-12);
  EXPECT_EQ(e.at("median_ape").number(), e.at("mape").number());          // of two
  for (const char* key : {"mape", "median_ape", "bias", "bubble_error"})  // nothing to compare
    EXPECT_TRUE(v.document.at("suites").at("t").at(key).is_null()) << key;
  EXPECT_DOUBLE_EQ(
      e.at("fit_accuracy").number(), 0.5);     // both that ran, and not the one that did not
  EXPECT_EQ(e.at("pick_regret").number(), 0);  // tp 1 is picked and was the fastest
  const Json second = v.document.at("records").items()[1];  // with what was filled in
  EXPECT_EQ(second.at("layout").string(), v.records[1].layout.text());
  EXPECT_NE(second.at("layout").string().find("dp=4,tp=2"), std::string::npos);
  EXPECT_GT(second.at("predicted_gib").number(), 1);
  std::ostringstream out;
  print_validation(v, true, out);
  EXPECT_EQ(Json::parse(out.str(), "out").at("suites").at("s").at("n").integer(), 3);
}

}  // namespace
}  // namespace duet
