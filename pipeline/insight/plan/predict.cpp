// See predict.h.
#include "pipeline/insight/plan/predict.h"

#include <algorithm>

#include "pipeline/insight/plan/layout.h"

namespace duet {
namespace {

// Schedules that let a rank start its next step while others finish this one.
bool ranks_part_ways(const std::string& schedule) {
  return schedule == "zb2p" || schedule == "zb-h2";
}

struct Run {
  double length = 0, busy = 0;  // busy: the busiest rank
  size_t busiest = 0;
};

Run run(const Schedule& s, const CostProfile& profile) {
  const Timing timing = simulate(s, profile);
  Run run;
  for (size_t r = 0; r < timing.spans.size(); ++r) {
    const double busy = timing.makespan * (1 - timing.bubble_fraction[r]);
    if (busy > run.busy) run.busy = busy, run.busiest = r;
  }
  run.length = ranks_part_ways(s.name) ? longest_span(timing) : timing.makespan;
  return run;
}

// The parts of what the busiest rank computes, and time by kind of action.
void add_parts(const Schedule& s, const CostProfile& profile, const std::vector<Cost>& stages,
    size_t busiest, Prediction& p) {
  for (size_t rank = 0; rank < s.ranks.size(); ++rank)
    for (const Action& action : s.ranks[rank]) {
      const double cost = profile.of(s, action);
      const auto kind = action.overlapped() ? &ByAction::pairs
          : action.kind == Kind::F          ? &ByAction::F
          : action.kind == Kind::W          ? &ByAction::W
                                            : &ByAction::B;
      p.of_mean.*kind += cost / s.pp;
      if (rank == 0) p.of_first.*kind += cost;
      if (rank != busiest) continue;
      for_parts(action, [&](const Action& a) {
        const Cost& stage = stages[size_t(s.model_stage(a.stage))];
        if (a.kind == Kind::F) p.parts.add(stage.F);
        if (a.kind == Kind::I || a.kind == Kind::B) p.parts.add(stage.I);
        if (a.kind == Kind::W || a.kind == Kind::B) p.parts.add(stage.W);
      });
    }
}

// Gradients to the replicas, weights back, and the optimizer, on the rank that has most to do.
void add_update(const PlanJob& job, const PlanLayout& l, const Schedule& s,
    const std::vector<Cost>& stages, Prediction& p) {
  const Cluster& c = job.cluster;
  const std::vector<Held> held = stage_parameters(job.model, l);
  const double replicas = double(l.dp) * l.cp, holders = expert_holders(job.model, l);
  const double weights = l.precision == Precision::fp32 ? 4 : 2;
  // mirrored ranks sum their gradients too, after the last W of both
  const double copies = s.weight_copies();
  for (int rank = 0; rank < s.pp; ++rank) {
    Held own;
    double last_b = 0, first_f = 0;
    for (int stage = 0; stage < s.stages(); ++stage) {
      if (s.rank_of[size_t(stage)] != rank) continue;
      const size_t model = size_t(s.model_stage(stage));
      own.add(held[model]);
      last_b += stages[model].I.sum() + stages[model].W.sum();
      first_f += stages[model].F.sum();
    }
    const double gradients =
        (l.zero == 0 ? 2 : 1) * gather_held(job, l, own, l.gradient_bytes, copies);
    const double gathers = l.zero == 0 ? 0 : gather_held(job, l, own, weights, copies);
    const bool hides = l.overlap_dp == 1 && copies == 1;
    const double exposed = l.zero == 3 ? 0
        : hides ? exposed_seconds(c, gradients, last_b) + exposed_seconds(c, gathers, first_f)
                : gradients + gathers;
    const double updated = l.zero == 0
        ? own.shared + own.experts
        : own.shared / replicas + own.experts / std::max(1.0, holders);
    const double passes =
        kHeldGradients * l.gradient_bytes + (l.precision > Precision::bf16 ? kCastBytes : 0);
    const double optimizer = ((own.shared + own.experts) * passes +
                                 updated * (c.core ? kOwnUpdatedBytes : kUpdatedBytes)) /
        c.hbm();
    if (exposed + optimizer > p.exposed_data + p.optimizer)
      p.exposed_data = exposed, p.optimizer = optimizer;
  }
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
  const StageCosts& typical = profile.stages[profile.stages.size() / 2];
  const double waiting = waiting_share(job, l);
  const Schedule s = layout_schedule(l, few, typical, waiting);
  const Run first = run(s, profile);
  add_parts(s, profile, stages, first.busiest, p);
  p.pipeline = first.length;
  double busy = first.busy;
  if (p.extrapolated) {
    const Run second = run(layout_schedule(l, more, typical, waiting), profile);
    const double rounds = double(all - few) / (more - few), scale = double(all) / few;
    p.pipeline += rounds * (second.length - first.length);
    busy *= scale;
    p.parts = Parts().add(p.parts, scale);
    for (ByAction* by : {&p.of_first, &p.of_mean})
      for (const auto kind : {&ByAction::F, &ByAction::B, &ByAction::W, &ByAction::pairs})
        by->*kind *= scale;
  }
  p.bubble = p.pipeline - busy;
  p.hidden_in_pairs = p.parts.sum() - busy;
  add_update(job, l, s, stages, p);
  p.other = (p.pipeline + p.exposed_data + p.optimizer) * job.cluster.other;
  p.step = p.pipeline + p.exposed_data + p.optimizer + p.other;
  p.memory = memory_of(job, l, shape_of(s, stage_activation_bytes(job, l), waiting));
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
