// The search against trying everything: each option's every value, all combinations, predicted one
// by one.
#include <algorithm>

#include "model/base/text.h"
#include "test/plan_testing.h"

namespace duet {
namespace {

std::vector<int> all_divisors(int64_t n) {
  std::vector<int> all;
  for (int d = 1; d <= n; ++d)
    if (n % d == 0) all.push_back(d);
  return all;
}

// All legal layouts that agree with what is fixed, predicted.
class Everything {
 public:
  Everything(const PlanJob& job, const PlanLayout& fixed) : job_(job), fixed_(fixed) {
    const PlanModel& m = job.model;
    for (int tp : all_divisors(m.heads))
      for (int pp : all_divisors(job.gpus))
        for (int cp = 1; job.seq_len % cp == 0; cp *= 2)
          for (int ep : all_divisors(m.experts ? m.experts : 1))
            for (int etp : all_divisors(m.experts ? m.expert_ffn : 1)) {
              if (job.gpus % (tp * pp * cp) || job.gpus % (ep * etp)) continue;
              PlanLayout l = fixed;
              l.tp = tp, l.pp = pp, l.cp = cp, l.ep = ep, l.etp = etp;
              l.dp = int(job.gpus / (tp * pp * cp));
              schedules(l);
            }
  }

  std::vector<Prediction> all;

 private:
  void schedules(PlanLayout l) {
    const int chunks = int(job_.model.layers + 2) / l.pp;
    for (const std::string& name : split(planned_schedules()))
      for (int v = 1; v <= (name == "interleaved" ? chunks : 1); ++v)
        for (int mbs : all_divisors(job_.batch))
          for (int zero : {0, 1, 2, 3})
            for (auto recompute : {Recompute::none, Recompute::selective, Recompute::full})
              for (int sp = 0; sp <= (l.tp > 1); ++sp) {
                l.schedule = name, l.virtual_stages = v, l.micro_batch = mbs, l.zero = zero;
                l.recompute = recompute, l.sequence_parallel = sp;
                consider(filled(job_, l));
              }
  }
  void consider(const PlanLayout& l) {
    if (changed_options(fixed_, l) || !broken_rule(job_, l).empty()) return;
    all.push_back(predict(job_, l));
  }

  const PlanJob& job_;
  const PlanLayout& fixed_;
};

// The best three at several sizes of memory; the smallest where none fits; the nearest of each of a
// few layouts.
void expect_the_best_of_all(PlanJob job, const std::string& fixed_text) {
  const PlanLayout fixed = with_options({}, read_layout_text(fixed_text, "test"));
  std::vector<Prediction> all = Everything(job, fixed).all;
  ASSERT_GT(all.size(), 100u);
  std::vector<double> memory;
  for (const Prediction& p : all) {
    memory.push_back(p.memory.total());
    EXPECT_LE(least_memory(job, p.layout), memory.back()) << p.layout.text();
    EXPECT_LE(least_work(job, p.layout), p.step * 1.0000001) << p.layout.text();
  }
  std::ranges::sort(memory);
  std::ranges::stable_sort(all, {}, &Prediction::step);
  for (const double share : {0.0, 0.001, 0.01, 0.1, 0.3, 1.0}) {
    const double limit =
        memory[size_t(share * double(memory.size() - 1))] * (share ? 1.001 : 0.999);
    job.cluster.memory_bytes = limit;
    const SearchResult found = search(job, fixed, 3);
    std::vector<Prediction> fit;
    for (const Prediction& p : all)
      if (p.memory.total() <= limit) fit.push_back(p);
    std::vector<Prediction> kinds = fit;  // ZeRO divides nothing of one replica
    std::erase_if(kinds, [&](const Prediction& p) {
      return fixed.zero < 0 && p.layout.dp * p.layout.cp == 1 && p.layout.zero != 1;
    });
    ASSERT_EQ(found.best.size(), std::min(size_t(3), kinds.size()));
    for (size_t i = 0; i < found.best.size(); ++i) {
      EXPECT_TRUE(found.best[i].fits);
      EXPECT_NEAR(found.best[i].step / kinds[i].step, 1, 1e-9)
          << share << ": " << found.best[i].layout.text() << " or " << kinds[i].layout.text();
    }
    if (fit.empty()) {
      EXPECT_NEAR(found.smallest.memory.total() / memory[0], 1, 1e-9)
          << found.smallest.layout.text();
      continue;
    }
    for (size_t i = 0; i < all.size(); i += all.size() / 10) {
      const PlanLayout& wanted = all[i].layout;
      const auto rank = [&](const Prediction& p) {
        return std::pair(changed_options(wanted, p.layout), p.step);
      };
      const Prediction best = *std::ranges::min_element(fit, {}, rank);
      const Prediction nearest = search(job, fixed, 1, &wanted).best[0];
      EXPECT_EQ(rank(nearest).first, rank(best).first)
          << nearest.layout.text() << " or " << best.layout.text();
      EXPECT_NEAR(rank(nearest).second / rank(best).second, 1, 1e-9)
          << nearest.layout.text() << " or " << best.layout.text();
    }
  }
}

TEST(PlanSearch, FindsTheBestOfAllLayouts) {
  PlanModel m = gpt_model(4, 768, 6);
  expect_the_best_of_all(plan_job(m, 4, 8, 512), "");
  expect_the_best_of_all(plan_job(m, 6, 12, 128), "cp=1");
  m = gpt_model(9, 1024, 8), m.tied = false, m.mtp = 1;
  expect_the_best_of_all(plan_job(m, 8, 32, 1024), "cp=1,zero=1,tp=2");
  // more microbatches than shapes are made of, which P does not divide
  expect_the_best_of_all(plan_job(m, 4, 210, 256), "cp=1,tp=1,zero=1,recompute=none");
}

TEST(PlanSearch, FindsTheBestOfAllLayoutsOfExperts) {
  PlanModel m = gpt_model(5, 512, 4);
  m.experts = 4, m.topk = 2, m.expert_ffn = 2048, m.dense_layers = 1;
  PlanJob job = plan_job(m, 8, 16, 512);
  job.cluster.nvlink_domain = job.cluster.gpus_per_node = 2;  // all-to-alls take long
  expect_the_best_of_all(job, "cp=1,micro-batch-size=1");
  expect_the_best_of_all(job, "tp=1,etp=1,overlap-ep=1");
  job.cluster.core = true, job.cluster.cache_bytes = 32e6, job.cluster.row_bytes_s = 1e11;
  job.cluster.cache_bytes_s = 5 * job.cluster.hbm_bytes_s;
  expect_the_best_of_all(job, "cp=1,etp=1,zero=0,recompute=none");
}

TEST(PlanSearch, EveryLegalTextReadsBack) {
  const PlanJob job = plan_job(find_model("mixtral-8x7b"), 64, 256, 4096, "h100");
  for (const Prediction& p : search(job, {}, 5).best) {
    const PlanLayout again =
        filled(job, with_options({}, read_layout_text(p.layout.text(), "text")));
    EXPECT_EQ(again.text(), p.layout.text());
    EXPECT_EQ(broken_rule(job, p.layout), "");
  }
}

}  // namespace
}  // namespace duet
