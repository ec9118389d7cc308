// See loads.h.
#include "pipeline/insight/pictures/loads.h"

#include <algorithm>
#include <cfloat>
#include <map>
#include <optional>
#include <span>
#include <sstream>

#include "model/base/json.h"
#include "model/base/read_file.h"
#include "model/base/text.h"
#include "moe/eplb.h"

namespace duet {

bool is_metrics(const std::string& text) {
  const std::string line = text.substr(0, text.find('\n'));
  return line.find("\"step\"") != std::string::npos && line.find("\"moe\"") != std::string::npos;
}

// Bounds of what a run writes.
constexpr int64_t kMostTokens = int64_t(1) << 53, kMostSteps = 1'000'000'000, kMostLayers = 1 << 20;

// Adds a step, which has as many tokens as those before.
static void add_step(const Json& tokens, LayerHistory::Tokens& steps) {
  std::vector<double>& row = steps.emplace_back();
  for (const Json& x : tokens.items()) row.push_back(double(x.integer(0, kMostTokens)));
  const size_t allowed = std::max<size_t>(steps[0].size(), 1);
  require(
      row.size() == allowed, tokens.where(), ": found ", row.size(), " loads, allowed: ", allowed);
}

RunLoads read_metrics(const std::string& text, const std::string& path) {
  RunLoads run;
  std::istringstream file(text);
  // a killed run's last line may be half of one
  for (std::string line; std::getline(file, line) && !file.eof(); ++run.steps) {
    const std::string where = cat(path, ": line ", run.steps + 1);
    const Json json = Json::parse(line, where);
    const int64_t step = json.at("step").integer(0, kMostSteps);
    const Json::Array layers = json.at("moe").items();
    if (run.steps == 0) {
      require(!layers.empty(), where, ": moe: found no layer with experts, allowed: at least one");
      run.first_step = step;
      for (const Json& layer : layers) {
        const int64_t least = run.layers.empty() ? 0 : run.layers.back().layer + 1;
        run.layers.push_back({layer.at("layer").integer(least, kMostLayers)});
      }
    }
    const int64_t allowed = run.first_step + run.steps;
    require(step == allowed, where, ": step: found ", step, ", allowed: ", allowed);
    require(layers.size() == run.layers.size(), where, ": moe: found ", layers.size(),
        " layers, allowed: ", run.layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
      LayerHistory& layer = run.layers[i];
      layers[i].at("layer").integer(layer.layer, layer.layer);
      add_step(layers[i].at("tokens_per_expert"), layer.experts);
      const auto ranks = layers[i].find("tokens_per_rank");
      require(run.steps == 0 || !ranks == layer.ranks.empty(), where, ": tokens_per_rank: found ",
          ranks ? "it" : "none", ", allowed: in all lines or in none");
      if (ranks) add_step(*ranks, layer.ranks);
      const auto replan = layers[i].find("replan");
      if (replan && replan->at("moves").integer(0, kMostTokens) > 0) layer.moved.push_back(step);
    }
  }
  require(run.steps > 0, path, ": found no whole line, allowed: at least one, of a step");
  return run;
}

// --- in all --------------------------------------------------------------------------------------

namespace {

using Sums = std::map<int64_t, std::vector<double>>;  // over steps, by the number of the layer

float checked_load(double x, const std::string& where) {
  require(x >= 0 && x <= FLT_MAX, where, ": expected a load, a finite number >= 0, found ", x);
  return float(x);
}

// An element of an array, which knows its array's place alone.
float load_of(const Json& x, const std::string& where) try {
  return checked_load(x.number(), where);
} catch (const UsageError&) {
  throw UsageError(
      cat(where, ": expected a load, a finite number >= 0, found ", shortened(x.dump())));
}

// A layer, [layers][experts], or [steps][layers][experts], summed.
Sums parse_layers(const Json& json, const std::string& where) {
  Sums sum;
  const auto add = [&](const Json::Array& rows) {
    require(sum.empty() || rows.size() == sum.size(), where, ": found a step of ", rows.size(),
        " layers, allowed: ", sum.size(), " like the first");
    for (size_t layer = 0; layer < rows.size(); ++layer) {
      const Json::Array loads = rows[layer].items();
      if (sum[layer].empty()) sum[layer].resize(loads.size());
      require(loads.size() == sum[layer].size(), where, ", layer ", layer, ": found ", loads.size(),
          " experts, allowed: ", sum[layer].size(), " like the first step");
      for (size_t e = 0; e < loads.size(); ++e)
        sum[layer][e] += load_of(loads[e], cat(where, ", layer ", layer, ", expert ", e));
    }
  };
  const auto nested = [](const Json& j) { return !j.items().empty() && j.items()[0].is_array(); };
  if (nested(json) && nested(json.items()[0]))
    for (const Json& step : json.items()) add(step.items());
  else
    add(nested(json) || json.items().empty() ? json.items() : Json::Array{json});
  return sum;
}

// An array, or the object's member that other programs and EPLB's README call it.
Sums parse_json(const std::string& text, const std::string& path) {
  const Json json = Json::parse(text, path);
  if (json.is_array()) return parse_layers(json, path);
  const char* const key = json.find("logical_count") ? "logical_count" : "weight";
  return parse_layers(json.at(key), cat(path, ": ", key));
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
  const auto column = [&](const char* name) {
    const std::vector<std::string>& header = rows[0].cells;
    const auto found = std::ranges::find(header, name);
    require(found != header.end(), rows[0].where, ": expected a column ", name, ", found none");
    return size_t(found - header.begin());
  };
  const size_t layer_id = column("layer_id"), expert_id = column("expert_id"),
               count = column("count");
  Sums layers;
  size_t experts = 0;
  for (const Row& row : std::span(rows).subspan(1)) {
    require(row.cells.size() == rows[0].cells.size(), row.where, ": expected ",
        rows[0].cells.size(), " columns, found ", row.cells.size());
    const auto id = [&](size_t at, int below) {
      const std::optional<int> x = parse_number<int>(row.cells[at]);
      require(x && *x >= 0 && *x < below, row.where, ": ", rows[0].cells[at], ": found '",
          shortened(row.cells[at]), "', allowed: 0 to ", below - 1);
      return *x;
    };
    std::vector<double>& layer = layers[id(layer_id, 4096)];
    const auto expert = size_t(id(expert_id, kMaxReplicas));
    experts = std::max(experts, expert + 1);
    layer.resize(std::max(layer.size(), experts));
    layer[expert] += row.number(count);
  }
  for (auto& [id, layer] : layers) layer.resize(experts);
  return layers;
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
    std::vector<double>& layer = loads[int64_t(loads.size())];
    for (size_t i = 0; i < row.cells.size(); ++i) layer.push_back(row.number(i));
  }
  return loads;
}

// A run's loads, summed over its steps.
Sums summed(const RunLoads& run) {
  Sums sum;
  for (const LayerHistory& layer : run.layers) {
    std::vector<double>& all = sum[layer.layer];
    all.resize(layer.experts[0].size());
    for (const std::vector<double>& step : layer.experts)
      std::ranges::transform(step, all, all.begin(), std::plus{});
  }
  return sum;
}

}  // namespace

Loads read_loads(const std::string& file, std::vector<int64_t>* numbers) {
  const std::string text = read_file(file), path = file_name(file);
  const size_t first = std::min(text.find_first_not_of(" \t\r\n"), text.size());
  const bool json = text.substr(first, 1) == "{" || text.substr(first, 1) == "[";
  const Sums sums = is_metrics(text) ? summed(read_metrics(text, path))
      : json                         ? parse_json(text, path)
                                     : parse_csv(text, path);
  require(!sums.empty() && !sums.begin()->second.empty(), path,
      ": expected at least one layer of at least one expert, found none");
  const auto& [lowest, experts] = *sums.begin();
  Loads loads;
  if (numbers) numbers->clear();
  for (const auto& [number, layer] : sums) {
    require(layer.size() == experts.size(), path, ": layer ", number, ": expected ", experts.size(),
        " experts like layer ", lowest, ", found ", layer.size());
    for (loads.emplace_back(); const double x : layer)
      loads.back().push_back(checked_load(x, path));
    if (numbers) numbers->push_back(number);
  }
  return loads;
}

}  // namespace duet
