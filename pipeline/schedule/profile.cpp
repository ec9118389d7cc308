// See profile.h.
#include "pipeline/schedule/profile.h"

#include <algorithm>
#include <map>

#include "model/base/text.h"

namespace duet {

bool CostProfile::fits(const Schedule& s) const {
  return stages.size() == 1 || int(stages.size()) == s.model_stages();
}

double CostProfile::of(const Schedule& s, const Action& a) const {
  const StageCosts& own = of_stage(s.model_stage(a.stage));
  if (a.overlapped()) {
    const StageCosts& other = of_stage(s.model_stage(a.b_stage));
    if (&own == &other) return own.FB;
    const double F = own.F, B = other.B();
    return std::max({F, B, F + B - (own.saved() + other.saved()) / 2});
  }
  switch (a.kind) {
    case Kind::F: return own.F;
    case Kind::I: return own.I;
    case Kind::W: return own.W;
    case Kind::B: return own.B();
    default: return 0;  // messages take no time
  }
}

// Of one cost in any unit: sums of a schedule's stay numbers.
constexpr double kLeastCost = 1e-12, kMostCost = 1e9;

CostProfile read_profile(const std::string& path) {
  const Json json = Json::load(path);
  require(json.at("unit").string() == "s", path, ": unit: expected \"s\", found ",
      json.at("unit").dump());
  const auto cost = [](const Json& stage, const char* key) {
    return stage.at(key).number(0, kMostCost);
  };
  CostProfile profile;
  const Json stages = json.at("stages");
  for (const Json& stage : stages.items()) {
    const StageCosts c = {cost(stage, "F"), cost(stage, "I"), cost(stage, "W"), cost(stage, "FB")};
    require(std::min(c.F, c.B()) >= kLeastCost, stage.where(),
        ": expected F and I + W of at least ", kLeastCost, ", found F ", c.F, ", I ", c.I, ", W ",
        c.W);
    profile.stages.push_back(c);
  }
  require(!profile.stages.empty(), path, ": stages: expected one or more, found none");
  if (const auto message = json.find("message"))
    profile.forward_message = cost(*message, "F"), profile.backward_message = cost(*message, "B");
  return profile;
}

Json to_json(const StageCosts& c) {
  return Json::object({{"F", c.F}, {"I", c.I}, {"W", c.W}, {"FB", c.FB}});
}

std::string write_profile(const CostProfile& profile) {
  Json stages = Json::array();
  for (const StageCosts& s : profile.stages) stages.push(to_json(s));
  const Json message =
      Json::object({{"F", profile.forward_message}, {"B", profile.backward_message}});
  return Json::object({{"unit", "s"}, {"stages", stages}, {"message", message}}).dump(1) + "\n";
}

StageCosts parse_costs(const std::string& text) {
  StageCosts c;
  c.FB = 0;
  const std::map<std::string, double*> costs = {
      {"F", &c.F}, {"I", &c.I}, {"W", &c.W}, {"FB", &c.FB}};
  read_keys("--cost", text,
      cat("costs from ", kLeastCost, " to ", kMostCost, ", such as F=1,I=1,W=1,FB=2.4"),
      [&](const std::string& key, const std::string& value) {
        const std::optional<double> x = parse_number<double>(value);
        if (!costs.contains(key) || !x || *x < kLeastCost || *x > kMostCost) return false;
        *costs.at(key) = *x;
        return true;
      });
  if (c.FB == 0) c.FB = c.F + c.B();
  return c;
}

}  // namespace duet
