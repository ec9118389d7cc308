// See predict.h.
#include "pipeline/insight/plan/predict.h"

#include <algorithm>

#include "pipeline/schedule/simulator.h"

namespace duet {
namespace {

// What a parameter moves through memory in the optimizer: gradient, master copy and two moments
// read, three of them and the working copy written, the gradient read for its norm and cleared.
constexpr double kOptimizerBytes = 40;

// Schedules that let a rank start its next step while others finish this one.
bool ranks_part_ways(const std::string& schedule) {
  return schedule == "zb2p" || schedule == "zb-h2";
}

struct Run {
  double length = 0, busy = 0;
  size_t busiest = 0;
  std::vector<double> rank_busy;
};

Run run(const Schedule& s, const CostProfile& profile) {
  const Timing timing = simulate(s, profile);
  Run run;
  for (size_t r = 0; r < timing.spans.size(); ++r) {
    const double busy = timing.makespan * (1 - timing.bubble_fraction[r]);
    run.rank_busy.push_back(busy);
    if (busy > run.busy) run.busy = busy, run.busiest = r;
    if (ranks_part_ways(s.name))
      run.length = std::max(run.length, timing.spans[r].back().end - timing.spans[r].front().start);
  }
  if (!ranks_part_ways(s.name)) run.length = timing.makespan;
  return run;
}

// The parts of what a rank computes, and all ranks' time by kind of action.
void add_parts(const Schedule& s, const CostProfile& profile, const std::vector<Cost>& stages,
    size_t busiest, Prediction& p) {
  for (size_t rank = 0; rank < s.ranks.size(); ++rank)
    for (const Action& action : s.ranks[rank]) {
      const double cost = profile.of(s, action) / s.pp;
      if (action.overlapped())
        p.by_action.pairs += cost;
      else if (action.kind == Kind::F)
        p.by_action.F += cost;
      else if (action.kind == Kind::W)
        p.by_action.W += cost;
      else
        p.by_action.B += cost;
      if (rank != busiest) continue;
      for_parts(action, [&](const Action& a) {
        const Cost& stage = stages[size_t(s.model_stage(a.stage))];
        if (a.kind == Kind::F) p.parts.add(stage.F);
        if (a.kind == Kind::I || a.kind == Kind::B) p.parts.add(stage.I);
        if (a.kind == Kind::W || a.kind == Kind::B) p.parts.add(stage.W);
      });
    }
}

struct Update {
  double exposed = 0, optimizer = 0;
};

// Gradients to the replicas, weights back, and the optimizer, on the rank that has most to do.
Update update_costs(
    const PlanJob& job, const PlanLayout& l, const Schedule& s, const std::vector<Cost>& stages) {
  const Cluster& c = job.cluster;
  const std::vector<Held> held = stage_parameters(job.model, l);
  const double replicas = double(l.dp) * l.cp, folded = replicas * l.tp / (l.ep * l.etp);
  const double weights = l.precision == Precision::fp32 ? 4 : 2;
  Update worst;
  std::vector<Held> of_rank(static_cast<size_t>(s.pp));
  std::vector<double> last_b(of_rank.size(), 0), first_f(of_rank.size(), 0);
  for (int stage = 0; stage < s.stages(); ++stage) {
    const size_t rank = size_t(s.rank_of[size_t(stage)]), model = size_t(s.model_stage(stage));
    of_rank[rank].shared += held[model].shared, of_rank[rank].experts += held[model].experts;
    last_b[rank] += stages[model].I.sum() + stages[model].W.sum();
    first_f[rank] += stages[model].F.sum();
  }
  const double copies =
      s.weight_copies();  // mirrored ranks sum their gradients too, after the last W of both
  for (size_t rank = 0; rank < of_rank.size(); ++rank) {
    const auto both = [&](double bytes) {
      return gather_seconds(
                 c, rank_group(c, replicas * copies, l.tp), of_rank[rank].shared * bytes) +
          gather_seconds(c, rank_group(c, folded * copies, double(l.ep) * l.etp),
              of_rank[rank].experts * bytes);
    };
    Update u;
    if (l.zero != 3) {
      const double gradients = (l.zero == 0 ? 2 : 1) * both(l.gradient_bytes);
      const double gathers = l.zero == 0 ? 0 : both(weights);
      const bool hides = l.overlap_dp == 1 && copies == 1;
      u.exposed = hides
          ? exposed_seconds(c, gradients, last_b[rank]) + exposed_seconds(c, gathers, first_f[rank])
          : gradients + gathers;
    }
    const double updated = l.zero == 0
        ? of_rank[rank].shared + of_rank[rank].experts
        : of_rank[rank].shared / replicas + of_rank[rank].experts / std::max(1.0, folded);
    u.optimizer = updated * kOptimizerBytes / c.hbm();
    if (u.exposed + u.optimizer > worst.exposed + worst.optimizer) worst = u;
  }
  return worst;
}

}  // namespace

Prediction predict(const PlanJob& job, const PlanLayout& l, double most_actions) {
  Prediction p;
  p.layout = l, p.microbatches = microbatches(job, l);
  const std::vector<Cost> stages = stage_costs(job, l);
  const CostProfile profile = cost_profile(job, l, stages);
  // Two lengths in the steady state, a whole number of rounds apart and from the true one.
  const int round = 2 * l.pp, all = p.microbatches;
  int few = all, more = all;
  if (double(stages.size()) * all * 2 > most_actions && all > 6 * round && !from_file(l))
    few = all % round + 3 * round, more = few + round, p.extrapolated = true;
  const Schedule s = layout_schedule(l, few, profile.stages[profile.stages.size() / 2]);
  const Run first = run(s, profile);
  add_parts(s, profile, stages, first.busiest, p);
  p.pipeline = first.length;
  double busy = first.busy;
  double busy_mean = std::accumulate(first.rank_busy.begin(), first.rank_busy.end(), 0.0) / l.pp;
  if (p.extrapolated) {
    const Run second =
        run(layout_schedule(l, more, profile.stages[profile.stages.size() / 2]), profile);
    const double rounds = double(all - few) / (more - few), scale = double(all) / few;
    p.pipeline += rounds * (second.length - first.length);
    busy *= scale, busy_mean *= scale;
    Parts scaled;
    p.parts = scaled.add(p.parts, scale);
    for (double* part : {&p.by_action.F, &p.by_action.B, &p.by_action.W, &p.by_action.pairs})
      *part *= scale;
  }
  p.bubble = p.pipeline - busy;
  p.mean_bubble = p.pipeline - busy_mean;
  p.hidden_in_pairs = p.parts.sum() - busy;
  const Update update = update_costs(job, l, s, stages);
  p.exposed_data = update.exposed, p.optimizer = update.optimizer;
  p.other = (p.pipeline + p.exposed_data + p.optimizer) * job.cluster.other;
  p.step = p.pipeline + p.exposed_data + p.optimizer + p.other;
  p.memory = memory_of(job, l, shape_of(s, stage_activation_bytes(job, l)));
  p.fits = p.memory.total() <= job.cluster.memory_bytes;
  return p;
}

double least_step(const PlanJob& job, const PlanLayout& l) {
  const std::vector<Cost> stages = stage_costs(job, l);
  const CostProfile profile = cost_profile(job, l, stages);
  double work = 0, largest = 0;
  for (const StageCosts& s : profile.stages) {
    const double together = std::min(s.FB, s.F + s.I + s.W);
    work += together, largest = std::max(largest, together);
  }
  return std::max(work / l.pp, largest) * microbatches(job, l);
}

double step_flops(const PlanJob& job, Flops formula, bool causal) {
  const PlanModel& m = job.model;
  const double tokens = double(job.batch) * double(job.seq_len);
  const double layers = m.forward_flops(job.seq_len, causal, false);
  const double all = m.forward_flops(job.seq_len, causal);
  const double n = double(m.active_parameters() + (m.tied ? 0 : m.vocab * m.hidden));
  switch (formula) {
    case Flops::megatron: return tokens * 3 * all;
    case Flops::six_n: return tokens * 6 * n;
    case Flops::six_n_attention: {
      const double attention = layers - 2.0 * double(m.active_parameters() - m.vocab * m.hidden);
      return tokens * (6 * n + 3 * attention);
    }
    case Flops::with_recompute: return tokens * (3 * all + layers);
  }
  return 0;
}

}  // namespace duet
