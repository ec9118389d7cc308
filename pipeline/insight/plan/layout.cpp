// See layout.h. Reading layouts, and the rules that they keep.
#include "pipeline/insight/plan/layout.h"

#include <algorithm>
#include <numeric>
#include <sstream>

#include "model/base/text.h"
#include "pipeline/schedule/checker.h"
#include "pipeline/schedule/published/published.h"

namespace duet {
namespace {

struct Key {
  const char *name, *help;
  int PlanLayout::*member = nullptr;  // of a number
  int lo = 1, hi = 4096, free = 0;
  int plain = 1;  // goes without saying
};
constexpr Key kKeys[] = {{"dp", "data-parallel ranks; default: GPUs / (tp x pp x cp)",
                             &PlanLayout::dp, 1, 1 << 20, 0, 0},
    {"tp", "tensor-parallel ranks", &PlanLayout::tp}, {"pp", "pipeline ranks", &PlanLayout::pp},
    {"ep", "ranks that share the experts", &PlanLayout::ep},
    {"etp", "tensor-parallel ranks of an expert", &PlanLayout::etp},
    {"cp", "context-parallel ranks; default: the best power of 2", &PlanLayout::cp},
    {"virtual-stages", "stages a rank holds under interleaved", &PlanLayout::virtual_stages, 1,
        256},
    {"micro-batch-size", "sequences of a microbatch", &PlanLayout::micro_batch, 1, 1 << 20, 0, 0},
    {"zero", "ZeRO stage, 0 to 3", &PlanLayout::zero, 0, 3, -1, -1},
    {"sequence-parallel", "1: row operations are divided among tensor-parallel ranks",
        &PlanLayout::sequence_parallel, 0, 1, -1},
    {"overlap-ep",
        "1: all-to-alls hide under computation; not searched, default: in a schedule's own pairs",
        &PlanLayout::overlap_ep, 0, 1, -1},
    {"overlap-dp", "1: gradients and weights of dp ranks hide; default: 1, which is never slower",
        &PlanLayout::overlap_dp, 0, 1, -1},
    {"overlap-tp", "1: tensor-parallel communication hides; default: 1, which is never slower",
        &PlanLayout::overlap_tp, 0, 1, -1},
    {"schedule", ", or a CSV file"},  // after planned_schedules
    {"split",
        "layers of each stage, e.g. 3,4,4,3 (in --layouts 3+4+4+3); not searched, default: even, "
        "what is left over in the middle"},
    {"recompute", "none, selective, full"},
    {"dtype", "of products: fp32, bf16, fp8, mxfp8, nvfp4; not searched, default: bf16"},
    {"imbalance", "the busiest GPU's tokens / the mean; not searched, default: 1, or of --loads"}};

int parse_int(const std::string& key, const std::string& value, int lo, int hi) {
  const std::optional<int> n = parse_number<int>(value);
  require(n && *n >= lo && *n <= hi, "--", key, ": found ", value, ", allowed: ", lo, " to ", hi);
  return *n;
}

bool two_stages_a_rank(const std::string& schedule) {
  return schedule == "zbv" || schedule == "dualpipev" || schedule == "v-half" ||
      schedule == "v-min";
}

}  // namespace

std::string planned_schedules() { return schedule_names() + ", zb2p"; }

KeyValues layout_keys() {
  KeyValues keys;
  for (const Key& key : kKeys) {
    const std::string help = (key.help[0] == ',' ? planned_schedules() : "") + key.help;
    keys.push_back(
        {key.name, help.find("default: ") == help.npos ? help + "; default: searched for" : help});
  }
  return keys;
}

void set_layout(PlanLayout& l, const std::string& key, const std::string& value) {
  const auto* known = std::ranges::find(kKeys, key, &Key::name);
  if (known == std::end(kKeys)) {
    std::string allowed;
    for (const Key& k : kKeys) allowed += cat(' ', k.name);
    throw UsageError(cat("--layouts: found ", key, ", allowed:", allowed));
  }
  require(!value.empty(), "--", key, ": found '', allowed: 1 or more characters");
  if (known->member) {
    l.*known->member = parse_int(key, value, known->lo, known->hi);
  } else if (key == "schedule") {
    l.schedule = value, l.list = nullptr;
    if (!is_schedule_file(value)) return;
    const auto list = std::make_shared<Schedule>(make_schedule(value, {0, 0, 0}));
    check(*list);
    l.list = list;
  } else if (key == "dtype") {
    l.precision = parse_precision(value, "--dtype");
  } else if (key == "split") {
    l.split.clear();
    const char between = value.find('+') == value.npos ? ',' : '+';  // commas separate fields too
    for (const std::string& part : split(value, between))
      l.split.push_back(parse_int(key, part, 0, 10000));
  } else if (key == "recompute") {
    const auto* found = std::find(std::begin(kRecomputes) + 1, std::end(kRecomputes), value);
    require(found != std::end(kRecomputes), "--recompute: found ", value,
        ", allowed: none, selective, full");
    l.recompute = Recompute(found - std::begin(kRecomputes));
  } else if (key == "imbalance") {
    l.imbalance = parse_number<double>(value).value_or(0);
    require(l.imbalance >= 1 && l.imbalance <= 1000, "--imbalance: found ", value,
        ", allowed: the busiest GPU's load / mean, 1 to 1000");
  }
}

KeyValues read_layout_text(const std::string& text, const std::string& where) {
  std::string items = text;
  std::replace(items.begin(), items.end(), ',', ' ');
  std::istringstream in(items);
  KeyValues all;
  for (std::string item; in >> item;) {
    const size_t equal = item.find('=');
    require(equal != item.npos, where, ": found ", item, ", allowed: e.g. tp=8,pp=4,schedule=1f1b");
    const std::string key = item.substr(0, equal);
    for (const auto& [given, value] : all)
      require(given != key, where, ": found ", given, "=", value, " and ", item,
          ", allowed: each option once");
    all.push_back({key, item.substr(equal + 1)});
  }
  return all;
}

PlanLayout with_options(PlanLayout layout, const KeyValues& options) {
  for (const auto& [key, value] : options) set_layout(layout, key, value);
  return layout;
}

int usual_flag(const PlanLayout& l, int PlanLayout::*flag) {
  if (flag == &PlanLayout::overlap_dp) return 1;
  return flag == &PlanLayout::overlap_ep ? has_pairs(l) : l.tp > 1;
}

int changed_options(const PlanLayout& wanted, const PlanLayout& l) {
  int changed = !wanted.split.empty() && wanted.split != l.split;
  for (const Key& key : kKeys)
    if (key.member)
      changed += wanted.*key.member != key.free && l.*key.member != key.free &&
          wanted.*key.member != l.*key.member;
  changed += !l.schedule.empty() && !wanted.schedule.empty() && wanted.schedule != l.schedule;
  changed += l.recompute != Recompute::unset && wanted.recompute != Recompute::unset &&
      wanted.recompute != l.recompute;
  return changed;
}

std::string PlanLayout::text() const {
  std::string out;
  const auto add = [&](const auto&... parts) {
    if (!out.empty()) out += ',';
    out += cat(parts...);
  };
  for (const Key& key : kKeys) {
    if (!key.member) continue;
    const int value = this->*key.member;
    const bool flag = key.lo == 0 && key.hi == 1;
    if (value != key.free && (flag ? value || usual_flag(*this, key.member) : value != key.plain))
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

bool has_pairs(const PlanLayout& l) {
  if (!l.list) return l.schedule == "dualpipe" || l.schedule == "dualpipev";
  return std::ranges::any_of(l.list->ranks, [](const std::vector<Action>& list) {
    return std::ranges::any_of(list, &Action::overlapped);
  });
}

bool splits_backward(const PlanLayout& l) {
  if (!l.list)
    return !l.schedule.empty() && l.schedule != "gpipe" && l.schedule != "1f1b" &&
        l.schedule != "interleaved";
  return std::ranges::any_of(l.list->ranks, [](const std::vector<Action>& list) {
    return std::ranges::find(list, Kind::W, &Action::kind) != list.end();
  });
}

int weight_copies(const PlanLayout& l) {
  return l.list ? l.list->weight_copies() : 1 + (l.schedule == "dualpipe");
}

int model_stages(const PlanLayout& l) {
  if (l.list) return l.list->model_stages();
  const bool v = two_stages_a_rank(l.schedule);
  return l.pp * (v ? 2 : l.schedule == "interleaved" ? l.virtual_stages : 1);
}

std::vector<int> stage_layers(const PlanModel& model, const PlanLayout& l) {
  if (!l.split.empty()) return l.split;
  const int stages = model_stages(l);
  // Multi-token prediction, a layer and another pass of the head, weighs three layers.
  const bool relieved = model.mtp > 0 && stages > 1;
  const int others = stages - relieved,
            last = relieved ? std::max(0, int((model.layers + stages - 1) / stages) - 3) : 0;
  const int divided = int(model.layers) - last;
  std::vector<int> layers(size_t(others), divided / others);
  for (int i = 0; i < divided % others; ++i) ++layers[size_t((i + 1) % others)];
  if (relieved) layers.push_back(last);
  return layers;
}

std::string broken_size(const PlanJob& job, const PlanLayout& l) {
  const PlanModel& m = job.model;
  if (!job.cluster.peak[size_t(l.precision)])
    return cat(
        "--dtype: ", job.cluster.name, " has no ", kPrecisions[size_t(l.precision)], " products");
  const int layers = std::accumulate(l.split.begin(), l.split.end(), 0);
  if (!l.split.empty() && layers != m.layers)
    return cat("--split: found ", layers, " layers, allowed: the model's ", m.layers);
  if (m.heads % l.tp)
    return cat("--tp: found ", l.tp, ", allowed: a divisor of the ", m.heads, " heads");
  if (job.seq_len % l.cp)
    return cat("--cp: found ", l.cp, ", allowed: a divisor of --seq-len ", job.seq_len);
  if (m.experts ? m.experts % l.ep : l.ep > 1)
    return cat("--ep: found ", l.ep, ", allowed: ",
        m.experts ? cat("a divisor of the ", m.experts, " experts")
                  : "1, the model has no experts");
  if (m.experts ? m.expert_ffn % l.etp : l.etp > 1)
    return cat("--etp: found ", l.etp, ", allowed: ",
        m.experts ? cat("a divisor of the experts' width ", m.expert_ffn)
                  : "1, the model has no experts");
  return "";
}

// Of a pipeline: its ranks, their stages, and what the schedule needs of microbatches and ZeRO.
static std::string broken_pipeline(const PlanJob& job, const PlanLayout& l) {
  const PlanModel& m = job.model;
  const int stages = model_stages(l), M = microbatches(job, l);
  if (l.list && l.pp != l.list->pp)
    return cat("--pp: found ", l.pp, ", allowed: ", l.list->pp, ", the ranks of ", l.schedule);
  if (!l.list && l.pp == 1 && l.schedule != "1f1b")
    return cat("--schedule: ", l.schedule, " needs pp 2 or more, found 1");
  if (l.schedule == "interleaved" && l.virtual_stages < 2)
    return "--virtual-stages: found 1, allowed: 2 or more under interleaved";
  if (!l.list && l.virtual_stages > 1 && l.virtual_stages != stages / l.pp)
    return cat("--virtual-stages: found ", l.virtual_stages, ", allowed: ", stages / l.pp,
        " under ", l.schedule, ", others under interleaved");
  if (!l.split.empty() && int(l.split.size()) != stages)
    return cat("--split: found ", l.split.size(), " stages, allowed: ", stages, " under ",
        l.schedule, " on ", l.pp, " ranks");
  if (stages > m.layers + 2)  // the ends may have embedding and head alone
    return cat("--", stages > l.pp ? "virtual-stages" : "pp", ": found ", stages,
        " stages, allowed: ", m.layers + 2, ", the layers and both ends");
  if (l.list && M != l.list->microbatches)
    return cat("--batch: found ", M, " microbatches of ", l.micro_batch,
        ", allowed: ", l.list->microbatches, " under ", l.schedule);
  if (l.zero >= 2 && weight_copies(l) == 2)
    return cat("--zero: found ", l.zero, ", allowed: 0 and 1 under ", l.schedule,
        ", whose two copies sum their gradients over the whole step");
  if (l.schedule == "dualpipe" && (l.pp % 2 || M % 2 || M < 2 * l.pp))
    return cat(
        "--schedule: dualpipe needs even pp and an even number of microbatches, 2 x pp or "
        "more, found pp ",
        l.pp, ", microbatches ", M);
  if (l.schedule == "dualpipev" && M < 2 * l.pp)
    return cat("--schedule: dualpipev needs 2 x pp microbatches or more, found ", M);
  return "";
}

std::string broken_rule(const PlanJob& job, const PlanLayout& l) {
  if (const std::string rule = broken_size(job, l); !rule.empty()) return rule;
  const int64_t in_stage = int64_t(l.tp) * l.cp * l.dp;
  if (in_stage * l.pp != job.gpus)
    return cat("--gpus: found ", job.gpus, ", allowed: tp x cp x dp x pp = ", l.tp, " x ", l.cp,
        " x ", l.dp, " x ", l.pp, " = ", in_stage * l.pp);
  if (in_stage % (int64_t(l.ep) * l.etp))
    return cat("--ep: found ep x etp = ", l.ep * l.etp,
        ", allowed: a divisor of dp x cp x tp = ", in_stage);
  if (job.batch % (int64_t(l.dp) * l.micro_batch))
    return cat("--batch: found ", job.batch,
        ", allowed: a multiple of dp x micro-batch-size = ", l.dp, " x ", l.micro_batch);
  return broken_pipeline(job, l);
}

Schedule layout_schedule(const PlanLayout& l, int M, const StageCosts& costs, double waiting) {
  if (l.list) return *l.list;
  const ScheduleSize size{l.pp, M, l.virtual_stages};
  if (l.pp == 1) return make_schedule("1f1b", size);
  return l.schedule == "zb2p" ? zero_bubble("zb2p", size, costs, waiting)
                              : make_schedule(l.schedule, size);
}

}  // namespace duet
