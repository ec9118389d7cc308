// See profile.h. Read next: simulator.cpp.
#include "pipeline/schedule/profile.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

namespace duet {

double CostProfile::of(const Schedule& s, const Action& a) const {
  const StageCosts& own = stages[size_t(s.model_stage(a.stage))];
  if (a.overlapped()) {
    const StageCosts& other = stages[size_t(s.model_stage(a.b_stage))];
    const double B = other.I + other.W;
    return std::max(std::max(own.F, B), own.F + B - (own.saved() + other.saved()) / 2);
  }
  switch (a.kind) {
    case Kind::F: return own.F;
    case Kind::I: return own.I;
    case Kind::W: return own.W;
    case Kind::B: return own.I + own.W;
    default: return 0;
  }
}

CostProfile read_profile(const std::string& path) {
  std::ifstream file(path);
  require(file.good(), path, ": cannot be opened");
  const auto json = nlohmann::ordered_json::parse(file, nullptr, false);
  require(json.is_object() && json.value("unit", "") == "s" && json.contains("stages") &&
          json["stages"].is_array() && !json["stages"].empty(),
      path,
      ": expected a cost profile, {\"unit\": \"s\", \"stages\": [{\"F\", \"I\", \"W\", "
      "\"FB\"}, ...], \"message\": {\"F\", \"B\"}}");
  const auto cost = [&](const nlohmann::ordered_json& from, const char* key,
                        const std::string& where) {
    require(from.is_object() && from.contains(key) && from[key].is_number() && from[key] >= 0, path,
        ": ", where, ".", key, ": expected seconds, 0 or more, found ",
        from.is_object() && from.contains(key) ? from[key].dump() : "nothing");
    return from[key].get<double>();
  };
  CostProfile profile;
  for (const auto& stage : json["stages"]) {
    const std::string where = cat("stages[", profile.stages.size(), "]");
    profile.stages.push_back({cost(stage, "F", where), cost(stage, "I", where),
        cost(stage, "W", where), cost(stage, "FB", where)});
  }
  if (json.contains("message")) {
    profile.forward_message = cost(json["message"], "F", "message");
    profile.backward_message = cost(json["message"], "B", "message");
  }
  return profile;
}

std::string write_profile(const CostProfile& profile) {
  nlohmann::ordered_json json = {{"unit", "s"}, {"stages", nlohmann::ordered_json::array()}};
  for (const StageCosts& s : profile.stages)
    json["stages"].push_back({{"F", s.F}, {"I", s.I}, {"W", s.W}, {"FB", s.FB}});
  json["message"] = {{"F", profile.forward_message}, {"B", profile.backward_message}};
  return json.dump(1) + "\n";
}

}  // namespace duet
