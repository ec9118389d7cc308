// See eplb_command.h.
#include "pipeline/insight/pictures/eplb_command.h"

#include <algorithm>
#include <iostream>

#include "model/base/command_line.h"
#include "model/base/hash.h"
#include "model/base/json.h"
#include "model/base/read_file.h"
#include "pipeline/insight/pictures/load_map.h"

namespace duet {

namespace {

// The example of EPLB's README: two layers of twelve experts.
const Loads kExample = {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
    {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};

// Why the nodes do not count; empty where they do.
std::string ignored_nodes(const EplbShape& shape) {
  return shape.checked().nodes == shape.nodes
      ? ""
      : cat("--nodes ", shape.nodes, " does not divide --groups ", shape.groups,
            ": planned without groups and nodes");
}

Json to_json(
    const std::vector<ExpertPlacement>& plan, const Loads& loads, const std::string& remark) {
  const int max_count = std::ranges::max(plan, {}, &ExpertPlacement::max_count).max_count;
  Json phy2log = Json::array(), log2phy = Json::array(), logcnt = Json::array(),
       gpu = Json::array(), balance = Json::array();
  for (size_t layer = 0; layer < plan.size(); ++layer) {
    const ExpertPlacement& p = plan[layer];
    phy2log.push(Json(p.phy2log));
    logcnt.push(Json(p.logcnt));
    std::vector<std::vector<int32_t>> slots;
    for (int e = 0; e < p.experts(); ++e) {
      slots.emplace_back(p.slots_of(e).begin(), p.slots_of(e).end());
      slots.back().resize(size_t(max_count), -1);
    }
    log2phy.push(Json(slots));
    const std::vector<double> load = gpu_load(p, loads[layer]);
    gpu.push(Json(load));
    balance.push(balancedness(load));
  }
  Json all = Json::object({{"phy2log", phy2log}, {"log2phy", log2phy}, {"logcnt", logcnt},
      {"gpu_load", gpu}, {"balancedness", balance}});
  return remark.empty() ? all : all.set("remark", remark);
}

// --- text ----------------------------------------------------------------------------------------

void print_layer(const ExpertPlacement& plan, std::span<const float> load, std::ostream& out) {
  const std::vector<double> before =
      loads_in_order({std::vector<double>(load.begin(), load.end())}, size_t(plan.gpus))[0];
  const std::vector<double> after = gpu_load(plan, load);
  const double scale = std::max({max_of(before), max_of(after), 1e-30});
  out << format("balancedness %.3f -> %.3f, max load %.6g -> %.6g, plan %s\n", balancedness(before),
             balancedness(after), max_of(before), max_of(after), hash_text(plan.hash()).c_str())
      << "  GPU  experts in order                   planned                            experts\n";
  const int n = plan.slots_per_gpu();
  bool pairs = false;
  for (int g = 0; g < plan.gpus; ++g) {
    const double x = before[size_t(g)], y = after[size_t(g)];
    out << format("%5d  %s %-9.6g %s %-9.6g", g, bar(x / scale, 24).c_str(), x,
        bar(y / scale, 24).c_str(), y);
    const auto slots = std::span(plan.phy2log).subspan(size_t(g * n), size_t(n));
    for (int32_t e : slots) {
      const bool twice = std::count(slots.begin(), slots.end(), e) > 1;
      out << ' ' << e << (twice ? "*" : "");
      pairs |= twice;
    }
    out << '\n';
  }
  if (pairs) out << "  * several replicas of an expert on one GPU: all but one are wasted slots\n";
}

}  // namespace

void add_eplb_command(CLI::App& duet, int&) {
  Command cli(
      duet, "eplb", "plan where experts and their replicas go; without options a demonstration");
  const auto o = std::make_shared<EplbCommandOptions>();
  cli.text("--loads", o->loads, cat(kLoadsFile, "; default: loads made up"));
  cli.number(
      "--replicas", o->shape.replicas, 1, kMaxReplicas, "physical experts of a layer, in all");
  cli.number("--groups", o->shape.groups, 1, kMaxReplicas, "groups of experts");
  cli.number("--nodes", o->shape.nodes, 1, kMaxReplicas, "nodes");
  cli.number("--gpus", o->shape.gpus, 1, kMaxReplicas, "GPUs, in all");
  cli.choice("--policy", o->planning.policy, {EplbPolicy::deepseek, EplbPolicy::balanced},
      policy_name, "the published algorithm, or duet's own");
  cli.flag("--replicas-may-leave-node", o->planning.replicas_may_leave_node,
      "balanced: redundant replicas may live on another node");
  cli.choice("--format", o->format, {Format::text, Format::json, Format::svg}, format_name,
      "svg: a run's metrics.jsonl as a heat map of loads over steps");
  cli.runs([o] { eplb_command(*o, std::cout); });
}

void eplb_command(const EplbCommandOptions& o, std::ostream& out) {
  const auto [policy, may_leave] = o.planning;
  require(policy == EplbPolicy::balanced || !may_leave,
      "--replicas-may-leave-node: expected with --policy balanced, found ", policy_name(policy));
  if (o.format == Format::svg) {
    const std::string text = o.loads.empty() ? "" : read_file(o.loads);
    require(is_metrics(text),
        "--format svg: expected --loads OUT/metrics.jsonl of a training run, found ",
        o.loads.empty() ? "none" : o.loads);
    return paint_load_map(out, read_metrics(text, file_name(o.loads)));
  }
  std::vector<int64_t> numbers = {0, 1};
  const Loads loads = o.loads.empty() ? kExample : read_loads(o.loads, &numbers);
  EplbShape shape = o.shape;
  shape.experts = int(std::min(loads[0].size(), size_t(kMaxReplicas) + 1));
  shape.checked();
  std::vector<ExpertPlacement> plan;
  for (const std::vector<float>& load : loads)
    plan.push_back(plan_experts(load, shape, o.planning));
  if (o.format == Format::json) {
    out << to_json(plan, loads, ignored_nodes(shape)).dump() << '\n';
    return;
  }
  out << "loads: "
      << (o.loads.empty() ? "the example of EPLB's README (--loads FILE plans for yours)"
                          : file_name(o.loads))
      << "\n"
      << loads.size() << " layers of " << shape.experts << " experts -> " << shape.replicas
      << " replicas on " << shape.gpus << " GPUs of " << shape.nodes << " nodes, policy "
      << policy_name(policy) << (may_leave ? ", replicas may leave their node" : "") << '\n';
  if (const std::string remark = ignored_nodes(shape); !remark.empty()) out << remark << '\n';
  for (size_t layer = 0; layer < plan.size(); ++layer) {
    out << "\nlayer " << numbers[layer] << ": ";
    print_layer(plan[layer], loads[layer], out);
  }
}

}  // namespace duet
