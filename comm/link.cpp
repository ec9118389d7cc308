// A link in words and in nanoseconds.
// Read next: link_times.h.
#include "comm/link.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>

#include "model/base/check.h"

namespace duet {
namespace {

struct Unit {
  const char* name;
  double value;
};
constexpr Unit kBandwidths[] = {{"GB/s", 1e9}, {"MB/s", 1e6}, {"KB/s", 1e3}, {"B/s", 1}};
constexpr Unit kTimes[] = {{"s", 1}, {"ms", 1e-3}, {"us", 1e-6}, {"ns", 1e-9}};

// "40GB/s" in `units`, or -1.
template <size_t n> double parse_quantity(const std::string& text, const Unit (&units)[n]) {
  double value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !std::isfinite(value)) return -1;
  const std::string unit(stop, text.data() + text.size());
  for (const Unit& u : units)
    if (unit == u.name) return value * u.value;
  return -1;
}

std::string bandwidth_text(double bytes_per_s) {
  for (const Unit& u : kBandwidths)
    if (bytes_per_s >= u.value)
      return std::isinf(bytes_per_s) ? "no limit" : cat(bytes_per_s / u.value, " ", u.name);
  return cat(bytes_per_s, " B/s");
}

std::chrono::nanoseconds nanoseconds(double seconds) {
  return std::chrono::nanoseconds(std::llround(seconds * 1e9));
}

}  // namespace

std::chrono::nanoseconds LinkModel::duration(int from, int to, int64_t bytes) const {
  return nanoseconds(double(bytes) / (same_node(from, to) ? intra : inter));
}

std::chrono::nanoseconds LinkModel::delay() const { return nanoseconds(latency); }

bool LinkModel::emulated() const {
  return std::isfinite(intra) || std::isfinite(inter) || latency > 0;
}

std::string LinkModel::text() const {
  return cat(bandwidth_text(intra), " within a node, ", bandwidth_text(inter),
      " between nodes, latency ", latency * 1e6, " us");
}

LinkModel parse_link(const std::string& text, int ranks_per_node) {
  LinkModel model;
  model.ranks_per_node = ranks_per_node;
  std::string seen;
  std::istringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    const std::string key = item.substr(0, item.find('=')),
                      value = item.substr(std::min(item.size(), key.size() + 1));
    const double x =
        key == "latency" ? parse_quantity(value, kTimes) : parse_quantity(value, kBandwidths);
    const bool known =
        key == "intra" || key == "inter" ? x >= 1e3 : key == "latency" && x >= 0 && x <= 1;
    require(known && seen.find(key) == std::string::npos, "--link: found '", item, "' in '", text,
        "', allowed: intra= and inter= with GB/s, MB/s or KB/s, at least 1KB/s, latency= with s, "
        "ms, us or ns, at most 1s,",
        " each once, e.g. intra=160GB/s,inter=40GB/s,latency=5us");
    seen += key + ",";
    (key == "intra" ? model.intra : key == "inter" ? model.inter : model.latency) = x;
  }
  return model;
}

}  // namespace duet
