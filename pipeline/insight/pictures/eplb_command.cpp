// See eplb_command.h.
#include "pipeline/insight/pictures/eplb_command.h"

#include <algorithm>
#include <cfloat>
#include <iostream>
#include <map>
#include <sstream>

#include "model/base/command_line.h"
#include "model/base/hash.h"
#include "model/base/json.h"
#include "model/base/read_file.h"
#include "pipeline/insight/pictures/load_map.h"

namespace duet {

namespace {

using Loads = std::vector<std::vector<float>>;  // [layers][experts]
using Sums = std::vector<std::vector<double>>;  // the same, over steps

// The example of EPLB's README: two layers of twelve experts.
const Loads kExample = {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
    {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};

float checked_load(double x, const std::string& where) {
  require(x >= 0 && x <= FLT_MAX, where, ": expected a load, a finite number >= 0, found ", x);
  return float(x);
}

// [layers][experts], or [steps][layers][experts], summed.
Sums parse_layers(const Json& json, const std::string& where) {
  Sums sum;
  const auto add = [&](const Json& layers) {
    const Json::Array rows = layers.items();
    require(sum.empty() || rows.size() == sum.size(), where, ": found a step of ", rows.size(),
        " layers, allowed: ", sum.size(), " like the first");
    sum.resize(rows.size());
    for (size_t layer = 0; layer < rows.size(); ++layer) {
      const Json::Array loads = rows[layer].items();
      if (sum[layer].empty()) sum[layer].resize(loads.size());
      require(loads.size() == sum[layer].size(), where, ", layer ", layer, ": found ", loads.size(),
          " experts, allowed: ", sum[layer].size(), " like the first step");
      for (size_t e = 0; e < loads.size(); ++e)
        sum[layer][e] += checked_load(loads[e].number(), cat(where, ", layer ", layer));
    }
  };
  const Json::Array outer = json.items();
  const bool steps = !outer.empty() && outer[0].is_array() && !outer[0].items().empty() &&
      outer[0].items()[0].is_array();
  for (const Json& step : steps ? outer : Json::Array{json}) add(step);
  return sum;
}

// An array, or the object's member that other programs and EPLB's README call it.
Sums parse_json(const std::string& text, const std::string& path) {
  const Json json = Json::parse(text, path);
  if (json.is_array()) return parse_layers(json, path);
  if (const auto sglang = json.find("logical_count"))
    return parse_layers(*sglang, path + ": logical_count");
  return parse_layers(json.at("weight"), path + ": weight");
}

// A line of a CSV with commas between, and where it stands.
struct Row {
  std::string where;
  std::vector<std::string> cells;
  double number(size_t column) const {
    const std::string at = cat(where, ", column ", column + 1);
    const std::optional<double> x = parse_number<double>(cells[column]);
    require(x.has_value(), at, ": expected a number, found '", shortened(cells[column]), "'");
    return checked_load(*x, at);
  }
};

// vLLM's: an expert a line, under these names; what comes again, another step's, is added.
Sums parse_listed(const std::vector<Row>& rows) {
  constexpr const char* kNames[] = {"layer_id", "expert_id", "count"};
  constexpr int kBelow[] = {4096, kMaxReplicas};
  size_t columns[3];
  for (size_t i = 0; i < 3; ++i) {
    const std::vector<std::string>& header = rows[0].cells;
    columns[i] = size_t(std::find(header.begin(), header.end(), kNames[i]) - header.begin());
    require(columns[i] < header.size(), rows[0].where, ": expected a column ", kNames[i],
        ", found none");
  }
  std::map<int, std::vector<double>> layers;
  size_t experts = 0;
  for (const Row& row : std::span(rows).subspan(1)) {
    require(row.cells.size() == rows[0].cells.size(), row.where, ": expected ",
        rows[0].cells.size(), " columns, found ", row.cells.size());
    int id[2];  // layer, expert
    for (size_t i = 0; i < 2; ++i) {
      const std::string& cell = row.cells[columns[i]];
      const std::optional<int> x = parse_number<int>(cell);
      require(x && *x >= 0 && *x < kBelow[i], row.where, ": ", kNames[i], ": found '",
          shortened(cell), "', allowed: 0 to ", kBelow[i] - 1);
      id[i] = *x;
    }
    std::vector<double>& layer = layers[id[0]];
    experts = std::max(experts, size_t(id[1]) + 1);
    layer.resize(std::max(layer.size(), experts));
    layer[size_t(id[1])] += row.number(columns[2]);
  }
  Sums sum;
  for (auto& [id, layer] : layers) {
    layer.resize(experts);
    sum.push_back(std::move(layer));
  }
  return sum;
}

Sums parse_csv(const std::string& text, const std::string& path) {
  std::vector<Row> rows;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number)
    if (!trimmed(line).empty()) rows.push_back({cat(path, ": line ", number), split(line)});
  if (text.find("expert_id") < text.find('\n')) return parse_listed(rows);
  Sums loads;
  for (const Row& row : rows) {
    loads.emplace_back();
    for (size_t i = 0; i < row.cells.size(); ++i) loads.back().push_back(row.number(i));
  }
  return loads;
}

// A run's loads, summed over its steps.
Sums summed(const RunLoads& run) {
  Sums sum;
  for (const LayerHistory& layer : run.layers) {
    sum.emplace_back(layer.experts[0].size(), 0);
    for (const std::vector<double>& step : layer.experts)
      std::ranges::transform(step, sum.back(), sum.back().begin(), std::plus{});
  }
  return sum;
}

Loads read_loads(const std::string& option) {
  const std::string text = read_file(option), path = file_name(option);
  const size_t first = std::min(text.find_first_not_of(" \t\r\n"), text.size());
  const bool json = text.substr(first, 1) == "{" || text.substr(first, 1) == "[";
  const Sums sums = is_metrics(text) ? summed(read_metrics(text, path))
      : json                         ? parse_json(text, path)
                                     : parse_csv(text, path);
  require(!sums.empty() && !sums[0].empty(), path,
      ": expected at least one layer of at least one expert, found none");
  Loads loads;
  for (const std::vector<double>& layer : sums) {
    require(layer.size() == sums[0].size(), path, ": layer ", loads.size(), ": expected ",
        sums[0].size(), " experts like layer 0, ", "found ", layer.size());
    for (loads.emplace_back(); const double x : layer)
      loads.back().push_back(checked_load(x, path));
  }
  return loads;
}

// Why the nodes do not count; empty where they do.
std::string ignored_nodes(const EplbShape& shape) {
  return shape.checked().nodes == shape.nodes
      ? ""
      : cat("--nodes ", shape.nodes, " does not divide --groups ", shape.groups,
            ": planned without groups and nodes");
}

Json to_json(
    const std::vector<ExpertPlacement>& plan, const Loads& loads, const std::string& remark) {
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
  cli.text("--loads", o->loads,
      "a run's metrics.jsonl, CSV with a layer a row, JSON [layers][experts], SGLang's or vLLM's "
      "dump; - for stdin; default: loads made up");
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
  const Loads loads = o.loads.empty() ? kExample : read_loads(o.loads);
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
    out << "\nlayer " << layer << ": ";
    print_layer(plan[layer], loads[layer], out);
  }
}

}  // namespace duet
