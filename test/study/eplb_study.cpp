// See eplb_study.h.
#include "test/study/eplb_study.h"

#include <algorithm>
#include <cmath>
#include <ostream>
#include <random>

#include "moe/eplb_incremental.h"
#include "moe/eplb_quota.h"
#include "test/processor_clock.h"

namespace duet {

namespace {

// Box and Muller's, since std::normal_distribution differs from library to library.
double normal(std::mt19937_64& random) {
  const double u = double((random() >> 11) + 1) * 0x1p-53, v = double(random() >> 11) * 0x1p-53;
  return std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v);
}

// Tokens of each slot where segments go to one replica whole. The microbatch's choices fall on
// ranks and segments by chance.
std::vector<int64_t> by_segment(std::span<const int64_t> tokens, const ExpertPlacement& placement) {
  constexpr int64_t kTopk = 8, kSegment = 128;
  std::vector<int32_t> dealt;
  for (size_t e = 0; e < tokens.size(); ++e)
    dealt.insert(dealt.end(), size_t(tokens[e]), int32_t(e));
  std::mt19937_64 random(2);
  for (size_t i = dealt.size(); i > 1; --i) std::swap(dealt[i - 1], dealt[random() % i]);
  const size_t of_rank = dealt.size() / size_t(placement.gpus) / kTopk * kTopk;
  std::vector<std::vector<int32_t>> choices;
  for (int r = 0; r < placement.gpus; ++r)
    choices.emplace_back(dealt.begin() + int64_t(size_t(r) * of_rank),
        dealt.begin() + int64_t(size_t(r + 1) * of_rank));
  choose_slots_by_segment(choices, kTopk, placement, {1, int64_t(of_rank) / kTopk, kSegment});
  std::vector<int64_t> slots(placement.phy2log.size());
  for (const std::vector<int32_t>& rank : choices)
    for (int32_t slot : rank) ++slots[size_t(slot)];
  return slots;
}

// One way to balance, followed through the intervals of a drift study.
struct Follower {
  DriftRow row;
  enum Plan { deepseek, balanced, first, incremental } plan;
  enum Split { even, token, segment } split;
  ExpertPlacement placement = {};

  void replan(const DriftSetup& s, std::span<const int64_t> window) {
    std::vector<float> load(size_t(s.shape.experts), 0.f);
    for (size_t i = 0; i < window.size(); ++i) load[i % load.size()] += float(window[i]);
    const bool begin = placement.phy2log.empty();
    ExpertPlacement next;
    if (begin || plan == deepseek || plan == balanced)
      next = plan_experts(
          load, s.shape, {plan == deepseek ? EplbPolicy::deepseek : EplbPolicy::balanced});
    else
      next = placement;
    if (plan == incremental)  // the first placement is free to change
      next = plan_incremental(next, window, begin ? s.shape.replicas : s.max_moves);
    const int moved = begin ? 0 : moved_experts(placement, next);
    row.moves += double(moved) / (s.intervals - 1);
    row.max_moves = std::max(row.max_moves, moved);
    placement = std::move(next);
  }

  void use(const DriftSetup& s, std::span<const int64_t> window) {
    const size_t n = size_t(s.shape.experts);
    double mean = 0;
    for (int m = 0; m < s.microbatches; ++m) {
      const auto tokens = window.subspan(size_t(m) * n, n);
      const std::vector<double> load = split == even
          ? gpu_load(placement, std::vector<float>(tokens.begin(), tokens.end()))
          : quota_load(placement,
                split == token ? slot_quotas(tokens, placement) : by_segment(tokens, placement));
      mean += balancedness(load) / s.microbatches;
    }
    row.balancedness += mean / s.intervals;
    row.worst = std::min(row.worst, mean);
  }
};

}  // namespace

PolicyResult policy_study(const EplbShape& shape, double sigma, int layers) {
  std::mt19937_64 random(1);
  PolicyResult r{};
  const auto add = [&](double& mean, double& ms, std::span<const float> load, EplbOptions options) {
    const double start = processor_seconds();
    const ExpertPlacement plan = plan_experts(load, shape, options);
    ms += (processor_seconds() - start) * 1e3 / layers;
    mean += balancedness(gpu_load(plan, load)) / layers;
  };
  for (int layer = 0; layer < layers; ++layer) {
    std::vector<float> load(size_t(shape.experts), 0.f);
    for (float& x : load) x = float(1000 * std::exp(sigma * normal(random)));
    add(r.deepseek, r.ms_deepseek, load, {EplbPolicy::deepseek});
    add(r.balanced, r.ms_balanced, load, {EplbPolicy::balanced});
    add(r.leaving, r.ms_leaving, load, {EplbPolicy::balanced, true});
  }
  return r;
}

