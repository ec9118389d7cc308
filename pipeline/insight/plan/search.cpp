// See search.h.
#include "pipeline/insight/plan/search.h"

#include <algorithm>
#include <map>
#include <memory>

namespace duet {
namespace {

std::vector<int> divisors(int64_t n, int64_t most) {
  std::vector<int> all;
  for (int64_t d = 1; d <= std::min(n, most); ++d)
    if (n % d == 0) all.push_back(int(d));
  return all;
}

std::vector<int> powers(int64_t most) {
  std::vector<int> all;
  for (int64_t d = 1; d <= most; d *= 2) all.push_back(int(d));
  return all;
}

// The fixed value, or all that a free one may have.
template <class T> std::vector<T> choice(T fixed, T free, std::vector<T> otherwise) {
  return fixed == free ? otherwise : std::vector<T>{fixed};
}

struct Candidate {
  PlanLayout layout;
  double bound = 0, memory = 0;
};

class Search {
 public:
  Search(const PlanJob& job, const PlanLayout& fixed) : job_(job), fixed_(fixed) {}

  SearchResult run(size_t keep) {
    for_parallel([&](PlanLayout l) { for_schedules(l, [&](PlanLayout m) { for_rest(m); }); });
    std::sort(candidates_.begin(), candidates_.end(),
        [](const Candidate& a, const Candidate& b) { return a.bound < b.bound; });
    for (const Candidate& c : candidates_) {
      auto& best = result_.best;
      if (best.size() == keep && c.bound > best.back().step) break;
      best.push_back(predict(job_, c.layout, 2e4));
      ++result_.predicted;
      std::sort(best.begin(), best.end(), [](const Prediction& a, const Prediction& b) {
        return a.step != b.step ? a.step < b.step : a.memory.total() < b.memory.total();
      });
      if (best.size() > keep) best.pop_back();
    }
    if (!result_.tried)  // nothing divides the GPUs
      result_.first_rule =
          cat("--gpus: found ", job_.gpus, ", allowed: a multiple of tp x pp x cp");
    if (result_.best.empty() && smallest_.layout.dp)
      result_.smallest = predict(job_, smallest_.layout, 2e4);
    return std::move(result_);
  }

 private:
  // tp, pp, cp, dp, ep, etp
  template <class Then> void for_parallel(Then then) {
    const PlanModel& m = job_.model;
    const int64_t most_tp = std::min<int64_t>(16, int64_t(job_.cluster.nvlink_domain));
    const int64_t most_cp = job_.seq_len / 8192;
    for (int tp : choice(fixed_.tp, 0, powers(most_tp)))
      for (int pp : choice(fixed_.pp, 0, divisors(job_.gpus, m.layers)))
        for (int cp : choice(fixed_.cp, 0, powers(std::max<int64_t>(1, most_cp)))) {
          PlanLayout l = fixed_;
          l.tp = tp, l.pp = pp, l.cp = cp;
          const int64_t others = int64_t(tp) * pp * cp;
          if (!l.dp && job_.gpus % others) continue;
          if (!l.dp) l.dp = int(job_.gpus / others);
          const int64_t in_stage = int64_t(l.tp) * l.cp * l.dp;
          for (int ep : choice(fixed_.ep, 0, m.experts ? divisors(m.experts, in_stage) : powers(1)))
            for (int etp : choice(fixed_.etp, 0, powers(1))) {
              l.ep = ep, l.etp = etp;
              then(l);
            }
        }
  }

