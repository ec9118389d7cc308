// See search.h.
#include "pipeline/insight/plan/search.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <queue>

#include "model/base/text.h"

namespace duet {
namespace {

std::vector<int> divisors(int64_t n, int64_t most) {
  std::vector<int> all;
  for (int64_t d = 1; d * d <= n; ++d)
    for (const int64_t divisor : {d, n / d})
      if (n % d == 0 && divisor <= most) all.push_back(int(divisor));
  std::ranges::sort(all);
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

std::vector<int> powers_in(int64_t n) {
  std::vector<int> all;
  for (int64_t d = 1; n % d == 0; d *= 2) all.push_back(int(d));
  return all;
}

// The fixed value, or all that a free one may have.
template <class T> std::vector<T> choice(T fixed, T free, std::vector<T> otherwise) {
  return fixed == free ? otherwise : std::vector<T>{fixed};
}

class Search {
 public:
  Search(const PlanJob& job, const PlanLayout& fixed, const PlanLayout* wanted)
      : job_(job), quickest_(job), fixed_(fixed), wanted_(wanted) {
    quickest_.cluster = job.cluster.fetching(0, 1);  // whatever a core works on is in its cache
  }

  SearchResult run(size_t keep) {
    only_legal_ = keep == 0;
    for_shards([&](const PlanLayout& l) {
      if (!only_legal_) return add(l, kShards, least_work(quickest_, largest(l)));
      for_microbatches(l, [&](const PlanLayout& m) {
        for_pipelines(m, [&](const PlanLayout& n) {
          for_schedules(n, [&](const PlanLayout& all) { is_legal(filled(job_, all)); });
        });
      });
    });
    if (only_legal_ && !result_.tried)
      broken(cat("--gpus: found ", job_.gpus, ", allowed: enough for the ranks of a pipeline"));
    auto& best = result_.best;
    while (!open_.empty()) {
      const Node n = open_.top();
      open_.pop();
      if (best.size() == keep && n > Node{changes(best.back().layout), best.back().step}) break;
      const PlanLayout l = std::move(layouts_[n.layout]);
      if (n.level == kShards)
        consider_shards(l);
      else if (n.level == kMicrobatch)
        for_pipelines(l, [&](const PlanLayout& m) { consider_pipeline(m, n.bound); });
      else if (n.level == kPipeline)
        for_schedules(l, [&](const PlanLayout& m) { consider(filled(job_, m)); });
      else
        take(predict(job_, l), keep);
    }
    if (best.empty() && smallest_.memory < INFINITY)
      result_.smallest = predict(job_, smallest_.layout);
    return std::move(result_);
  }

 private:
  // Of a node, what is chosen: how a layer is divided; also its microbatch and what it recomputes;
  // also pp, dp and ZeRO; all.
  enum Level { kShards, kMicrobatch, kPipeline, kAllChosen };
  struct Node {
    int changes = 0;
    double bound = 0;
    Level level = kShards;
    size_t layout = 0;
    bool operator>(const Node& other) const {
      return std::pair(changes, bound) > std::pair(other.changes, other.bound);
    }
  };

  int changes(const PlanLayout& l) const { return wanted_ ? changed_options(*wanted_, l) : 0; }
  void add(const PlanLayout& l, Level level, double bound) {
    open_.push({changes(l), bound, level, layouts_.size()});
    layouts_.push_back(l);
  }
  bool broken(const std::string& rule) {
    if (rule.empty()) return false;
    if (result_.first_rule.empty()) result_.first_rule = rule;
    result_.rules.try_emplace(rule.substr(0, rule.find(':')), rule);
    return true;
  }
  bool found_legal() const { return only_legal_ && result_.legal; }

  template <class Then> void for_shards(Then then) {
    const PlanModel& m = job_.model;
    int64_t ranks = 1;
    for (auto degree : {&PlanLayout::dp, &PlanLayout::tp, &PlanLayout::pp, &PlanLayout::cp})
      ranks *= std::max(1, fixed_.*degree);
    if (job_.gpus % ranks)
      broken(
          cat("--gpus: found ", job_.gpus, ", allowed: a multiple of dp x tp x pp x cp = ", ranks));
    for (int tp : choice(fixed_.tp, 0, divisors(m.heads, job_.gpus)))
      for (int cp : choice(fixed_.cp, 0, powers_in(job_.seq_len))) {
        PlanLayout l = fixed_;
        l.tp = tp, l.cp = cp;
        for (auto flag : {&PlanLayout::overlap_dp, &PlanLayout::overlap_tp})
          if (l.*flag < 0) l.*flag = usual_flag(l, flag);
        if (job_.gpus % (int64_t(tp) * cp * std::max(1, l.dp) * std::max(1, l.pp))) continue;
        for (int ep : choice(fixed_.ep, 0, divisors(std::max<int64_t>(1, m.experts), job_.gpus)))
          for (int etp : choice(fixed_.etp, 0, divisors(m.experts ? m.expert_ffn : 1, job_.gpus))) {
            l.ep = ep, l.etp = etp;
            for_flags(l, then);
          }
      }
  }

  template <class Then> void for_flags(PlanLayout l, Then then) {
    if (broken(broken_size(job_, l))) return;
    if (job_.gpus % (int64_t(l.ep) * l.etp)) {
      if (fixed_.ep || fixed_.etp)
        broken(cat("--ep: found ep x etp = ", l.ep * l.etp, ", allowed: a divisor of the ",
            job_.gpus, " GPUs"));
      return;
    }
    if (!job_.loads.empty()) l.imbalance = imbalance(l.ep);
    // where all-to-alls hide in pairs, schedules with pairs are apart from those without
    const std::vector<int> in_pairs = l.ep > 1 ? std::vector<int>{1, 0} : std::vector<int>{-1};
    std::vector<int> divided = l.tp > 1 ? std::vector<int>{1, 0} : std::vector<int>{0};
    if (only_legal_) divided.resize(1);
    for (int sp : choice(fixed_.sequence_parallel, -1, divided))
      for (int hidden : choice(fixed_.overlap_ep, -1, in_pairs)) {
        l.sequence_parallel = sp, l.overlap_ep = hidden;
        then(l);
      }
  }

  // The sequences of one dp rank; with all in one microbatch a sequence takes least.
  int64_t share(const PlanLayout& l, int pp) const {
    return std::max<int64_t>(1, job_.batch * l.tp * l.cp * pp / job_.gpus);
  }
  PlanLayout largest(PlanLayout l) const {
    int64_t most = 1;
    for (int pp : pipelines(l)) most = std::max(most, share(l, pp));
    l.micro_batch = fixed_.micro_batch ? fixed_.micro_batch : int(most);
    l.recompute = choice(fixed_.recompute, Recompute::unset, {Recompute::none})[0];
    return l;
  }

  template <class Then> void for_microbatches(PlanLayout l, Then then) {
    const std::vector<int> pps = pipelines(l);
    if (pps.empty()) return;
    std::vector<Recompute> recomputes = {Recompute::none, Recompute::selective, Recompute::full};
    if (only_legal_) recomputes.resize(1);
    for (int mbs : choice(fixed_.micro_batch, 0, divisors(job_.batch, largest(l).micro_batch))) {
      const bool divides =
          std::ranges::any_of(pps, [&](int pp) { return share(l, pp) % mbs == 0; });
      if (!divides && !fixed_.micro_batch) continue;
      for (Recompute recompute : choice(fixed_.recompute, Recompute::unset, recomputes)) {
        if (found_legal()) return;
        l.micro_batch = mbs, l.recompute = recompute;
        then(l);
      }
    }
  }

  std::vector<int> pipelines(const PlanLayout& l) const {
    const int64_t rest = job_.gpus / (int64_t(l.tp) * l.cp);
    if (fixed_.pp) return {fixed_.pp};
    if (fixed_.list) return {fixed_.list->pp};
    if (fixed_.dp) return {int(rest / fixed_.dp)};
    std::vector<int> all = divisors(rest, job_.model.layers + 2);
    const bool one_will_do = fixed_.schedule.empty() || fixed_.schedule == "1f1b";
    if (!one_will_do && job_.gpus > 1) all.erase(all.begin());
    return all;
  }

  int dp_of(const PlanLayout& l, int pp) const {
    const int64_t rest = job_.gpus / (int64_t(l.tp) * l.cp * pp);
    return fixed_.dp ? fixed_.dp : int(std::max<int64_t>(1, rest));
  }

  template <class Then> void for_pipelines(PlanLayout l, Then then) {
    for (int pp : pipelines(l)) {
      l.pp = pp;
      l.dp = dp_of(l, pp);
      PlanLayout plain = l;  // of which nothing else is illegal
      plain.schedule = "1f1b", plain.list = nullptr, plain.split.clear();
      plain.virtual_stages = 1, plain.zero = 0;
      if (broken(broken_rule(job_, plain))) continue;
      std::vector<int> zeros = {1, 0, 2, 3};
      if (l.dp * l.cp == 1 || only_legal_) zeros.resize(1);  // one rank alone divides nothing
      if (wanted_ && wanted_->zero >= 0) zeros.push_back(wanted_->zero);
      for (int zero : choice(fixed_.zero, -1, zeros)) {
        l.zero = zero;
        then(l);
      }
    }
  }

  template <class Then> void for_schedules(PlanLayout l, Then then) {
    std::vector<std::string> all = l.pp == 1 ? std::vector<std::string>{"1f1b"} : schedules_;
    if (fixed_.virtual_stages > 1) all = {"interleaved"};
    for (const std::string& name : choice(fixed_.schedule, {}, all)) {
      const bool chunks = name == "interleaved";
      const int most = chunks ? std::max(2, int(job_.model.layers + 2) / l.pp) : 1;
      l.schedule = name;
      if (fixed_.overlap_ep < 0 && l.overlap_ep >= 0 && l.overlap_ep != has_pairs(l)) continue;
      if (fixed_.schedule.empty() && has_pairs(l) && microbatches(job_, l) < 2 * l.pp) continue;
      for (int v = chunks ? 2 : 1; v <= most && !found_legal(); ++v) {
        l.virtual_stages = fixed_.virtual_stages ? fixed_.virtual_stages : v;
        then(l);
        if (fixed_.virtual_stages) break;
      }
    }
  }

  bool is_legal(const PlanLayout& l) {
    ++result_.tried;
    const bool legal = !broken(broken_rule(job_, l));
    result_.legal += legal;
    return legal;
  }

  // Microbatches that may fit. The smallest layout of all has as few sequences as there may be.
  void consider_shards(const PlanLayout& l) {
    double states = INFINITY;  // the least bytes, without any tokens
    PlanLayout one = l;
    one.micro_batch = 0;
    for (int pp : pipelines(l))
      for (int zero : choice(fixed_.zero, -1, {0, 1, 2, 3})) {
        one.pp = pp, one.zero = zero, one.dp = dp_of(l, pp);
        states = std::min(states, least_memory(job_, one));
      }
    const double most = job_.cluster.memory_bytes;
    if (states > most && !may_be_smallest(states)) return;
    for_microbatches(l, [&](const PlanLayout& m) {
      one.pp = std::ranges::max(pipelines(m)), one.zero = -1, one.micro_batch = m.micro_batch;
      const bool fewest = m.micro_batch == 1 || fixed_.micro_batch || fixed_.list;
      if (fewest || (states <= most && least_memory(job_, one) <= most))
        add(m, kMicrobatch, least_work(quickest_, m));
    });
  }

  // Where all is too large, what is largest is of no interest either.
  void consider_pipeline(const PlanLayout& l, double bound) {
    const double memory = least_memory(job_, l);
    if (memory <= job_.cluster.memory_bytes)
      return add(l, kPipeline, bound + least_update(job_, l) * (1 + job_.cluster.other));
    if (may_be_smallest(memory))
      for_schedules(l, [&](const PlanLayout& m) { consider(filled(job_, m)); });
  }

  bool may_be_smallest(double memory) const {
    return !result_.fitting && memory < smallest_.memory;
  }

  void consider(const PlanLayout& l) {
    if (!is_legal(l)) return;
    const ScheduleShape& s = shape(l);
    const double memory = memory_of(job_, l, s).total();
    if (memory > job_.cluster.memory_bytes) return too_large(l, memory);
    ++result_.fitting;
    add(l, kAllChosen, least_step(job_, l, s));
  }

  void too_large(const PlanLayout& l, double memory) {
    if (memory < smallest_.memory) smallest_ = {l, memory};
  }

  void take(Prediction p, size_t keep) {
    ++result_.predicted;
    if (!p.fits) {  // at a peak that stages alike do not have
      --result_.fitting;
      return too_large(p.layout, p.memory.total());
    }
    auto& best = result_.best;
    best.push_back(std::move(p));
    std::ranges::stable_sort(best, {}, [&](const Prediction& q) {
      return std::tuple(changes(q.layout), q.step, q.memory.total());
    });
    if (best.size() > keep) best.pop_back();
  }

  double imbalance(int ep) {
    double& found = imbalances_[ep];
    if (!found) found = expert_imbalance(job_.loads, ep, 0);
    return found;
  }

  // Of the schedule with stages alike, made once: no more than the true one keeps. ZB-2p, whose
  // list depends on costs, keeps as much as 1F1B and more.
  const ScheduleShape& shape(PlanLayout l) {
    if (l.schedule == "zb2p") l.schedule = "1f1b";
    const int M = microbatches(job_, l), few = few_microbatches(l, M);
    // unfused, little of an activation may wait for its W (waiting_share)
    const double waiting = l.fused_attention ? 1 : 0;
    auto& made =
        shapes_[{l.schedule, l.pp, l.virtual_stages, l.schedule == "gpipe" ? M : few, waiting}];
    if (!made) {
      const std::vector<double> alike(size_t(model_stages(l)), 1.0);
      made = std::make_unique<ScheduleShape>(shape_of(layout_schedule(l, few), M, alike, waiting));
    }
    return *made;
  }

  const PlanJob& job_;
  PlanJob quickest_;
  const PlanLayout& fixed_;
  const PlanLayout* wanted_;
  const std::vector<std::string> schedules_ = split(planned_schedules());
  bool only_legal_ = false;
  SearchResult result_;
  struct {
    PlanLayout layout;
    double memory = INFINITY;
  } smallest_;  // of those that do not fit
  std::priority_queue<Node, std::vector<Node>, std::greater<>> open_;
  std::vector<PlanLayout> layouts_;
  std::map<int, double> imbalances_;  // by ep
  std::map<std::tuple<std::string, int, int, int, double>, std::unique_ptr<ScheduleShape>> shapes_;
};

}  // namespace

PlanLayout filled(const PlanJob& job, PlanLayout l) {
  if (l.schedule.empty()) l.schedule = l.virtual_stages > 1 ? "interleaved" : "1f1b";
  for (int PlanLayout::*one : {&PlanLayout::tp, &PlanLayout::pp, &PlanLayout::cp, &PlanLayout::ep,
           &PlanLayout::etp, &PlanLayout::virtual_stages})
    if (!(l.*one)) l.*one = 1;
  for (int PlanLayout::*flag : {&PlanLayout::sequence_parallel, &PlanLayout::overlap_ep,
           &PlanLayout::overlap_dp, &PlanLayout::overlap_tp})
    if (l.*flag < 0) l.*flag = usual_flag(l, flag);
  if (!l.dp) l.dp = int(std::max<int64_t>(1, job.gpus / (int64_t(l.tp) * l.pp * l.cp)));
  return l;
}

SearchResult search(
    const PlanJob& job, const PlanLayout& fixed, size_t keep, const PlanLayout* wanted) {
  return Search(job, fixed, wanted).run(keep);
}

}  // namespace duet