static std::vector<DriftRow> drift_study(const DriftSetup& s) {
  std::vector<Follower> followers = {
      {{"deepseek each interval, even shares"}, Follower::deepseek, Follower::even},
      {{"deepseek each interval, by token"}, Follower::deepseek, Follower::token},
      {{"deepseek each interval, by segment"}, Follower::deepseek, Follower::segment},
      {{"balanced each interval, even shares"}, Follower::balanced, Follower::even},
      {{"balanced each interval, by token"}, Follower::balanced, Follower::token},
      {{"balanced each interval, by segment"}, Follower::balanced, Follower::segment},
      {{"balanced once, by token"}, Follower::first, Follower::token},
      {{"balanced once, by segment"}, Follower::first, Follower::segment},
      {{"incremental, by token"}, Follower::incremental, Follower::token},
      {{"incremental, by segment"}, Follower::incremental, Follower::segment}};
  std::mt19937_64 random(1);
  const size_t n = size_t(s.shape.experts);
  std::vector<double> log_load(n), now(n);
  for (double& x : log_load) x = s.sigma * normal(random);
  std::vector<int64_t> window(n * size_t(s.microbatches));
  for (int interval = 0; interval <= s.intervals; ++interval) {
    if (interval > 0) {
      for (Follower& f : followers) f.replan(s, window);
      for (double& x : log_load) x += s.drift * normal(random);
    }
    for (size_t at = 0; at < window.size(); at += n) {
      double sum = 0;
      for (size_t e = 0; e < n; ++e)
        sum += now[e] = std::exp(log_load[e] + s.noise * normal(random));
      for (size_t e = 0; e < n; ++e) window[at + e] = std::llround(now[e] / sum * double(s.tokens));
    }
    if (interval > 0)
      for (Follower& f : followers) f.use(s, window);
  }
  std::vector<DriftRow> rows;
  for (Follower& f : followers) rows.push_back(f.row);
  return rows;
}

void print_policy_study(std::ostream& out) {
  struct Case {
    const char* name;
    EplbShape shape;
  };
  const Case cases[] = {{"64 experts + 16, 8 GPUs", {64, 80, 1, 1, 8}},
      {"16 experts + 8, 4 GPUs", {16, 24, 1, 1, 4}},
      {"256 + 32, 32 GPUs, 4 nodes", {256, 288, 8, 4, 32}},
      {"256 + 64, 64 GPUs, 8 nodes", {256, 320, 8, 8, 64}}};
  out << "Mean load / max load over GPUs, lognormal loads, mean of 100 layers; in brackets ms per "
         "layer. 'leaving': replicas\n"
         "may leave their node.\n\n"
         "                            sigma   deepseek          balanced          balanced, "
         "leaving\n";
  for (const Case& c : cases) {
    for (double sigma : {0.3, 0.5, 0.8}) {
      const PolicyResult r = policy_study(c.shape, sigma, 100);
      out << format("%-26s  %.1f     %.4f (%.3f)    %.4f (%.3f)    ", c.name, sigma, r.deepseek,
                 r.ms_deepseek, r.balanced, r.ms_balanced)
          << (c.shape.nodes > 1 ? format("%.4f (%.3f)", r.leaving, r.ms_leaving) : "one node")
          << '\n';
    }
  }
}

std::vector<DriftRow> print_drift_study(std::ostream& out, const DriftSetup& s) {
  out << format(
             "%d experts + %d on %d GPUs while loads drift: ln load walks by %.1f an interval, is "
             "off by %.1f in a\n"
             "microbatch; %d intervals of %d microbatches; a plan is used in the interval after "
             "the one it came from.\n\n",
             s.shape.experts, s.shape.replicas - s.shape.experts, s.shape.gpus, s.drift, s.noise,
             s.intervals, s.microbatches)
      << "                                       mean / max   worst interval   experts moved   "
         "most\n";
  const std::vector<DriftRow> rows = drift_study(s);
  for (const DriftRow& r : rows) {
    out << format("%-37s  %.4f       %.4f           %5.1f           %4d\n", r.name.c_str(),
        r.balancedness, r.worst, r.moves, r.max_moves);
  }
  return rows;
}

}  // namespace duet
