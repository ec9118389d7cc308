// See costs.h. Layers add up to stages, stages become a cost profile.
#include <algorithm>

#include "pipeline/insight/plan/costs.h"

namespace duet {

Held layer_held(const PlanModel& m, const PlanLayout& l, bool moe) {
  const double experts = moe ? physical_experts(m, l) * m.mlp_parameters(m.expert_ffn) : 0;
  return {double(m.layer_parameters(moe, 0)) / l.tp, experts / (double(l.ep) * l.etp)};
}

double gather_held(
    const PlanJob& job, const PlanLayout& l, const Held& held, double bytes, double copies) {
  copies *= double(l.dp) * l.cp;
  const double folded = double(l.ep) * l.etp;
  const RankGroup shared = rank_group(job.cluster, copies, l.tp);
  const RankGroup experts = rank_group(job.cluster, copies * l.tp / folded, folded);
  return gather_seconds(job.cluster, shared, held.shared * bytes) +
      gather_seconds(job.cluster, experts, held.experts * bytes);
}

std::vector<Held> stage_parameters(const PlanModel& m, const PlanLayout& l) {
  const Held kinds[2] = {layer_held(m, l, false), layer_held(m, l, true)};
  auto stages =
      per_stage<Held>(m, l, [&](Held& stage, int64_t layer) { stage.add(kinds[m.moe(layer)]); });
  const double table = double(m.vocab * m.hidden) / l.tp;
  stages.front().shared += table + double(m.positions * m.hidden);
  if (!m.tied || stages.size() > 1) stages.back().shared += table;
  stages.back().add(kinds[m.experts > 0], double(m.mtp));
  stages.back().shared += double(2 * m.mtp * m.hidden * m.hidden) / l.tp;
  return stages;
}

std::vector<Cost> stage_costs(const PlanJob& all, const PlanLayout& l) {
  const PlanModel& m = all.model;
  const std::vector<Held> held = stage_parameters(m, l);
  PlanJob job = all;
  // a microbatch passes over a rank's weights of 4 bytes and gradients of 8
  double parameters = 0;
  for (const Held& stage : held) parameters += stage.shared + stage.experts;
  job.cluster = all.cluster.fetching(12 * parameters / l.pp, double(job.gpus));
  const bool any_moe = m.moe_layers() > 0, any_dense = m.moe_layers() < m.layers;
  Cost kinds[2][2];  // [moe][windowed]
  for (int windowed = 0; windowed <= (m.window ? 1 : 0); ++windowed) {
    if (any_dense) kinds[0][windowed] = layer_cost(job, l, false, windowed);
    if (any_moe) kinds[1][windowed] = layer_cost(job, l, true, windowed);
  }
  auto stages = per_stage<Cost>(m, l, [&](Cost& stage, int64_t layer) {
    stage.add(kinds[m.moe(layer)][m.window && layer % 2 == 0]);
  });
  stages.back().add(head_cost(job, l), double(1 + m.mtp));
  stages.back().add(kinds[any_moe][0], double(m.mtp));
  if (l.zero < 2) return stages;
  // ZeRO-2 scatters a layer's gradients after its B or W, ZeRO-3 gathers its weights too, before
  // its F and again before its B or I: all of it beside the computation of the layers around.
  const Cluster& c = job.cluster;
  const bool split = splits_backward(l);
  for (size_t s = 0; s < stages.size(); ++s) {
    Cost& stage = stages[s];
    const double gather = gather_held(job, l, held[s], 2), again = l.zero == 3 ? gather : 0;
    const double i = stage.I.sum(), w = stage.W.sum();
    stage.F[kShards] += exposed_seconds(c, again, stage.F.sum());
    stage.I[kShards] += exposed_seconds(c, split ? again : again + gather, split ? i : i + w);
    if (split) stage.W[kShards] += exposed_seconds(c, gather, w);
  }
  return stages;
}

CostProfile cost_profile(const PlanJob& job, const PlanLayout& l, const std::vector<Cost>& stages) {
  const Cluster& c = job.cluster;
  const bool pairs = has_pairs(l);
  CostProfile profile;
  for (const Cost& cost : stages) {
    StageCosts s{cost.F.sum(), cost.I.sum(), cost.W.sum()};
    const double comm = cost.F[kExpertComm] + cost.I[kExpertComm], work = s.F + s.I + s.W - comm;
    s.FB = s.F + s.I + s.W;
    if (l.overlap_ep == 1) {
      // In a pair each one's all-to-alls run under the other's computation, on the SMs lent to
      // them.
      const double together = comm > 0
          ? std::max(work * c.lending(), comm) + (1 - c.hidden) * std::min(comm, work)
          : work;
      const double whole = s.FB;
      // neighbouring microbatches overlap under any schedule
      if (!pairs && whole > 0) s = s.scaled(std::min(1.0, together / whole));
      s.FB = std::min(whole, together);
    }
    profile.stages.push_back(s);
  }
  // each tensor rank its part
  const double bytes = tokens_of(job, l) * job.model.hidden * 2 / l.tp;
  const double message = l.pp > 1 ? message_seconds(c, double(l.tp) * l.cp * l.dp, bytes) : 0;
  profile.forward_message = profile.backward_message = message;
  return profile;
}

}  // namespace duet
