// The efficiency model against closed forms: parameters and FLOP of known models, memory of a layer
// and of a parameter, ring collectives, bubbles; and what its readers refuse.
#include <fstream>

#include "model/config.h"
#include "pipeline/insight/plan/cluster.h"
#include "pipeline/insight/plan/layout.h"
#include "pipeline/insight/plan/report.h"
#include "pipeline/schedule/checker.h"
#include "pipeline/schedule/simulator.h"
#include "test/plan_testing.h"

namespace duet {
namespace {

TEST(PlanModel, ParametersOfKnownModels) {
  // billions, as their publishers state them
  EXPECT_NEAR(double(find_model("deepseek-v3").parameters()) / 1e9, 671, 1);
  EXPECT_NEAR(double(find_model("deepseek-v3").active_parameters()) / 1e9, 37, 1);
  EXPECT_NEAR(double(find_model("llama-3-8b").parameters()) / 1e9, 8.03, 0.01);
  EXPECT_NEAR(double(find_model("Llama-3.1-405B").parameters()) / 1e9, 405.8, 0.5);
  EXPECT_NEAR(double(find_model("mixtral-8x22b").parameters()) / 1e9, 140.6, 0.2);
  const auto read = [](const std::string& text) {
    return double(read_hf_config(text, "config.json").parameters()) / 1e9;
  };
  EXPECT_NEAR(read(R"({"model_type": "mixtral", "num_local_experts": 8})"), 46.7, 0.1);
  EXPECT_NEAR(read(R"({"model_type": "gpt2"})"), 0.124, 0.001);
  EXPECT_NEAR(
      read(R"({"model_type": "qwen3_moe", "num_hidden_layers": 48, "head_dim": 128})"), 30.5, 0.1);
  EXPECT_NEAR(read(R"({"model_type": "kimi_k2", "n_routed_experts": 384, "num_attention_heads": 64,
    "vocab_size": 163840, "first_k_dense_replace": 1})"),
      1027, 3);
  EXPECT_NEAR(read(R"({"model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048,
    "intermediate_size": 10944, "num_hidden_layers": 27, "num_attention_heads": 16,
    "q_lora_rank": null, "moe_intermediate_size": 1408, "first_k_dense_replace": 1})"),
      15.7, 0.1);
}

TEST(PlanModel, PresetsAgreeWithModelConfig) {
  for (const Preset& preset : presets()) {
    EXPECT_NO_THROW(preset.model.validate()) << preset.name;
    const PlanModel m = find_model(preset.name);
    const double ours = double(m.parameters()), theirs = double(preset.model.parameters());
    EXPECT_NEAR(ours / theirs, 1, 0.005) << preset.name;
    EXPECT_NEAR(3 * m.forward_flops(preset.seq_len, true) /
            preset.model.train_flops_per_token(preset.seq_len),
        1, 0.02)
        << preset.name;
  }
}

TEST(PlanModel, DenseTransformerIsSixN) {
  const PlanModel m = gpt_model(24, 2048, 16);
  const double n = double(m.parameters());  // tied: the embedding counts once, as the head
  const double attention = 12.0 * 24 * 2048 * 1024;
  EXPECT_NEAR(3 * m.forward_flops(1024, false) / (6 * n + attention), 1, 0.001);
  // 96 B s l h^2 (1 + s / 6h + V / 16lh), with the forward of the layers once more
  // ("Efficient Large-Scale Language Model Training on GPU Clusters", section 5.1)
  const PlanJob job = plan_job(m, 8, 16, 1024);
  const double s = 1024, l = 24, h = 2048, V = 51200;
  EXPECT_NEAR(step_flops(job, Flops::with_recompute, false) /
          (96 * 16 * s * l * h * h * (1 + s / (6 * h) + V / (16 * l * h))),
      1, 0.002);
}

TEST(PlanModel, RefusesWhatItDoesNotKnow) {
  const auto read = [](const char* text) { return [=] { read_hf_config(text, "c.json"); }; };
  expect_plan_refused(read(R"({"model_type": "deepseek_v32", "index_topk": 2048})"),
      {"c.json", "index_topk", "not modelled"});
  expect_plan_refused(read(R"({"model_type": "gpt_oss", "layer_types": ["sliding_attention"]})"),
      {"c.json", "sliding_attention", "layer_types"});
  expect_plan_refused(read(R"({"model_type": "mamba"})"), {"c.json", "mamba", "deepseek_v3"});
  expect_plan_refused(read(R"({"hidden_size": 64})"), {"c.json", "model_type is missing"});
  expect_plan_refused(
      read(R"({"model_type": "llama", "hidden_size": "big"})"), {"hidden_size", "big"});
  expect_plan_refused(
      read(R"({"model_type": "llama", "hidden_size": 100})"), {"hidden_size", "multiple", "100"});
  expect_plan_refused(read("{"), {"c.json"});
  expect_plan_refused(
      [] { find_model("gpt-9"); }, {"--model", "gpt-9", "llama-3-8b", "config.json"});
  const PlanModel m =
      read_hf_config(R"({"model_type": "llama", "quantization_config": {}})", "c.json");
  EXPECT_EQ(m.layers, 32);
  EXPECT_EQ(m.notes.size(), 7u);  // six defaults and the quantization
}

TEST(PlanModel, ReadsNestedConfigsAndDenseLayers) {
  const PlanModel m = read_hf_config(R"({"text_config": {"model_type": "qwen3_moe",
    "num_hidden_layers": 8, "decoder_sparse_step": 2, "mlp_only_layers": [3]}})",
      "c.json");
  EXPECT_EQ(m.moe_layers(), 3);  // 1, 5 and 7
  EXPECT_FALSE(m.moe(3));
}

