// See eplb_command.h.
#include "pipeline/insight/pictures/eplb_command.h"

#include <algorithm>
#include <cfloat>
#include <fstream>
#include <iostream>

#include "model/base/command_line.h"
#include "model/base/json.h"
#include "moe/eplb.h"
#include "pipeline/insight/pictures/load_map.h"

namespace duet {

namespace {

using Loads = std::vector<std::vector<float>>;  // [layers][experts]

// The example of EPLB's README: two layers of twelve experts.
const Loads kExample = {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
    {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};

float checked_load(double x, const std::string& where) {
  require(x >= 0 && x <= FLT_MAX, where, ": expected a load, a finite number >= 0, found ", x);
  return float(x);
}

Loads parse_json(const std::string& text, const std::string& path) {
  const Json json = Json::parse(text, path);
  Loads loads;
  for (const Json& layer : json.at("weight").items()) {
    std::vector<float>& row = loads.emplace_back();
    const std::string where = cat(path, ": weight, layer ", loads.size() - 1);
    for (const Json& x : layer.items()) row.push_back(checked_load(x.number(), where));
  }
  return loads;
}

Loads parse_csv(std::istream& file, const std::string& path) {
  Loads loads;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    std::vector<float>& row = loads.emplace_back();
    for (const std::string& cell : split(line)) {
      const std::string where = cat(path, ": line ", number, ", column ", row.size() + 1);
      const std::optional<double> x = parse_number<double>(cell);
      require(x.has_value(), where, ": expected a number, found '", shortened(cell), "'");
      row.push_back(checked_load(*x, where));
    }
  }
  return loads;
}

// A run's loads, summed over its steps.
Loads summed(const RunLoads& run) {
  Loads loads;
  for (const LayerHistory& layer : run.layers) {
    std::vector<double> sum(layer.experts[0].size(), 0);
    for (const std::vector<double>& step : layer.experts)
      for (size_t e = 0; e < sum.size(); ++e) sum[e] += step[e];
    loads.emplace_back(sum.begin(), sum.end());
  }
  return loads;
}

Loads read_loads(const std::string& path) {
  std::ifstream file(path);
  require(file.good(), "--loads ", path, ": cannot be read");
  if (is_metrics(path)) return summed(read_metrics(path));
  file >> std::ws;
  Loads loads;
  if (file.peek() == '{') {
    loads = parse_json({std::istreambuf_iterator<char>(file), {}}, path);
  } else {
    file.clear();
    file.seekg(0);
    loads = parse_csv(file, path);
  }
  require(!loads.empty() && !loads[0].empty(), path,
      ": expected at least one layer of at least one expert, found none");
  for (size_t i = 0; i < loads.size(); ++i)
    require(loads[i].size() == loads[0].size(), path, ": layer ", i, ": expected ", loads[0].size(),
        " experts like layer 0, ", "found ", loads[i].size());
  return loads;
}

EplbOptions policy_of(const EplbCommandOptions& o) {
  require(o.policy == EplbPolicy::balanced || !o.replicas_may_leave_node,
      "--replicas-may-leave-node: expected with --policy balanced, found ", policy_name(o.policy));
  return {o.policy, o.replicas_may_leave_node};
}

EplbShape shape_of(const EplbCommandOptions& o, size_t experts) {
  EplbShape shape{.experts = int(std::min(experts, size_t(kMaxReplicas) + 1)),
      .replicas = o.replicas,
      .groups = o.groups,
      .nodes = o.nodes,
      .gpus = o.gpus};
  shape.checked();
  return shape;
}

Json to_json(const std::vector<ExpertPlacement>& plan, const Loads& loads) {
  int max_count = 0;
  for (const ExpertPlacement& p : plan) max_count = std::max(max_count, p.max_count);
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
  return Json::object({{"phy2log", phy2log}, {"log2phy", log2phy}, {"logcnt", logcnt},
      {"gpu_load", gpu}, {"balancedness", balance}});
}

// --- text ----------------------------------------------------------------------------------------

// A bar of `width` columns for a fraction of 1, drawn to an eighth of a column.
std::string bar(double fraction, int width) {
  static const char* const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int length = int(std::min(1., fraction) * width * 8 + 0.5), full = length / 8,
            part = length % 8;
  std::string s;
  for (int i = 0; i < full; ++i) s += "█";
  return s + eighths[part] + std::string(size_t(width - full - (part > 0)), ' ');
}

void print_layer(const ExpertPlacement& plan, std::span<const float> load, std::ostream& out) {
  const std::vector<double> before =
      loads_in_order({std::vector<double>(load.begin(), load.end())}, size_t(plan.gpus))[0];
  const std::vector<double> after = gpu_load(plan, load);
  const double scale = std::max({max_of(before), max_of(after), 1e-30});
  out << format("balancedness %.3f -> %.3f, max load %.6g -> %.6g, plan %016llx\n",
             balancedness(before), balancedness(after), max_of(before), max_of(after),
             static_cast<unsigned long long>(plan.hash()))
      << "  GPU  experts in order                   planned                            experts\n";
  for (int g = 0; g < plan.gpus; ++g) {
    const double x = before[size_t(g)], y = after[size_t(g)];
    out << format("%5d  %s %-9.6g %s %-9.6g", g, bar(x / scale, 24).c_str(), x,
        bar(y / scale, 24).c_str(), y);
    for (int i = 0; i < plan.slots_per_gpu(); ++i)
      out << ' ' << plan.phy2log[size_t(g * plan.slots_per_gpu() + i)];
    out << '\n';
  }
}

}  // namespace

void add_eplb_command(CLI::App& duet, int&) {
  Command cli(
      duet, "eplb", "plan where experts and their replicas go; without options a demonstration");
  const auto o = std::make_shared<EplbCommandOptions>();
  cli.text("--loads", o->loads,
      "JSON {\"weight\": [[...]]}, CSV, a layer a row, or a run's metrics.jsonl, summed; default: "
      "loads made up");
  cli.number("--replicas", o->replicas, 1, kMaxReplicas, "physical experts of a layer, in all");
  cli.number("--groups", o->groups, 1, kMaxReplicas, "groups of experts");
  cli.number("--nodes", o->nodes, 1, kMaxReplicas, "nodes");
  cli.number("--gpus", o->gpus, 1, kMaxReplicas, "GPUs, in all");
  cli.choice("--policy", o->policy, {EplbPolicy::deepseek, EplbPolicy::balanced}, policy_name,
      "the published algorithm, or duet's own");
  cli.flag("--replicas-may-leave-node", o->replicas_may_leave_node,
      "balanced: redundant replicas may live on another node");
  cli.choice("--format", o->format, {Format::text, Format::json, Format::svg}, format_name,
      "svg: a run's metrics.jsonl as a heat map of loads over steps");
  cli.runs([o] { eplb_command(*o, std::cout); });
}

void eplb_command(const EplbCommandOptions& o, std::ostream& out) {
  const EplbOptions policy = policy_of(o);
  if (o.format == Format::svg) {
    require(is_metrics(o.loads),
        "--format svg: expected --loads OUT/metrics.jsonl of a training run, found ",
        o.loads.empty() ? "none" : o.loads);
    return paint_load_map(out, read_metrics(o.loads));
  }
  const Loads loads = o.loads.empty() ? kExample : read_loads(o.loads);
  const EplbShape shape = shape_of(o, loads[0].size());
  std::vector<ExpertPlacement> plan;
  for (const std::vector<float>& load : loads) plan.push_back(plan_experts(load, shape, policy));
  if (o.format == Format::json) {
    out << to_json(plan, loads).dump() << '\n';
    return;
  }
  out << "loads: "
      << (o.loads.empty() ? "the example of EPLB's README (--loads FILE plans for yours)" : o.loads)
      << "\n"
      << loads.size() << " layers of " << shape.experts << " experts -> " << shape.replicas
      << " replicas on " << shape.gpus << " GPUs of " << shape.nodes << " nodes, policy "
      << policy_name(o.policy)
      << (o.replicas_may_leave_node ? ", replicas may leave their node" : "") << '\n';
  if (shape.checked().nodes != shape.nodes)
    out << "--nodes " << o.nodes << " does not divide --groups " << o.groups
        << ": planned without groups and nodes\n";
  for (size_t layer = 0; layer < plan.size(); ++layer) {
    out << "\nlayer " << layer << ": ";
    print_layer(plan[layer], loads[layer], out);
  }
}

}  // namespace duet
