// See predict.h.
#include "pipeline/insight/plan/predict.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace duet {
namespace {

constexpr double kLess = 1 - 1e-9;     // a bound, whatever rounding makes of it
constexpr double kManyForwards = 1e6;  // with which a schedule may be extrapolated unsettled

// Schedules that let a rank start its next step while others finish this one.
bool ranks_part_ways(const std::string& schedule) {
  return schedule == "zb2p" || schedule == "zb-h2";
}

double length(const PlanLayout& l, const Timing& timing) {
  return ranks_part_ways(l.schedule) ? longest_span(timing) : timing.makespan;
}

// How differently the last 1 / share of the ranks' lists shift from a run to a longer one, of the
// most: 0 where each round takes what the one before it took, and will for good. An extrapolation
// is off by no more than that.
double unsettled(const Timing& shorter, const Timing& longer, size_t share) {
  double least = INFINITY, most = 0;
  for (size_t rank = 0; rank < shorter.spans.size(); ++rank) {
    const auto &a = shorter.spans[rank], &b = longer.spans[rank];
    for (size_t i = a.size() - a.size() / share; i < a.size(); ++i) {
      const double shift = b[b.size() - a.size() + i].end - a[i].end;
      least = std::min(least, shift), most = std::max(most, shift);
    }
  }
  return 1 - least / most;
}

// The length with `all` microbatches, from two shorter ones that are whole rounds apart.
double extrapolated(const PlanLayout& l, int all, const std::function<Timing(int)>& run) {
  // Groups of interleaved that are larger by one, evenly spread: a round more before each.
  const int larger = l.schedule == "interleaved" ? std::max(1, all % l.pp) : 1;
  for (int rounds = 2;; rounds *= 6) {
    const int64_t step = int64_t(rounds) * l.pp * larger, few = all % step + 4 * step;
    if (few + step >= all) return length(l, run(all));
    const Timing shorter = run(int(few)), longer = run(int(few + step));
    // gpipe's ranks wait for no gradient, so each has a pace of its own
    const bool settled = l.schedule == "gpipe" || unsettled(shorter, longer, 2 * larger) < 1e-10;
    if (!settled && double(few) * model_stages(l) < kManyForwards) continue;
    const double start = length(l, shorter);
    return start + double(all - few) / double(step) * (length(l, longer) - start);
  }
}

// The parts of what the busiest rank computes, and time by kind of action. Returns how long that
// rank is busy.
double add_parts(
    const Schedule& s, const CostProfile& profile, const std::vector<Cost>& stages, Prediction& p) {
  double most = 0;
  for (size_t rank = 0; rank < s.ranks.size(); ++rank) {
    Parts parts;
    ByAction by;
    for (const Action& action : s.ranks[rank]) {
      const auto kind = action.overlapped() ? &ByAction::pairs
          : action.kind == Kind::F          ? &ByAction::F
          : action.kind == Kind::W          ? &ByAction::W
                                            : &ByAction::B;
      by.*kind += profile.of(s, action);
      for_parts(action, [&](const Action& a) {
        const Cost& stage = stages[size_t(s.model_stage(a.stage))];
        if (a.kind == Kind::F) parts.add(stage.F);
        if (a.kind == Kind::I || a.kind == Kind::B) parts.add(stage.I);
        if (a.kind == Kind::W || a.kind == Kind::B) parts.add(stage.W);
      });
    }
    p.of_mean.add(by, 1.0 / s.pp);
    if (rank == 0) p.of_first = by;
    if (by.busy() > most) most = by.busy(), p.parts = parts;
  }
  return most;
}

double optimizer_seconds(const PlanJob& job, const PlanLayout& l, const Held& own) {
  const double copies = double(l.dp) * l.cp, holders = expert_holders(job.model, l);
  const double updated = l.zero == 0 ? own.shared + own.experts
                                     : own.shared / copies + own.experts / std::max(1.0, holders);
  const double passes =
      kHeldGradients * l.gradient_bytes + (l.precision > Precision::bf16 ? kCastBytes : 0);
  return ((own.shared + own.experts) * passes +
             updated * (job.cluster.core ? kOwnUpdatedBytes : kUpdatedBytes)) /
      job.cluster.hbm();
}

struct Update {
  double exposed = 0, optimizer = 0;
  double sum() const { return exposed + optimizer; }
};

// Gradients to the copies, weights back, and the optimizer, on the rank that has most to do.
Update update_of(const PlanJob& job, const PlanLayout& l,
    const std::vector<std::vector<int>>& of_rank, const std::vector<Cost>& stages) {
  const Cluster& c = job.cluster;
  const std::vector<Held> held = stage_parameters(job.model, l);
  const double weights = l.precision == Precision::fp32 ? 4 : 2;
  // mirrored ranks sum their gradients too, after the last W of both
  const double copies = weight_copies(l);
  Update most;
  for (const std::vector<int>& model_stages : of_rank) {
    Held own;
    double last_b = 0, first_f = 0;
    for (const int stage : model_stages) {
      own.add(held[size_t(stage)]);
      last_b += stages[size_t(stage)].I.sum() + stages[size_t(stage)].W.sum();
      first_f += stages[size_t(stage)].F.sum();
    }
    // ZeRO-2's gradients have left after each microbatch (stages.cpp)
    const double gradients = l.zero == 2
        ? 0
        : (l.zero == 0 ? 2 : 1) * gather_held(job, l, own, l.gradient_bytes, copies);
    const double gathers = l.zero == 0 ? 0 : gather_held(job, l, own, weights, copies);
    const bool hides = l.overlap_dp == 1 && copies == 1;
    const double exposed = l.zero == 3 ? 0
        : hides ? exposed_seconds(c, gradients, last_b) + exposed_seconds(c, gathers, first_f)
                : gradients + gathers;
    const Update update{exposed, optimizer_seconds(job, l, own)};
    if (update.sum() > most.sum()) most = update;
  }
  return most;
}

}  // namespace

