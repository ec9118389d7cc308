// See report.h.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>

#include "pipeline/insight/trace/attribute.h"
#include "pipeline/insight/trace/report.h"

namespace duet {
namespace {

using Json = nlohmann::ordered_json;

Json or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

Json components_of(const RankTrace& rank, const Names& names) {
  std::vector<std::pair<int32_t, const Component*>> order;  // most busy first
  for (const auto& [name, c] : rank.components) order.push_back({name, &c});
  std::ranges::stable_sort(order, std::greater{}, [](const auto& x) { return x.second->busy; });
  Json all = Json::object();
  for (const auto& [name, c] : order) {
    Json j = {{"busy_us", us(c->busy)}, {"count", c->count}, {"median_us", us(c->median)},
        {"class", kWorks[int(c->work)]}};
    if (c->phase) {
      j["phase"] = std::string(1, c->phase);
      for (const auto& [layer, busy] : c->layers)
        j["layers"][layer < 0 ? "none" : std::to_string(layer)] = us(busy);
    }
    all[names[name]] = j;
  }
  return all;
}

Json rank_json(const Analysis& a, size_t index) {
  const RankTrace& rank = a.ranks[index];
  const Measure& m = rank.measure;
  int64_t by_cause[5] = {}, slowed = 0;
  for (const Conflict& c : a.conflicts)
    if (c.rank == index) (c.slowed() ? slowed : by_cause[int(c.cause)]) += c.lost;
  Json causes = Json::object(), streams = Json::object();
  for (int i = 0; i < 5; ++i) causes[kCauses[i]] = us(by_cause[i]);
  for (const auto& [stream, s] : rank.streams)
    streams[rank.recording->streams[size_t(stream)].label] = {{"compute_us", us(s.busy[0])},
        {"comm_us", us(s.busy[1])}, {"memory_us", us(s.busy[2])}, {"events", s.events}};
  return {{"rank", rank.number}, {"file", rank.recording->file}, {"gpu", rank.device},
      {"span_us", us(m.overlap.span)}, {"compute_busy_us", us(m.overlap.compute)},
      {"comm_busy_us", us(m.overlap.comm)}, {"memory_busy_us", us(m.memory)},
      {"overlap_us", us(m.overlap.covered)}, {"overlap_ratio", or_null(m.ratio())},
      {"exposed_comm_us", us(m.exposed())}, {"idle_us", us(m.idle)}, {"serial_us", us(m.serial())},
      {"speedup_vs_serial", or_null(m.speedup())}, {"lower_bound_us", us(m.lower_bound())},
      {"overlap_efficiency", or_null(m.efficiency())}, {"slowed_us", us(slowed)},
      {"clock_moved_us", us(rank.clock_moved)}, {"clock_error_us", us(rank.clock_error)},
      {"kernels", {{"compute", m.kernels[0]}, {"comm", m.kernels[1]}, {"memory", m.kernels[2]}}},
      {"components", components_of(rank, a.names)}, {"exposed_by_cause_us", causes},
      {"streams", streams}};
}

Json conflict_json(const Analysis& a, const Conflict& c) {
  const auto name = [&](const GpuEvent* e, int32_t GpuEvent::*of) {
    return e ? Json(a.names[e->*of]) : Json();
  };
  const auto kernel = &GpuEvent::name, component = &GpuEvent::component;
  Json j = {{"kind", c.slowed() ? "slowed" : "exposed"}, {"cause", kCauses[int(c.cause)]},
      {"rank", a.ranks[c.rank].number}, {"start_us", a.since_origin_us(c.rank, c.time.begin)},
      {"end_us", a.since_origin_us(c.rank, c.time.end)}, {"lost_us", us(c.lost)},
      {"comm", name(c.comm, kernel)}, {"comm_component", name(c.comm, component)},
      {"waiting", name(c.waiting, kernel)}, {"waiting_component", name(c.waiting, component)}};
  if (c.slowed()) j["samples_beside"] = c.with, j["samples_alone"] = c.without;
  return j;
}

Json collectives_json(const Analysis& a) {
  Json all = Json::object();
  for (const auto& [name, c] : a.matched.by_name) {
    Json last = Json::object(), bandwidth = Json::array();
    for (const auto& [rank, n] : c.last) last[std::to_string(rank)] = n;
    for (const auto& [bytes, found] : c.bandwidth)
      bandwidth.push_back({{"bytes", bytes}, {"count", found.first},
          {"gb_per_s", found.second / double(found.first)}});
    all[a.names[name]] = {{"count", c.count}, {"waiting_us", us(c.waiting)},
        {"skew_us", us(c.skew)}, {"transfer_us", us(c.transfer)}, {"last", last},
        {"bandwidth", bandwidth}};
  }
  return all;
}

}  // namespace

void report_json(std::ostream& out, const Analysis& a, int top) {
  Json ranks = Json::array(), conflicts = Json::array(), slack = Json::array();
  for (size_t r = 0; r < a.ranks.size(); ++r) ranks.push_back(rank_json(a, r));
  const size_t listed = top > 0 ? std::min(size_t(top), a.conflicts.size()) : a.conflicts.size();
  for (size_t i = 0; i < listed; ++i) conflicts.push_back(conflict_json(a, a.conflicts[i]));
  for (const Slack& s : a.slacks)
    slack.push_back({{"rank", a.ranks[s.rank].number}, {"comm", a.names[s.comm]},
        {"layer", s.layer}, {"consumer", a.names[s.consumer]}, {"duration_us", us(s.duration)},
        {"slack_us", us(s.slack)}});
  Json unclassified = Json::array();
  if (a.nothing_is_comm())
    for (const auto& [name, busy, count] : a.most_time(top > 0 ? size_t(top) : 10))
      unclassified.push_back({{"name", a.names[name]}, {"busy_us", us(busy)}, {"count", count}});
  const Json all = {{"ranks", ranks}, {"conflict_points", conflicts}, {"slack", slack},
      {"collectives", collectives_json(a)}, {"left_out", a.left_out}, {"warnings", a.warnings},
      {"unclassified", unclassified}};
  out << all.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
}

using Seconds = std::map<std::string, double>;  // by kind of action, or "s"

// A rehearsal's actions are its components; a B without I and W beside it is split evenly.
static Seconds rehearsed_stage(const std::map<std::string, Seconds>& components) {
  const auto action = [&](const char* name, double otherwise) {
    const auto found = components.find(name);
    return found == components.end() ? otherwise : found->second.at("s");
  };
  const double half_b = action("B", 0) / 2, F = action("F", 0), I = action("I", half_b),
               W = action("W", half_b);
  if (!F || !I) return {};
  return {{"F", F}, {"I", I}, {"W", W}, {"FB", action("pair", F + I + W)}};
}

std::string profile_json(const Analysis& a) {
  std::map<int32_t, std::vector<const Component*>> components;  // by name, of the ranks
  bool has_W = false;
  for (const RankTrace& rank : a.ranks)
    for (const auto& [name, c] : rank.components) {
      components[name].push_back(&c);
      has_W |= c.phase == 'W';
    }
  std::map<std::string, Seconds> parts;
  Seconds stage;
  for (const auto& [name, of_ranks] : components) {
    std::vector<int64_t> medians;
    for (const Component* c : of_ranks) medians.push_back(c->median_occurrence);
    const bool computes = of_ranks[0]->work == Work::compute;
    const std::string& text = a.names[name];
    const std::string_view known = part_of(text);
    const char phase = of_ranks[0]->phase;
    const bool split = phase == 'B' && !has_W && known != "dispatch" && known != "combine";
    const size_t suffix = !phase ? 0 : text.back() == ')' ? 3 : 2;
    auto& part = parts[known.empty() ? text.substr(0, text.size() - suffix) : std::string(known)];
    const std::string key = !phase ? "s" : phase == 'B' ? "I" : std::string(1, phase);
    for (const std::string& each : split ? std::vector<std::string>{"I", "W"} : std::vector{key}) {
      const double seconds = double(median(medians)) * 1e-9 / (split ? 2 : 1);
      part[each] += seconds;
      if (phase && computes) stage[each] += seconds;
    }
  }
  Json stages = Json::array(), files = Json::array();
  if (stage.empty())
    stage = rehearsed_stage(parts);
  else
    stage["FB"] = stage["F"] + stage["I"] + stage["W"];
  if (!stage.empty())
    stages.push_back(
        {{"F", stage["F"]}, {"I", stage["I"]}, {"W", stage["W"]}, {"FB", stage["FB"]}});
  for (const Recording& r : a.recordings) files.push_back(r.file);
  const Json all = {{"unit", "s"}, {"stages", stages}, {"from", files}, {"components", parts}};
  return all.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace duet
