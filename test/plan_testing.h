// What the tests of the efficiency model share: refusals, a GPT, jobs and layouts.
#pragma once
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <sstream>

#include "pipeline/insight/plan/search.h"

namespace duet {

inline std::string plan_refusal(const std::function<void()>& work) {
  try {
    work();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "nothing was refused";
}
inline void expect_plan_refused(
    const std::function<void()>& work, const std::vector<std::string>& words) {
  const std::string said = plan_refusal(work);
  for (const std::string& word : words)
    EXPECT_NE(said.find(word), said.npos) << "expected '" << word << "' in: " << said;
  EXPECT_EQ(said.find('\n'), said.npos) << said;
}

inline PlanModel gpt_model(int64_t layers, int64_t hidden, int64_t heads) {
  PlanModel m{"gpt", "gpt", layers, hidden, 51200, heads, heads, hidden / heads, 4 * hidden};
  m.gated = false, m.tied = true;
  return m;
}
inline PlanJob plan_job(
    const PlanModel& m, int gpus, int batch, int seq, const char* cluster = "a100-80g") {
  return {m, find_cluster(cluster), gpus, batch, seq};
}
inline PlanLayout plan_layout(const PlanJob& job, const std::string& text) {
  const KeyValues usual = {{"zero", "1"}, {"recompute", "none"}, {"micro-batch-size", "1"}};
  PlanLayout l = filled(job, with_options({}, usual));
  l.dp = 0;
  return filled(job, with_options(l, read_layout_text(text, "test")));
}

}  // namespace duet