Prediction predict(const PlanJob& job, const PlanLayout& l, double most_actions) {
  Prediction p;
  p.layout = l, p.microbatches = microbatches(job, l);
  const std::vector<Cost> stages = stage_costs(job, l);
  const CostProfile profile = cost_profile(job, l, stages);
  const int all = p.microbatches;
  const bool long_one = double(stages.size()) * all * 2 > most_actions;
  const int few = long_one ? few_microbatches(l, all) : all;
  p.extrapolated = few < all;
  const StageCosts& typical = profile.stages[profile.stages.size() / 2];
  const double waiting = waiting_share(job, l);
  const auto schedule = [&](int M) { return layout_schedule(l, M, typical, waiting); };
  const Schedule s = schedule(few);
  const ScheduleShape shape = shape_of(s, all, stage_activation_bytes(job, l), waiting);
  double busy = add_parts(s, profile, stages, p);
  if (p.extrapolated) {
    p.pipeline = extrapolated(l, all, [&](int M) { return simulate(schedule(M), profile); });
    Prediction more;
    const double busy_more = add_parts(schedule(few + 2 * l.pp), profile, stages, more);
    const double rounds = (all - few) / (2.0 * l.pp);
    busy += rounds * (busy_more - busy);
    p.parts = Parts().add(p.parts, 1 - rounds).add(more.parts, rounds);
    for (const auto by : {&Prediction::of_first, &Prediction::of_mean})
      p.*by = ByAction().add(p.*by, 1 - rounds).add(more.*by, rounds);
  } else {
    p.pipeline = length(l, simulate(s, profile));
  }
  p.bubble = p.pipeline - busy;
  p.hidden_in_pairs = p.parts.sum() - busy;
  const Update update = update_of(job, l, shape.stages, stages);
  p.exposed_data = update.exposed, p.optimizer = update.optimizer;
  p.other = (p.pipeline + p.exposed_data + p.optimizer) * job.cluster.other;
  p.step = p.pipeline + p.exposed_data + p.optimizer + p.other;
  p.memory = memory_of(job, l, shape);
  p.fits = p.memory.total() <= job.cluster.memory_bytes;
  return p;
}

