// See classify.h.
#include "pipeline/insight/trace/classify.h"

#include <algorithm>
#include <regex>

#include "model/base/json.h"

namespace duet {
namespace {

bool has_any(const std::string& text, std::initializer_list<const char*> parts) {
  return std::any_of(
      parts.begin(), parts.end(), [&](const char* part) { return text.find(part) != text.npos; });
}

constexpr size_t kMatched = 1000;  // characters of a name: std::regex recurses
constexpr const char* kPatterns[] = {"name", "annotation", "stream"};

}  // namespace

struct Classifier::Rule {
  std::optional<std::regex> patterns[3];  // as kPatterns
  std::optional<Work> work;
  std::string component;

  bool matches(std::initializer_list<std::string> texts) const {
    return std::equal(texts.begin(), texts.end(), patterns, [](const auto& text, const auto& p) {
      return !p || std::regex_search(text.substr(0, kMatched), *p);
    });
  }
  void set(const std::string& where, const std::string& key, const std::string& text) {
    const auto* pattern = std::ranges::find(kPatterns, key);
    require(text.size() <= kMatched, where, key, ": expected at most ", kMatched, " characters");
    if (pattern != std::end(kPatterns)) try {
        patterns[pattern - kPatterns] = std::regex(text);
      } catch (const std::regex_error& error) {
        throw UsageError(cat(where, key, ": expected a regular expression, found '", text, "' (",
            error.what(), ")"));
      }
    else if (key == "component")
      component = text;
    else {
      require(key == "class", where, "found \"", key,
          "\", allowed are name, annotation, stream, class, component");
      const auto* found = std::find(kWorks, kWorks + 3, text);
      require(found != kWorks + 3, where, "class: found '", text,
          "', allowed are compute, communication, memory");
      work = Work(found - kWorks);
    }
  }
};

Work work_of_name(std::string_view name) {
  const std::string s = lower(name);
  const bool copies = s.starts_with("memcpy") || s.starts_with("memset") || s.starts_with("copy");
  if (copies && has_any(s, {"ptop", "peer"})) return Work::comm;
  if (s.starts_with("memcpy") || s.starts_with("memset")) return Work::memory;
  const bool comm = has_any(s,
      {"nccl", "rccl", "msccl", "oneccl", "dpsk::ep", "deep_ep", "deepep", "hybrid_ep", "hybridep",
          "nvshmem", "rocshmem", "::internode", "::intranode", "allreduce", "all_reduce",
          "cross_device_reduce", "allgather", "all_gather", "reducescatter", "reduce_scatter",
          "alltoall", "all_to_all", "all2all", "quickreduce", "userbuffers", "mori::", "pplx::"});
  return comm ? Work::comm : Work::compute;
}

Classifier::~Classifier() = default;

Classifier::Classifier(const std::string& file, bool by_annotation)
    : by_annotation_(by_annotation) {
  if (file.empty()) return;
  Json rules = Json::load(file);
  if (!rules.is_array()) rules = rules.at("rules");
  for (const Json& json : rules.items()) {
    const std::string where = cat("--classify: ", file, ": rule ", rules_.size() + 1, ": ");
    Rule& rule = rules_.emplace_back();
    for (const auto& [key, value] : json.members()) rule.set(where, key, value.string());
    require(std::ranges::any_of(rule.patterns, [](const auto& p) { return p.has_value(); }), where,
        "expected at least one of name, annotation, stream");
    require(rule.work || !rule.component.empty(), where, "expected a class or a component");
  }
}

void Classifier::classify(Recording& recording, Names& names) const {
  std::unordered_map<int32_t, Work> by_name;
  std::map<std::tuple<int32_t, int32_t, int32_t>, const Rule*> ruled;
  const auto rule_for = [&](const GpuEvent& e) -> const Rule* {
    const auto [found, added] = ruled.emplace(std::tuple(e.name, e.component, e.stream), nullptr);
    if (!added) return found->second;
    const auto rule = std::ranges::find_if(rules_, [&](const Rule& r) {
      return r.matches(
          {names[e.name], names[e.component], recording.streams[size_t(e.stream)].label});
    });
    return found->second = rule == rules_.end() ? nullptr : &*rule;
  };
  for (GpuEvent& e : recording.gpu) {
    const Rule* rule = rules_.empty() || e.work >= Work::wait ? nullptr : rule_for(e);
    if (!e.own) {
      const auto [named, added] = by_name.emplace(e.name, Work::compute);
      if (added) named->second = work_of_name(names[e.name]);
      if (e.work == Work::compute || named->second == Work::comm) e.work = named->second;
      if (e.bytes >= 0) e.work = Work::comm;
      if (by_annotation_ && e.work == Work::compute) {
        const std::string annotation = lower(names[e.component]);
        if (annotation.starts_with("dispatch") || annotation.starts_with("combine"))
          e.work = Work::comm;
      }
    }
    if (!rule) continue;
    if (rule->work) e.work = *rule->work;
    if (!rule->component.empty()) e.component = names.id(rule->component);
  }
}

}  // namespace duet
