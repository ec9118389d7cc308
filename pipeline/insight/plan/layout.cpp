// See layout.h. Reading layouts, and the rules that they keep.
#include "pipeline/insight/plan/layout.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <sstream>

#include "model/base/check.h"
#include "pipeline/insight/plan/list_schedule.h"
#include "pipeline/schedule/checker.h"

namespace duet {
namespace {

struct Key {
  const char* name;
  int PlanLayout::*member;
  int lo, hi, free;
};
constexpr Key kKeys[] = {{"dp", &PlanLayout::dp, 1, 1 << 20, 0},
    {"tp", &PlanLayout::tp, 1, 4096, 0}, {"pp", &PlanLayout::pp, 1, 4096, 0},
    {"ep", &PlanLayout::ep, 1, 4096, 0}, {"etp", &PlanLayout::etp, 1, 4096, 0},
    {"cp", &PlanLayout::cp, 1, 4096, 0}, {"virtual-stages", &PlanLayout::virtual_stages, 1, 256, 0},
    {"micro-batch-size", &PlanLayout::micro_batch, 1, 1 << 16, 0},
    {"zero", &PlanLayout::zero, 0, 3, -1},
    {"sequence-parallel", &PlanLayout::sequence_parallel, 0, 1, -1},
    {"overlap-ep", &PlanLayout::overlap_ep, 0, 1, -1},
    {"overlap-dp", &PlanLayout::overlap_dp, 0, 1, -1},
    {"overlap-tp", &PlanLayout::overlap_tp, 0, 1, -1}};

int parse_int(const std::string& key, const std::string& value, int lo, int hi) {
  int n = 0;
  const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), n);
  require(error == std::errc() && stop == value.data() + value.size() && n >= lo && n <= hi, "--",
      key, ": found ", value, ", allowed: ", lo, " to ", hi);
  return n;
}

bool two_stages_a_rank(const std::string& schedule) {
  return schedule == "zbv" || schedule == "dualpipev" || schedule == "v-half" ||
      schedule == "v-min";
}

}  // namespace

std::vector<std::string> layout_keys() {
  std::vector<std::string> names;
  for (const Key& key : kKeys) names.push_back(key.name);
  names.insert(names.end(), {"schedule", "split", "recompute", "dtype", "imbalance"});
  return names;
}

void set_layout(PlanLayout& l, const std::string& key, const std::string& value) {
  for (const Key& k : kKeys)
    if (key == k.name) {
      l.*k.member = parse_int(key, value, k.lo, k.hi);
      return;
    }
  if (key == "schedule") {
    l.schedule = value;
  } else if (key == "dtype") {
    l.precision = parse_precision(value, "--dtype");
  } else if (key == "split") {
    l.split.clear();
    std::string text = value;
    std::replace(text.begin(), text.end(), ',', '+');  // commas separate layouts' fields
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, '+');)
      l.split.push_back(parse_int(key, part, 0, 10000));
  } else if (key == "recompute") {
    const auto found = std::find(std::begin(kRecomputes) + 1, std::end(kRecomputes), value);
    require(found != std::end(kRecomputes), "--recompute: found ", value,
        ", allowed: none, selective, full");
    l.recompute = Recompute(found - std::begin(kRecomputes));
  } else if (key == "imbalance") {
    char* end = nullptr;
    l.imbalance = std::strtod(value.c_str(), &end);
    require(!value.empty() && !*end && l.imbalance >= 1 && l.imbalance <= 1000,
        "--imbalance: found ", value, ", allowed: the busiest GPU's load / mean, 1 to 1000");
  } else {
    std::string allowed;
    for (const std::string& name : layout_keys()) allowed += cat(' ', name);
    throw UsageError(cat("--layouts: found ", key, ", allowed:", allowed));
  }
}

PlanLayout parse_layout(const std::string& text, PlanLayout layout, const std::string& where) {
  std::string items = text;
  std::replace(items.begin(), items.end(), ',', ' ');
  std::istringstream in(items);
  for (std::string item; in >> item;) {
    const size_t equal = item.find('=');
    require(equal != item.npos, where, ": found ", item, ", allowed: e.g. tp=8,pp=4,schedule=1f1b");
    set_layout(layout, item.substr(0, equal), item.substr(equal + 1));
  }
  return layout;
}