int few_microbatches(const PlanLayout& l, int M) {
  const int P = l.pp, round = 2 * P;
  const int larger = l.schedule == "interleaved" ? M % P : 0;  // groups (interleaved.cpp)
  if (M <= 6 * round || l.list || M / P < 3 * larger) return M;
  // Of a larger group, and of one at the end, only those around it see anything.
  return larger ? 3 * round + std::min(larger, 2) : M % round + 3 * round;
}

double least_step(const PlanJob& job, const PlanLayout& l, const ScheduleShape& shape) {
  const std::vector<Cost> stages = stage_costs(job, l);
  const CostProfile profile = cost_profile(job, l, stages);
  const bool whole = !l.list && !splits_backward(l);
  // of the stages before each: F, and B where it is in one piece, after which its rank is done
  std::vector<double> before = {0};
  for (const StageCosts& s : profile.stages)
    before.push_back(before.back() + s.F + (whole ? s.I + s.W : 0));
  double longest = 0;
  for (const std::vector<int>& own : shape.stages) {
    double work = 0;
    for (const int stage : own) {
      const StageCosts& s = profile.stages[size_t(stage)];
      work += std::min(s.FB, s.F + s.I + s.W) * microbatches(job, l) / weight_copies(l);
    }
    const int first = *std::min_element(own.begin(), own.end());
    longest = std::max(longest, work + (ranks_part_ways(l.schedule) ? 0 : before[size_t(first)]));
  }
  return (longest + update_of(job, l, shape.stages, stages).sum()) * (1 + job.cluster.other) *
      kLess;
}

// All on one rank of which there are as many.
static PlanLayout as_one_stage(PlanLayout l) {
  l.pp = l.virtual_stages = 1, l.schedule = "1f1b", l.list = nullptr, l.split.clear();
  return l;
}

double least_work(const PlanJob& job, const PlanLayout& l) {
  const PlanModel& m = job.model;
  const Cluster& c = job.cluster;
  const int64_t sparse = m.moe_layers(), dense = m.layers - sparse;
  const bool windowed = m.window > 0;  // some are not, and take longer
  Cost with, without;                  // layers that have all-to-alls, and all else
  if (sparse) with.add(layer_cost(job, l, true, windowed), sparse + m.mtp);
  if (dense) without.add(layer_cost(job, l, false, windowed), sparse ? dense : dense + m.mtp);
  without.add(head_cost(job, l), double(1 + m.mtp));
  const auto sum = [](const Cost& cost) { return cost.F.sum() + cost.I.sum() + cost.W.sum(); };
  const double comm = with.F[kExpertComm] + with.I[kExpertComm], work = sum(with) - comm,
               rest = sum(without), all = work + rest;
  double least = all + comm;
  // A stage's pairs (stages.cpp) take least where layers without all-to-alls are apart from the
  // others or, should these have more of them than other work, where they hide under all else.
  if (l.overlap_ep != 0 && comm <= work)
    least = rest + std::min(work + comm, work * c.lending() + (1 - c.hidden) * comm);
  else if (l.overlap_ep != 0)
    least = std::max(all + (1 - c.hidden) * comm, comm + (1 - c.hidden) * all);
  return least * (double(job.batch) * l.tp * l.cp / double(job.gpus * l.micro_batch)) *
      (1 + c.other) * kLess;
}

double least_update(const PlanJob& job, const PlanLayout& l) {
  return optimizer_seconds(job, l, stage_parameters(job.model, as_one_stage(l))[0]) / l.pp;
}

double least_memory(const PlanJob& job, const PlanLayout& l) {
  const Memory m = memory_of(job, as_one_stage(l), {{{0}}, {{{0, 1}}}});
  const double states = l.zero < 0 ? 0 : m.parameters + m.gradients + m.optimizer,
               divided = states + m.activations + m.logits;
  return ((divided / l.pp + m.buffers) * (1 + job.cluster.fragmentation) +
             job.cluster.reserved_bytes) *
      kLess;
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
