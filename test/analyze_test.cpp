// What is said of a trace, on small ones whose answers are known, and on random ones against an
// oracle that looks at every nanosecond by itself.
#include <gtest/gtest.h>

#include <random>
#include <sstream>

#include "analyze_testing.h"
#include "model/base/json.h"
#include "pipeline/insight/trace/classify.h"
#include "pipeline/insight/trace/report.h"
#include "testing.h"

namespace duet {
namespace {

Json report(const Analysis& a) {
  std::ostringstream out;
  report_json(out, a, 0);
  return Json::parse(out.str(), "report");
}

using AnalyzeTest = FolderTest;

// --- measure -------------------------------------------------------------------------------------

TEST_F(AnalyzeTest, EveryFigureIsTheOracles) {
  constexpr int kEnd = 400, kMargin = 50;
  std::mt19937 rng(3);
  for (int round = 0; round < 300; ++round) {
    TraceText t;
    std::vector<bool> ticks[3];  // compute, comm, memory
    for (auto& of : ticks) of.resize(kEnd + kMargin);
    int first = INT_MAX, last = 0;
    int64_t counts[3] = {};
    const int n = 1 + int(rng() % 14);
    for (int i = 0; i < n; ++i) {
      const int kind = int(rng() % 3), begin = int(rng() % kEnd), length = int(rng() % kMargin);
      if (kind == 2)
        t.event("gpu_memcpy", "Memcpy HtoD", {0, 7}, begin, begin + length, "\"stream\":7");
      else
        t.kernel(kind ? "ncclDevKernel_AllReduce" : "gemm", 7 + 2 * int(rng() % 2), begin,
            begin + length, rng() % 2 ? begin / 2 : -1);
      for (int at = begin; at < begin + length; ++at) ticks[kind][size_t(at)] = true;
      first = std::min(first, begin), last = std::max(last, begin + length);
      ++counts[kind];
    }
    std::shuffle(t.events.begin(), t.events.end(), rng);
    int64_t C = 0, M = 0, memory = 0, overlap = 0, all = 0;
    for (size_t at = 0; at < kEnd + kMargin; ++at) {
      C += ticks[0][at], M += ticks[1][at], memory += ticks[2][at];
      overlap += ticks[0][at] && ticks[1][at];
      all += ticks[0][at] || ticks[1][at] || ticks[2][at];
    }
    const Analysis a = analyze_bytes(t.text());
    const Measure& m = a.ranks.at(0).measure;
    ASSERT_EQ(m.overlap.span, last - first);
    ASSERT_EQ(m.overlap.compute, C);
    ASSERT_EQ(m.overlap.comm, M);
    ASSERT_EQ(m.memory, memory);
    ASSERT_EQ(m.overlap.covered, overlap);
    ASSERT_EQ(m.idle, last - first - all);
    for (int kind : {0, 1, 2}) ASSERT_EQ(m.kernels[kind], counts[kind]);
    // Exposed points are apart, lie in what is exposed and add up to it.
    int64_t exposed = 0;
    std::vector<Interval> times;
    for (const Conflict& c : a.conflicts) {
      if (c.slowed()) continue;
      exposed += c.lost;
      times.push_back(c.time);
      ASSERT_EQ(c.lost, c.time.end - c.time.begin);
    }
    ASSERT_EQ(exposed, M - overlap);
    ASSERT_EQ(length(merged(times)), exposed);
  }
}

TEST_F(AnalyzeTest, JsonHasTheDefinitionsAndNoNaN) {
  const Json j = report(analyze_bytes(
      TraceText().kernel("gemm", 7, 0, 100'000).kernel("ncclX", 9, 60'000, 160'000).text()));
  const Json r = j.at("ranks").items().at(0);
  EXPECT_EQ(r.at("span_us").number(), 160);
  EXPECT_EQ(r.at("serial_us").number(), 200);
  EXPECT_EQ(r.at("overlap_ratio").number(), 0.4);
  EXPECT_EQ(r.at("exposed_comm_us").number(), 60);
  EXPECT_EQ(r.at("speedup_vs_serial").number(), 1.25);
  EXPECT_EQ(r.at("lower_bound_us").number(), 100);
  EXPECT_EQ(r.at("overlap_efficiency").number(), 0.4);
  EXPECT_EQ(r.at("components").at("unattributed").at("count").integer(), 2);
  EXPECT_EQ(j.at("unclassified").items().size(), 0u);
  const Json none = report(analyze_bytes(TraceText().kernel("gemm", 7, 0, 0).text()));
  for (const char* ratio : {"overlap_ratio", "speedup_vs_serial", "overlap_efficiency"})
    EXPECT_TRUE(none.at("ranks").items().at(0).at(ratio).is_null()) << ratio;
  EXPECT_EQ(none.at("unclassified").items().at(0).at("name").string(), "gemm");
}

// --- classes and components ---

TEST_F(AnalyzeTest, NamesSayWhatCommunicates) {
  for (const char* name : {"ncclKernel_AllReduce_RING_LL_Sum_float", "nccldevkernel_sendrecv",
           "ncclSymkDevKernel_AllGather_LL", "rcclGenericKernel", "mscclRunInterpreter",
           "void dpsk::ep::internode::dispatch<false>",
           "void dpsk::ep::cuda::get_dispatch_layout<256>",
           "void deep_ep::intranode::combine<__nv_bfloat16>", "nvshmemi_transfer_rma",
           "hybrid_ep::dispatch_kernel", "void flashinfer::allreduce_fusion_kernel",
           "cross_device_reduce_1stage", "void vllm::two_shot_all_reduce_kernel",
           "Memcpy PtoP (Device -> Device)", "Memcpy Peer to Peer"})
    EXPECT_EQ(work_of_name(name), Work::comm) << name;
  for (const char* name :
      {"gemm", "void permute_2D_lengths_kernel<int>", "void dispatch_table_fill", "moe_permute",
          "void at::native::scatter_reduce", "dpsk::grouped_gemm", ""})
    EXPECT_EQ(work_of_name(name), Work::compute) << name;
  for (const char* name : {"Memcpy HtoD (Pinned -> Device)", "Memset (Device)"})
    EXPECT_EQ(work_of_name(name), Work::memory) << name;

  TraceText t;  // metadata decides where a name says nothing
  t.event("kernel", "triton_fused", {0, 9}, 0, 10, R"("stream":9,"Collective name":"allreduce")");
  t.event("kernel", "gemm", {0, 7}, 0, 10, R"("stream":7,"registers per thread":32)");
  t.event("cuda_sync", "Stream Sync", {0, 7}, 0, 1000, R"("stream":7)");
  t.event("gpu_memcpy", "Memcpy PtoP", {0, 7}, 0, 10, R"("stream":7)");
  const Analysis a = analyze_bytes(t.text());
  EXPECT_EQ(a.ranks[0].measure.kernels[0], 1);
  EXPECT_EQ(a.ranks[0].measure.kernels[1], 2);
}

TEST_F(AnalyzeTest, RulesAddAndOverride) {
  TraceText t;
  t.annotation("combine(B)", 0, 10'000);
  t.kernel("my_a2a_kernel", 27, 0, 10'000).kernel("nccl_but_local", 7, 0, 10'000);
  t.kernel("cast", 27, 20'000, 30'000, 5'000);
  const std::string trace = write("t.json", t.text());
  const auto kernels = [&](const std::string& rules, bool by_annotation = false) {
    AnalyzeOptions o{.traces = {trace}, .by_annotation = by_annotation};
    if (!rules.empty()) o.rules = write("rules.json", rules);
    const Analysis a = analyze(o);
    return std::vector<int64_t>(a.ranks[0].measure.kernels, a.ranks[0].measure.kernels + 3);
  };
  using K = std::vector<int64_t>;
  EXPECT_EQ(kernels(""), (K{2, 1, 0}));
  EXPECT_EQ(kernels("", true), (K{1, 2, 0}));
  EXPECT_EQ(kernels(R"({"rules":[{"name":"^my_a2a","class":"communication"}]})"), (K{1, 2, 0}));
  EXPECT_EQ(kernels(R"([{"name":"nccl_but","class":"compute"}])"), (K{3, 0, 0}));
  EXPECT_EQ(kernels(R"([{"annotation":"^combine","class":"memory"}])"), (K{1, 1, 1}));
  EXPECT_EQ(kernels(R"([{"stream":"^27$","name":"cast","class":"memory"},
                        {"stream":"^27$","class":"communication","component":"x"}])"),
      (K{0, 2, 1}));
  const std::pair<const char*, const char*> wrong[] = {{"{", "not valid JSON"}, {"{}", "\"rules\""},
      {R"([{"name":"("}])", "regular expression"}, {R"([{"nam":"x"}])", "\"nam\""},
      {R"([{"name":"x","class":"comm"}])", "allowed are compute"},
      {R"([{"class":"memory"}])", "name"}, {R"([{"name":"x"}])", "a class or a component"},
      {R"([{"name":1}])", "a string"}};
  for (const auto& [rules, words] : wrong) try {
      kernels(rules);
      ADD_FAILURE() << rules;
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
}

TEST_F(AnalyzeTest, ComponentsComeFromTheLaunch) {
  TraceText t;
  t.annotation("step", 0, 1000).annotation("attn(B)", 100, 400).annotation("other", 200, 300, 300);
  t.kernel("own", 7, 5000, 5010, 150);
  t.kernel("autograd", 7, 5010, 5020, 150, 200);  // a thread without annotations
  t.kernel("other thread's own", 7, 5020, 5030, 250, 300);
  t.kernel("outer", 7, 5030, 5040, 500);
  t.kernel("after", 7, 5040, 5050, 2000);
  t.kernel("graph", 7, 5050, 5060, 160);
  for (int i = 0; i < 3; ++i)
    t.event("kernel", cat("node ", i), {0, 7}, 5060 + i * 10, 5070 + i * 10,
        "\"stream\":7,\"correlation\":6");
  t.kernel("nobody's", 7, 6000, 6010);
  const Analysis a = analyze_bytes(t.text());
  std::map<std::string, std::string> component;
  for (const GpuEvent& e : a.ranks[0].events) component[a.names[e.name]] = a.names[e.component];
  EXPECT_EQ(component,
      (std::map<std::string, std::string>{{"own", "attn(B)"}, {"autograd", "attn(B)"},
          {"other thread's own", "other"}, {"outer", "step"}, {"after", "outside annotations"},
          {"graph", "attn(B)"}, {"node 0", "attn(B)"}, {"node 1", "attn(B)"}, {"node 2", "attn(B)"},
          {"nobody's", "unattributed"}}));

  // Two ranks merged into one file: both count correlation ids from 1.
  TraceText two;
  for (int r : {0, 1}) {
    two.event("user_annotation", cat("rank ", r), {100 + r, 1}, 0, 100);
    two.event("cuda_runtime", "cudaLaunchKernel", {100 + r, 1}, 10, 12, "\"correlation\":1");
    two.event("kernel", cat("of ", r), {r, 7}, 50, 60,
        cat("\"device\":", r, ",\"stream\":7,\"correlation\":1"));
  }
  const Analysis b = analyze_bytes(two.text());
  ASSERT_EQ(b.ranks.size(), 2u);
  for (size_t r : {0, 1}) EXPECT_EQ(b.names[b.ranks[r].events[0].component], cat("rank ", r));
}

// --- conflicts ---

// The causes of exposed communication, in the order of time, of stream 9's one kernel.
std::string causes(const TraceText& t) {
  Analysis a = analyze_bytes(t.text());
  std::sort(a.conflicts.begin(), a.conflicts.end(),
      [](const Conflict& x, const Conflict& y) { return x.time.begin < y.time.begin; });
  std::string all;
  for (const Conflict& c : a.conflicts) all += cat(kCauses[int(c.cause)], " ");
  return all;
}

TEST_F(AnalyzeTest, ExposedCommunicationHasACause) {
  constexpr int64_t us = 1000;
  const auto with = [&](int64_t comm_end, int64_t next, int64_t launched) {
    return TraceText()
        .kernel("gemm", 7, 0, 100 * us, 0)
        .kernel("ncclX", 9, 50 * us, comm_end, 0)
        .kernel("next", 7, next, next + 50 * us, launched);
  };
  EXPECT_EQ(causes(with(150 * us, 109 * us, 0)), "micro-gap ");
  EXPECT_EQ(causes(with(150 * us, 130 * us, 120 * us)), "host ");
  EXPECT_EQ(causes(with(150 * us, 152 * us, 20 * us)), "dependency ");
  EXPECT_EQ(causes(with(150 * us, 130 * us, 20 * us)), "other ");
  EXPECT_EQ(causes(with(90 * us, 130 * us, 20 * us)), "");
  EXPECT_EQ(
      causes(TraceText().kernel("gemm", 7, 0, 10 * us).kernel("ncclX", 9, 0, 90 * us)), "other ");
  TraceText copied = with(150 * us, 162 * us, 20 * us);  // it waited for a copy after that
  copied.event("gpu_memcpy", "Memcpy HtoD", {0, 8}, 155 * us, 161 * us, "\"stream\":8");
  EXPECT_EQ(causes(copied), "other ");
}

TEST_F(AnalyzeTest, ComputeIsSlowedWhereTheSamePositionIsFasterAlone) {
  TraceText t;  // a persistent kernel: one name and grid, two places in a layer
  int64_t at = 0;
  for (int layer = 0; layer < 4; ++layer) {
    t.annotation("mlp(F)", at, at + 100);
    const bool beside = layer == 2;
    if (beside) t.kernel("ncclX", 9, at + 1000, at + 80'000);
    t.kernel("persistent", 7, at + 1000, at + (beside ? 31'000 : 21'000), at + 10);
    t.kernel("persistent", 7, at + 40'000, at + 70'000, at + 20);  // longer, and not slowed
    at += 200'000;
  }
  const Analysis a = analyze_bytes(t.text());
  std::vector<Conflict> slowed;
  for (const Conflict& c : a.conflicts)
    if (c.slowed()) slowed.push_back(c);
  ASSERT_EQ(slowed.size(), 1u);
  EXPECT_EQ(slowed[0].lost, 10'000);
  EXPECT_EQ(slowed[0].with, 1);
  EXPECT_EQ(slowed[0].without, 3);
  EXPECT_EQ(a.names[slowed[0].comm->name], "ncclX");
  EXPECT_EQ(a.names[slowed[0].waiting->component], "mlp(F)");
}

TEST_F(AnalyzeTest, SlackIsWhatADispatchCouldTakeLonger) {
  TraceText t;
  t.annotation("dispatch(F)", 0, 10).annotation("mlp(F)", 20, 30).annotation("combine(F)", 40, 50);
  t.annotation("attn(F)", 60, 70);
  t.kernel("deep_ep::dispatch", 27, 1000, 2000, 1).kernel("deep_ep::combine", 27, 5000, 9000, 41);
  t.kernel("gemm", 7, 2700, 4900, 21).kernel("softmax", 7, 9000, 9500, 61);
  const Analysis a = analyze_bytes(t.text());
  ASSERT_EQ(a.slacks.size(), 2u);
  EXPECT_EQ(
      a.slacks[0].slack, 700);  // its consumer began then; the next transfer bounds it at 3000
  EXPECT_EQ(a.slacks[0].duration, 1000);
  EXPECT_EQ(a.names[a.slacks[0].consumer], "mlp(F)");
  EXPECT_EQ(a.slacks[1].slack, 0);
}

// --- several ranks ---

TEST_F(AnalyzeTest, ClocksAreAlignedAndSkewIsTold) {
  // Rank 1's clock is 7 s ahead. In collective i rank i % 2 comes (i + 1) * 10 us late.
  constexpr int64_t kAhead = 7'000'000'000, us = 1000;
  for (int r : {0, 1}) {
    TraceText t;
    for (int i = 0; i < 6; ++i) {
      const int64_t clock = 1'000'000 * us + (r ? kAhead : 0) + i * 1000 * us;
      const int64_t late = i % 2 == r ? (i + 1) * 10 * us : 0;
      t.event("kernel", "ncclDevKernel_SendRecv", {r, 9}, clock + late, clock + 200 * us,
          cat(R"("stream":9,"Process Group Name":"ep","dtype":"BFloat16",)",
              R"("In msg nelems":1000,"Seq":)", i));
    }
    write(cat("rank", r, ".json"), t.text(cat("\"distributedInfo\":{\"rank\":", r, "},")));
  }
  const Analysis a = analyze({.traces = {folder_}});
  ASSERT_EQ(a.ranks.size(), 2u);
  EXPECT_EQ(a.ranks[1].number, 1);
  EXPECT_EQ(a.ranks[1].clock_moved, -kAhead);
  EXPECT_EQ(a.ranks[1].clock_error, 0);
  const MatchedComm& c = a.matched.by_name.begin()->second;
  EXPECT_EQ(c.count, 6);
  EXPECT_EQ(c.skew, (10 + 20 + 30 + 40 + 50 + 60) * us);
  EXPECT_EQ(c.waiting, c.skew);
  EXPECT_EQ(c.transfer, 2 * (6 * 200 * us - c.skew));
  EXPECT_EQ(c.last, (std::map<int64_t, int64_t>{{0, 3}, {1, 3}}));
  EXPECT_EQ(c.bandwidth.at(2000).first, 6);
  int64_t skew = 0;
  for (const Conflict& x : a.conflicts) skew += x.cause == Cause::skew ? x.lost : 0;
  EXPECT_EQ(skew, c.waiting);  // nothing computes, so all of it is exposed
}

TEST_F(AnalyzeTest, CollectivesThatCannotBeTheSameAreDropped) {
  for (int r : {0, 1}) {
    TraceText t;
    for (int i = 0; i < 4; ++i) {
      const int64_t at = 1'000'000 + i * 1'000'000 + (i == 3 ? r * 500'000 : 0);
      t.event("kernel", "ncclX", {r, 9}, at, at + 100'000, "\"stream\":9");
    }
    write(cat("rank", r, ".json"), t.text());
  }
  const Analysis a = analyze({.traces = {folder_}});
  EXPECT_EQ(a.matched.by_name.begin()->second.count, 3);
  EXPECT_EQ(a.matched.contradictions, 1);
  EXPECT_EQ(a.warnings.size(), 1u);
}

}  // namespace
}  // namespace duet