std::string PlanLayout::text() const {
  std::string out;
  const auto add = [&](const auto&... parts) {
    if (!out.empty()) out += ',';
    out += cat(parts...);
  };
  for (const Key& key : kKeys) {
    const int value = this->*key.member;
    const bool plain = key.free == 0 && value == 1 && key.member != &PlanLayout::dp &&
        key.member != &PlanLayout::micro_batch;
    if (value != key.free && !plain && (key.free == 0 || key.member == &PlanLayout::zero || value))
      add(key.name, "=", value);
  }
  if (pp != 1 && !schedule.empty()) add("schedule=", schedule);
  if (!split.empty()) {
    add("split=", split[0]);
    for (size_t i = 1; i < split.size(); ++i) out += cat('+', split[i]);
  }
  if (recompute > Recompute::none) add("recompute=", kRecomputes[size_t(recompute)]);
  if (precision != Precision::bf16) add("dtype=", kPrecisions[size_t(precision)]);
  if (imbalance != 1) add("imbalance=", imbalance);
  return out;
}

int model_stages(const PlanLayout& l) {
  if (from_file(l)) return make_schedule(l.schedule, {0, 0, 0}).model_stages();
  const bool v = two_stages_a_rank(l.schedule);
  return l.pp * (v ? 2 : l.schedule == "interleaved" ? l.virtual_stages : 1);
}

std::vector<int> stage_layers(const PlanModel& model, const PlanLayout& l) {
  if (!l.split.empty()) return l.split;
  const int stages = model_stages(l);
  std::vector<int> layers(size_t(stages), int(model.layers / stages));
  const int more = int(model.layers % stages);
  for (int i = 0; i < more; ++i) ++layers[size_t((i + 1) % stages)];
  return layers;
}

std::string broken_rule(const PlanJob& job, const PlanLayout& l) {
  const PlanModel& m = job.model;
  const int64_t in_stage = int64_t(l.tp) * l.cp * l.dp;
  if (in_stage * l.pp != job.gpus)
    return cat("--gpus: found ", job.gpus, ", allowed: tp x cp x dp x pp = ", l.tp, " x ", l.cp,
        " x ", l.dp, " x ", l.pp, " = ", in_stage * l.pp);
  if (m.heads % l.tp)
    return cat("--tp: found ", l.tp, ", allowed: a divisor of the ", m.heads, " heads");
  if (job.seq_len % l.cp)
    return cat("--cp: found ", l.cp, ", allowed: a divisor of --seq-len ", job.seq_len);
  if (job.batch % (int64_t(l.dp) * l.micro_batch))
    return cat("--batch: found ", job.batch,
        ", allowed: a multiple of dp x micro-batch-size = ", l.dp, " x ", l.micro_batch);
  const int stages = model_stages(l), M = microbatches(job, l);
  if (l.split.empty() ? stages > m.layers + 2  // the ends may have embedding and head alone

                      : int(l.split.size()) != stages ||
              std::accumulate(l.split.begin(), l.split.end(), 0) != m.layers)
    return cat("--split: found ", l.split.empty() ? stages : int(l.split.size()),
        " parts, allowed: ", stages, " stages that add up to the ", m.layers, " layers");
  if (l.ep * l.etp > 1 && !m.experts)
    return cat("--ep: found ", l.ep, ", allowed: 1, the model has no experts");
  if (m.experts && (m.experts % l.ep || m.expert_ffn % l.etp))
    return cat("--ep: found ", l.ep, " (etp ", l.etp, "), allowed: a divisor of the ", m.experts,
        " experts (etp: of their width ", m.expert_ffn, ")");
  if (in_stage % (int64_t(l.ep) * l.etp))
    return cat("--ep: found ep x etp = ", l.ep * l.etp,
        ", allowed: a divisor of dp x cp x tp = ", in_stage);
  if (l.schedule == "dualpipe" && (l.pp % 2 || M % 2 || M < 2 * l.pp))
    return cat(
        "--schedule: dualpipe needs even pp and an even number of microbatches, 2 x pp or "
        "more, found pp ",
        l.pp, ", microbatches ", M);
  if (l.schedule == "dualpipev" && M < 2 * l.pp)
    return cat("--schedule: dualpipev needs 2 x pp microbatches or more, found ", M);
  if (l.zero >= 2 && l.zero != 3 && l.pp > 1 && l.schedule == "dualpipe")
    return "--zero: dualpipe allows 0 and 1: gradients are summed over the whole step";
  if (!job.cluster.peak[size_t(l.precision)])
    return cat(
        "--dtype: ", job.cluster.name, " has no ", kPrecisions[size_t(l.precision)], " products");
  return "";
}

Schedule layout_schedule(const PlanLayout& l, int M, const StageCosts& costs) {
  if (is_list_schedule(l.schedule)) return list_schedule(l.schedule, l.pp, M, costs);
  if (!from_file(l))
    return make_schedule(l.pp == 1 ? "1f1b" : l.schedule, {l.pp, M, l.virtual_stages});
  const Schedule s = make_schedule(l.schedule, {l.pp, M, 0});
  check(s);
  return s;
}

}  // namespace duet