  template <class Then> void for_schedules(PlanLayout l, Then then) {
    const bool one = l.pp == 1 && !from_file(fixed_);
    const std::vector<std::string> all = {
        "1f1b", "interleaved", "zb1p", "zbv", "dualpipe", "dualpipev"};
    const std::vector<std::string> names = choice(fixed_.schedule, {}, all);
    for (const std::string& name : one ? std::vector<std::string>{"1f1b"} : names) {
      l.schedule = name;
      std::vector<int> chunks = {1};
      if (name == "interleaved") {
        chunks = divisors(std::max<int64_t>(1, job_.model.layers / l.pp), 16);
        chunks.erase(chunks.begin());
        if (chunks.empty() && !fixed_.virtual_stages) chunks = {1}, l.schedule = "1f1b";
      }
      for (int v : choice(fixed_.virtual_stages, 0, chunks)) {
        l.virtual_stages = v;
        then(l);
      }
    }
  }

  void for_rest(PlanLayout l) {
    const int64_t sequences = std::max<int64_t>(1, job_.batch / l.dp);
    for (int mbs : choice(fixed_.micro_batch, 0, divisors(sequences, 32)))
      for (int zero :
          choice(fixed_.zero, -1, l.pp > 1 ? std::vector<int>{1} : std::vector<int>{1, 3}))
        for (Recompute recompute : choice(fixed_.recompute, Recompute::unset,
                 {Recompute::none, Recompute::selective, Recompute::full})) {
          l.micro_batch = mbs, l.zero = zero, l.recompute = recompute;
          if (consider(filled(job_, l))) break;  // more recomputation is only slower
        }
  }

  // Whether it is legal and fits.
  bool consider(const PlanLayout& l) {
    ++result_.tried;
    const std::string rule = broken_rule(job_, l);
    if (!rule.empty()) {
      if (result_.first_rule.empty()) result_.first_rule = rule;
      return false;
    }
    ++result_.legal;
    Candidate c{l, 0, memory_of(job_, l, shape(l)).total()};
    if (c.memory > job_.cluster.memory_bytes) {
      if (!smallest_.layout.dp || c.memory < smallest_.memory) smallest_ = c;
      return false;
    }
    ++result_.fitting;
    c.bound = least_step(job_, l);
    candidates_.push_back(c);
    return true;
  }

  // The shape of a few rounds of the schedule, made once.
  const ScheduleShape& shape(const PlanLayout& l) {
    const int M = microbatches(job_, l),
              few = l.schedule == "gpipe" || from_file(l) ? M : std::min(M, 4 * l.pp);
    auto& made = shapes_[{l.schedule, l.pp, l.virtual_stages, few}];
    if (!made)
      made = std::make_unique<ScheduleShape>(
          shape_of(layout_schedule(l, few), std::vector<double>(size_t(model_stages(l)), 1.0)));
    return *made;
  }

  const PlanJob& job_;
  const PlanLayout& fixed_;
  SearchResult result_;
  Candidate smallest_;
  std::vector<Candidate> candidates_;
  std::map<std::tuple<std::string, int, int, int>, std::unique_ptr<ScheduleShape>> shapes_;
};

}  // namespace

PlanLayout filled(const PlanJob& job, PlanLayout l) {
  const bool pairs = l.schedule.starts_with("dualpipe");
  if (l.sequence_parallel < 0) l.sequence_parallel = l.tp > 1;
  if (l.overlap_dp < 0) l.overlap_dp = 1;
  if (l.overlap_tp < 0) l.overlap_tp = 0;
  if (l.overlap_ep < 0) l.overlap_ep = pairs;
  if (l.schedule.empty()) l.schedule = l.virtual_stages > 1 ? "interleaved" : "1f1b";
  for (int PlanLayout::*one : {&PlanLayout::tp, &PlanLayout::pp, &PlanLayout::cp, &PlanLayout::ep,
           &PlanLayout::etp, &PlanLayout::virtual_stages})
    if (!(l.*one)) l.*one = 1;
  if (!l.dp) l.dp = int(std::max<int64_t>(1, job.gpus / (int64_t(l.tp) * l.pp * l.cp)));
  return l;
}

SearchResult search(const PlanJob& job, const PlanLayout& fixed, size_t keep) {
  return Search(job, fixed).run(keep);
}

}  // namespace duet
