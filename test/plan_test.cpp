// The efficiency model against closed forms: products, memory of a layer and of a parameter, ring
// collectives, bubbles; and what cluster files and profiles are refused for.
#include <fstream>
#include <random>

#include "pipeline/insight/plan/cluster.h"
#include "pipeline/insight/plan/layout.h"
#include "pipeline/insight/plan/report.h"
#include "pipeline/schedule/checker.h"
#include "pipeline/schedule/published/published.h"
#include "pipeline/schedule/simulator.h"
#include "test/plan_testing.h"

namespace duet {
namespace {

TEST(PlanCluster, FilesReadBackAndAreChecked) {
  for (const char* name : {"a100-40g", "a100-80g", "h100", "h100-96g", "h800", "h200", "b200",
           "b300", "gb200", "gb300"}) {
    const Cluster c = find_cluster(name),
                  again = read_cluster(Json::parse(write_cluster(c), "again"));
    EXPECT_EQ(write_cluster(again), write_cluster(c)) << name;
  }
  const auto refused = [](const char* key, const char* value, std::vector<std::string> words) {
    Json json = Json::parse(write_cluster(find_cluster("h100")), "h100");
    json.set(key, Json::parse(value, "value"));
    words.insert(words.end(), {"c.json", key});
    expect_plan_refused([&] { read_cluster(Json::parse(json.dump(), "c.json")); }, words);
  };
  refused("hbm_gb_s", "null", {"is missing"});
  refused("hbm_gb_s", "\"3350 GB/s\"", {"number"});
  refused("latency_ms", "1", {"no field"});
  // wrong units: TB/s, PFLOP/s, GFLOP/s, Gbit/s, seconds, milliseconds, MiB
  refused("hbm_gb_s", "3.35", {"GB/s", "3.35"});
  refused("bf16_tflops", "0.989", {"TFLOP/s", "0.989"});
  refused("fp8_tflops", "1.98", {"TFLOP/s", "1.98"});
  refused("bf16_tflops", "98900", {"TFLOP/s", "98900"});
  refused("network_gb_s", "400", {"Gbit/s", "400", "112.5"});
  refused("nvlink_gb_s", "3600", {"Gbit/s", "3600", "837.5"});
  refused("launch_us", "1e-5", {"microseconds", "1e-05"});
  refused("launch_us", "0.01", {"microseconds", "0.01"});
  refused("network_latency_us", "1.2e-5", {"microseconds"});
  refused("memory_gb", "81559", {"GB", "81559"});
  for (const char* key : {"gpus_per_node", "nvlink_domain", "sms", "comm_sms"})
    refused(key, "2.5", {"whole number", "2.5"});
  expect_plan_refused([] { find_cluster("v100"); }, {"--cluster", "v100", "a100-80g"});
}

TEST(PlanCosts, ProductsAreARoofline) {
  Cluster c = find_cluster("h100");
  c.tail_waves = c.k_half = 0;
  EXPECT_DOUBLE_EQ(product_seconds(c, Precision::bf16, {8192, 8192, 8192}),
      2.0 * 8192 * 8192 * 8192 / c.products_per_s(Precision::bf16));
  // one row: the matrix must be read
  EXPECT_NEAR(product_seconds(c, Precision::bf16, {1, 8192, 8192}) / (2.0 * 8192 * 8192 / c.hbm()),
      1, 0.01);
}

TEST(PlanCosts, ACoreWorksAndFetchesInTurn) {
  Cluster c = find_cluster("h100");
  const auto seconds = [&] { return product_seconds(c, Precision::bf16, {64, 8192, 64}); };
  const double together = seconds();
  c.core = true;
  EXPECT_GT(seconds(), together);
  EXPECT_LT(seconds(), 2 * together);
}

TEST(PlanCosts, ACoreFetchesWhatFitsFromItsCache) {
  Cluster c = find_cluster("h100");
  c.cache_bytes = 32e6, c.cache_bytes_s = 10 * c.hbm_bytes_s, c.gpus_per_node = 2;
  EXPECT_EQ(c.fetching(1e6, 1).hbm(), c.hbm());  // a GPU's files say nothing of caches
  c.core = true;
  EXPECT_DOUBLE_EQ(c.fetching(1e6, 1).hbm(), 10 * c.hbm());
  EXPECT_DOUBLE_EQ(c.fetching(32e6, 1).hbm(), 10 * c.hbm());
  const double missed = 0.79681;  // = 1 - exp(-2 missed): shared by two, half of it fits
  EXPECT_NEAR(c.hbm() / c.fetching(32e6, 2).hbm(), missed + (1 - missed) / 10, 1e-4);
  EXPECT_NEAR(c.fetching(320e6, 1).hbm() / c.hbm(), 1, 1e-3);
  // a small model's weights are fetched from there, a large one's are not
  c.row_bytes_s = c.hbm_bytes_s, c.launch_s = 0;
  const auto step = [&](int64_t hidden) {
    PlanJob job = plan_job(gpt_model(2, hidden, 4), 1, 1, 64);
    job.model.vocab = 2;
    const auto with = [&](double cache) {
      job.cluster = c, job.cluster.cache_bytes = cache;
      return predict(job, plan_layout(job, "dp=1")).pipeline;
    };
    return with(1) / with(32e6);
  };
  EXPECT_GT(step(256), 1.2);
  EXPECT_LT(step(4096), 1.05);
}

TEST(PlanCluster, MeasuresThisMachine) {
  const Cluster c = measure_cluster();
  EXPECT_TRUE(!c.core || c.cache_bytes_s >= c.hbm_bytes_s);
  EXPECT_EQ(write_cluster(read_cluster(Json::parse(write_cluster(c), "here"))), write_cluster(c));
  for (double rate : {c.wide_peak(), c.attention_f, c.attention_b, c.hbm(), c.nvlink_bytes_s})
    EXPECT_GT(rate, 0);
  Cluster stopped = c;
  stopped.hbm_bytes_s = 0;
  expect_plan_refused(
      [&] { read_cluster(Json::parse(write_cluster(stopped), "c.json")); }, {"c.json", "hbm_gb_s"});
}

TEST(PlanNetwork, RingsOfTheClosedForm) {
  Cluster c = find_cluster("a100-80g");
  c.nvlink_latency_s = c.network_latency_s = 0;
  const double bytes = 1e9, nvlink = c.nvlink_bytes_s * c.nvlink_efficiency,
               network = c.network_bytes_s * c.network_efficiency;
  const auto reduce = [&](double size, double stride) {
    return 2 * gather_seconds(c, rank_group(c, size, stride), bytes);
  };
  EXPECT_DOUBLE_EQ(reduce(8, 1), 2 * 7.0 / 8 * bytes / nvlink);
  EXPECT_DOUBLE_EQ(reduce(16, 8), 2 * 15.0 / 16 * bytes / network);  // one rank a node
  EXPECT_DOUBLE_EQ(reduce(16, 1), 2 * 15.0 / 16 * bytes / std::min(nvlink, 8 * network));
  EXPECT_EQ(reduce(1, 1), 0);
  // every token to the one other node: half of them
  c.nvlink_efficiency = 1e-9, c.nvlink_bytes_s = 1e18;
  const double sent = all_to_all_seconds(c, rank_group(c, 2, 8), 2000, 50);
  EXPECT_NEAR(sent, 1000 * 2 * 2 * 0.5 / network, 1e-9);
}

TEST(PlanMemory, LayerIsThirtyFourSBH) {
  const PlanJob job = plan_job(gpt_model(4, 1024, 16), 8, 8, 512);
  PlanLayout l = plan_layout(job, "dp=8,micro-batch-size=2");
  const double sbh = 512.0 * 2 * 1024, scores = 5.0 * 16 * 512 / 1024;  // 5 a s / h
  l.fused_attention = false;
  EXPECT_NEAR(layer_activation_bytes(job, l, false) / sbh, 34 + scores, 1e-9);
  l.tp = 8, l.dp = 1, l.sequence_parallel = 1;
  EXPECT_NEAR(layer_activation_bytes(job, l, false) / sbh, (34 + scores) / 8, 1e-9);
  l.sequence_parallel = 0;
  EXPECT_NEAR(layer_activation_bytes(job, l, false) / sbh, 10 + 24.0 / 8 + scores / 8, 1e-9);
  l.recompute = Recompute::selective;
  EXPECT_NEAR(layer_activation_bytes(job, l, false) / sbh, 10 + 24.0 / 8, 1e-9);
  l.recompute = Recompute::full;
  EXPECT_NEAR(layer_activation_bytes(job, l, false) / sbh, 2, 1e-9);
}

TEST(PlanMemory, StatesAndPeaks) {
  const PlanModel m = gpt_model(8, 1024, 16);
  const PlanJob job = plan_job(m, 8, 64, 512);
  const double n = double(m.parameters());
  const Prediction zero0 = predict(job, plan_layout(job, "dp=8,zero=0"));
  EXPECT_NEAR(
      (zero0.memory.parameters + zero0.memory.gradients + zero0.memory.optimizer) / n, 18, 0.1);
  const Prediction zero1 = predict(job, plan_layout(job, "dp=8,zero=1"));
  EXPECT_NEAR(
      (zero1.memory.parameters + zero1.memory.gradients + zero1.memory.optimizer) / n, 7.5, 0.1);
  const Prediction zero3 = predict(job, plan_layout(job, "dp=8,zero=3"));
  EXPECT_NEAR(
      (zero3.memory.parameters + zero3.memory.gradients + zero3.memory.optimizer) / n, 2.25, 0.1);
  // in fp32 the weights are the master copy
  const Memory fp32 = predict(job, plan_layout(job, "dp=8,zero=0,dtype=fp32")).memory;
  EXPECT_NEAR((fp32.parameters + fp32.gradients + fp32.optimizer) / n, 16, 0.1);
  // 1F1B's first rank keeps as many microbatches as there are ranks (and is the heaviest where
  // there are hardly any logits).
  PlanJob small = job;
  small.model.vocab = 2;
  const PlanLayout l = plan_layout(small, "dp=2,pp=4");
  EXPECT_NEAR(
      predict(small, l).memory.activations, 4 * 2 * layer_activation_bytes(job, l, false), 1);
}

TEST(PlanPredict, MultiTokenPredictionRelievesTheLastStage) {
  PlanJob job = plan_job(gpt_model(61, 1024, 16), 64, 128, 1024);
  const PlanLayout l = plan_layout(job, "pp=16"), v = plan_layout(job, "pp=16,schedule=dualpipev");
  EXPECT_EQ(stage_layers(job.model, l).back(), 3);
  job.model.mtp = 1;
  std::vector<int> sixteen(16, 4), thirty_two(32, 2);
  sixteen.back() = 1, thirty_two.back() = 0, thirty_two.front() = 1;
  EXPECT_EQ(stage_layers(job.model, l), sixteen);
  EXPECT_EQ(stage_layers(job.model, v), thirty_two);
  EXPECT_EQ(broken_rule(job, v), "");
}

// What a step of DeepSeek-V3 was published to be made of (see the README): rank 0's, in seconds.
TEST(PlanPredict, PartsOfThePublishedStep) {
  PlanJob job{find_model("deepseek-v3"), find_cluster("h800"), 2048, 15360, 4096};
  job.model.mtp = 1;
  const Prediction p = predict(job,
      plan_layout(job,
          "pp=16,ep=64,dp=128,schedule=dualpipe,"
          "recompute=selective,dtype=fp8,imbalance=1.1,"
          "overlap-ep=1"));
  const std::map<std::string, double> published = {{"1F", 1.13}, {"1B", 1.99}, {"1W", 0.48},
      {"1F1B", 13.95}, {"bubble", 2.06}, {"optimizer", 0.29}};
  double sum = 0;
  for (const auto& [name, seconds] : by_action(p, p.of_first)) {
    EXPECT_NEAR(seconds / published.at(name), 1, 0.08) << name;
    sum += seconds;
  }
  EXPECT_NEAR(sum, p.step, 1e-9);
  EXPECT_NEAR(p.step / 19.926, 1, 0.02);
}

TEST(PlanPredict, BubbleOf1F1B) {
  PlanModel m = gpt_model(8, 4096, 32);
  m.vocab = 2, m.tied = false;  // stages alike
  PlanJob job = plan_job(m, 4, 32, 1024);
  job.cluster.other = 0;
  job.cluster.nvlink_latency_s = 0, job.cluster.launch_s = 0, job.cluster.nvlink_bytes_s = 1e18;
  const Prediction p = predict(job, plan_layout(job, "pp=4"));
  EXPECT_NEAR(p.bubble / p.pipeline, 3.0 / (32 + 3), 1e-3);
  double sum = 0;
  for (const auto& [name, seconds] : step_parts(p)) sum += seconds;
  EXPECT_NEAR(sum / p.step, 1, 1e-4);
  // A long schedule is extrapolated from short ones.
  job.batch = 400;
  EXPECT_NEAR(predict(job, plan_layout(job, "pp=4"), 100).step /
          predict(job, plan_layout(job, "pp=4")).step,
      1, 1e-9);
  EXPECT_TRUE(predict(job, plan_layout(job, "pp=4"), 100).extrapolated);
}

TEST(PlanPredict, ExtrapolationKeepsPeaksAndSteps) {
  std::mt19937 random(1);
  for (const char* schedule : {"gpipe", "1f1b", "interleaved,virtual-stages=3", "zb1p", "zb-h2",
           "zb2p", "zbv", "v-half", "v-min", "dualpipe", "dualpipev"})
    for (const int P : {2, 4, 6})
      for (int tries = 0; tries < 10; ++tries) {
        const PlanModel m = gpt_model(18 + int(random() % 9), 512 << random() % 4, 16);
        const int M = 2 * int(60 + random() % (tries ? 300 : 1500));
        PlanJob job = plan_job(m, P, M, 256 << random() % 3);
        job.cluster.nvlink_latency_s *= 1 << random() % 8;
        const PlanLayout l = plan_layout(job, cat("pp=", P, ",schedule=", schedule));
        const Prediction all = predict(job, l, 1e9), few = predict(job, l, 0);
        EXPECT_FALSE(all.extrapolated);
        EXPECT_TRUE(few.extrapolated);
        SCOPED_TRACE(cat(l.text(), " ", M, " ", m.layers, " ", m.hidden));
        EXPECT_NEAR(few.memory.total() / all.memory.total(), 1, 1e-9);
        EXPECT_NEAR(few.step / all.step, 1, 1e-9);
        EXPECT_NEAR(few.bubble / all.step, all.bubble / all.step, 1e-9);
        EXPECT_NEAR(few.of_first.pairs / all.step, all.of_first.pairs / all.step, 1e-9);
      }
}

// A step is no longer for a faster GPU, or for fewer sequences in each microbatch.
TEST(PlanPredict, AFasterGpuTakesNoLonger) {
  PlanModel experts = gpt_model(16, 1024, 16);
  experts.experts = 8, experts.topk = 2, experts.expert_ffn = 1024;
  for (const PlanModel& m : {gpt_model(16, 512, 16), experts})
    for (const std::string& schedule : split(planned_schedules()))
      for (const char* rest :
          {"", ",tp=2", ",tp=2,sequence-parallel=1,zero=3,dp=2", ",overlap-tp=1,tp=2"}) {
        if (schedule.starts_with("dualpipe") && std::string(rest).find("zero") != std::string::npos)
          continue;
        const int tp = *rest ? 2 : 1,
                  dp = std::string(rest).find("dp=2") == std::string::npos ? 1 : 2;
        double fewer[3][6] = {};
        for (int mbs = 1; mbs <= 32; mbs *= 2)
          for (int what = 0; what < 3; ++what) {
            double slower = INFINITY;
            for (int speed = 0; speed < 6; ++speed) {
              PlanJob job = plan_job(m, 2 * tp * dp, 8 * mbs * dp, 1024);
              const double factor = std::pow(1.5, speed);
              if (what != 1) job.cluster.peak[1] *= factor;
              if (what != 0) job.cluster.hbm_bytes_s *= factor;
              if (what == 2) job.cluster.nvlink_bytes_s *= factor;
              std::string text = cat("pp=2,schedule=", schedule, rest, ",micro-batch-size=", mbs);
              if (schedule == "interleaved") text += ",virtual-stages=2";
              const double step = predict(job, plan_layout(job, text)).step;
              EXPECT_LE(step, slower * (1 + 1e-9)) << text << " " << what << " " << speed;
              EXPECT_GE(step, fewer[what][speed] * (1 - 1e-9))
                  << text << " " << what << " " << speed;
              slower = step, fewer[what][speed] = step;
            }
          }
      }
}

TEST(PlanPredict, PublishedPairOfDeepSeekV3) {
  // profile-data's training trace: a forward and a backward chunk of 4 MoE layers take 128.5 ms,
  // routing balanced. The constants of the H800 were set by it.
  const PlanJob job{find_model("deepseek-v3"), find_cluster("h800"), 2048, 15360, 4096};
  const PlanLayout l =
      plan_layout(job, "pp=16,ep=64,schedule=dualpipe,recompute=selective,dtype=fp8,overlap-ep=1");
  Cost chunk;
  chunk.add(layer_cost(job, l, true, false), 4);
  EXPECT_NEAR(cost_profile(job, l, {chunk}).stages[0].FB, 0.1285, 0.1285 * 0.05);
}

// "Zero Bubble Pipeline Parallelism", table 5: bubbles of ZB-2p, computed from table 6's times.
TEST(PlanSchedules, FillBubblesWithinTheirMemory) {
  for (const auto& [P, M, F, I, W, message, waiting, percent] :
      {std::tuple(8, 24, 18.522, 18.086, 9.337, 0.601, 0.39, 4.33),
          {8, 64, 18.546, 18.097, 9.321, 0.762, 0.39, 0.26},
          {16, 48, 11.347, 11.248, 8.132, 0.377, 0.46, 0.66}}) {
    const Schedule s = zero_bubble("zb2p", {P, M}, {F, I, W, F + I + W}, waiting);
    check(s);
    const double span = longest_span(simulate(s, {{{F, I, W, F + I + W}}, message, message}));
    EXPECT_NEAR(100 * (1 - M * (F + I + W) / span), percent, 0.01) << P << " " << M;
    for (const auto& of_rank :
        shape_of(s, s.microbatches, std::vector<double>(size_t(P), 1), waiting).peaks)
      for (const auto& [stage, alive] : of_rank) EXPECT_LE(alive, 2 * P);
  }
  // an activation that is there until its W leaves room for fewer Ws that wait
  for (double F : {1.0, 0.0})
    for (double W : {0.3, 0.0})
      EXPECT_LE(check(zero_bubble("zb2p", {8, 64}, {F, 2 * F, W, 3 * F + W}, 1)).peak(), 16);
}

TEST(PlanProfile, SimulatesStagesAndMessages) {
  const Schedule s = make_schedule("1f1b", {3, 5, 1});
  CostProfile profile;
  profile.stages.assign(3, {1, 1, 1, 3});
  EXPECT_EQ(simulate(s, profile).makespan, simulate(s, {{StageCosts()}}).makespan);
  // The slowest stage sets the pace: 1 until it begins, 5 x 6 of work, 1 in which it waits for the
  // first gradient, 2 after it.
  profile.stages[1] = {2, 2, 2, 6};
  EXPECT_EQ(simulate(s, profile).makespan, 1 + 5 * 6 + 1 + 2);
  // One microbatch travels twice over two edges.
  profile.stages.assign(3, {1, 1, 1, 3});
  profile.forward_message = 0.5, profile.backward_message = 0.25;
  EXPECT_EQ(simulate(make_schedule("1f1b", {3, 1, 1}), profile).makespan, 9 + 2 * 0.5 + 2 * 0.25);
  const std::string path = ::testing::TempDir() + "/profile.json";
  std::ofstream(path) << write_profile(profile);
  EXPECT_EQ(write_profile(read_profile(path)), write_profile(profile));
  std::ofstream(path) << R"({"unit": "s", "stages": [{"F": -1}]})";
  expect_plan_refused([&] { read_profile(path); }, {path, "F", "-1"});
  for (const char* stage :
      {R"({"F": 0, "I": 1, "W": 1, "FB": 2})", R"({"F": 1, "I": 0, "W": 0, "FB": 2})"}) {
    std::ofstream(path) << R"({"unit": "s", "stages": [)" << stage << "]}";
    expect_plan_refused([&] { read_profile(path); }, {path, "stages", "at least 1e-12"});
  }
  std::ofstream(path) << R"({"unit": "s", "stages": [{"F": 1e308, "I": 1, "W": 1, "FB": 1}]})";
  expect_plan_refused([&] { read_profile(path); }, {path, "stages.F", "0 .. 1e+09", "1e+308"});
  std::ofstream(path) << R"({"unit": "ms", "stages": []})";
  expect_plan_refused([&] { read_profile(path); }, {path, "unit", "ms"});
}

}  // namespace
}  // namespace duet