TEST(PlanCluster, FilesReadBackAndAreChecked) {
  for (const char* name : {"a100-40g", "a100-80g", "h100", "h100-96g", "h800", "h200", "b200",
           "b300", "gb200", "gb300"}) {
    const Cluster c = find_cluster(name), again = read_cluster(write_cluster(c), "again");
    EXPECT_EQ(write_cluster(again), write_cluster(c)) << name;
  }
  std::string text = write_cluster(find_cluster("h100"));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    return changed.replace(changed.find(from), from.size(), to);
  };
  const std::string hbm = "\"hbm_gb_s\": 3350.0";
  ASSERT_NE(text.find(hbm), text.npos) << text;
  const auto refused = [&](const std::string& to, const std::vector<std::string>& words) {
    expect_plan_refused([&] { read_cluster(with(hbm, to), "c.json"); }, words);
  };
  refused("\"hbm_gb_s\": 3.35", {"c.json", "hbm_gb_s", "3.35"});
  refused("\"hbm_gb_s\": null", {"c.json", "hbm_gb_s is missing"});
  refused("\"hbm_gb_s\": \"3350 GB/s\"", {"c.json", "hbm_gb_s", "number"});
  refused(hbm + ", \"latency_ms\": 1", {"c.json", "latency_ms", "no field"});
  expect_plan_refused([] { find_cluster("v100"); }, {"--cluster", "v100", "a100-80g"});
}

TEST(PlanCosts, ProductsAreARoofline) {
  Cluster c = find_cluster("h100");
  c.tail_waves = c.k_half = 0;
  EXPECT_DOUBLE_EQ(product_seconds(c, Precision::bf16, 8192, 8192, 8192),
      2.0 * 8192 * 8192 * 8192 / c.products_per_s(Precision::bf16));
  // one row: the matrix must be read
  EXPECT_NEAR(
      product_seconds(c, Precision::bf16, 1, 8192, 8192) / (2.0 * 8192 * 8192 / c.hbm()), 1, 0.01);
}

TEST(PlanCosts, ACoreWorksAndFetchesInTurn) {
  Cluster c = find_cluster("h100");
  const auto seconds = [&] { return product_seconds(c, Precision::bf16, 64, 8192, 64); };
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
  if (c.core) EXPECT_GT(c.cache_bytes_s, c.hbm_bytes_s);
  EXPECT_EQ(write_cluster(read_cluster(write_cluster(c), "here")), write_cluster(c));
  for (double rate : {c.wide_peak(), c.attention_f, c.attention_b, c.hbm(), c.nvlink_bytes_s})
    EXPECT_GT(rate, 0);
  Cluster stopped = c;
  stopped.hbm_bytes_s = 0;
  expect_plan_refused(
      [&] { read_cluster(write_cluster(stopped), "c.json"); }, {"c.json", "hbm_gb_s"});
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
  const double sent =
      all_to_all_seconds(c, rank_group(c, 2, 8), {.tokens = 1000, .bytes = 2, .topk = 50});
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
  const PlanModel m = gpt_model(12, 1024, 16);
  for (const char* schedule : {"gpipe", "1f1b", "interleaved,virtual-stages=3", "zb1p", "zb-h2",
           "zbv", "v-half", "v-min", "dualpipe", "dualpipev"})
    for (const int M : {96, 98, 102}) {
      const PlanJob job = plan_job(m, 4, M, 256);
      const PlanLayout l = plan_layout(job, cat("pp=4,schedule=", schedule));
      const Prediction all = predict(job, l, 1e9), few = predict(job, l, 0);
      EXPECT_FALSE(all.extrapolated);
      EXPECT_TRUE(few.extrapolated);
      EXPECT_NEAR(few.memory.total() / all.memory.total(), 1, 1e-9) << schedule << " " << M;
      EXPECT_NEAR(few.step / all.step, 1, 2e-3) << schedule << " " << M;
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

TEST(PlanSchedules, ListsKeepTheirPromises) {
  for (int P : {2, 4, 8})
    for (int M : {2 * P, 5 * P})
      for (const char* name : {"zb-h2", "zb2p", "v-half", "v-min"}) {
        const StageCosts costs{1, 1, 1, 3};
        const Schedule s = list_schedule(name, P, M, costs);
        const Usage usage = check(s);
        const double share = usage.peak() * s.stage_share();  // in P-ths of the model
        const double most = s.name == "v-half" ? 0.75 * P + 1
            : s.name == "v-min"                ? 0.34 * P + 2
                                               : 2 * P;
        EXPECT_LE(share, most) << name;
        CostProfile profile;
        profile.stages.assign(size_t(s.model_stages()), costs);
        const Timing t = simulate(s, profile);
        const double busy = 3.0 * M * s.model_stages() / P;
        if (s.name == "zb2p") {
          double longest = 0;
          for (const auto& spans : t.spans)
            longest = std::max(longest, spans.back().end - spans.front().start);
          EXPECT_LE(longest - busy, P / 4.0) << P << " " << M;
        } else if (s.name.starts_with("v")) {  // at most 1F1B's bubble
          EXPECT_LE(t.makespan - busy, 6.0 * (P - 1) + 1) << name << P << " " << M;
        }
      }
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
  std::ofstream(path) << R"({"unit": "ms", "stages": []})";
  expect_plan_refused([&] { read_profile(path); }, {path, "unit", "ms"});
}

}  // namespace
}  // namespace duet
