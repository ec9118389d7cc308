// See link.h. A link in words and in nanoseconds.
#include "comm/link.h"

#include <cmath>

#include "model/base/check.h"
#include "model/base/text.h"

namespace duet {
namespace {

std::string bandwidth_text(double bytes_per_s) {
  for (const Unit& u : kBandwidths)
    if (bytes_per_s >= u.value)
      return std::isinf(bytes_per_s) ? "no limit" : cat(bytes_per_s / u.value, " ", u.name);
  return cat(bytes_per_s, " B/s");
}

uint64_t nanoseconds(double seconds) { return uint64_t(std::llround(seconds * 1e9)); }

}  // namespace

uint64_t LinkModel::duration(int from, int to, int64_t bytes) const {
  return nanoseconds(double(bytes) / (same_node(from, to) ? intra : inter));
}

uint64_t LinkModel::delay() const { return nanoseconds(latency); }

bool LinkModel::emulated() const {
  return std::isfinite(intra) || std::isfinite(inter) || latency > 0;
}

std::string LinkModel::text() const {
  return cat(bandwidth_text(intra), " within a node, ", bandwidth_text(inter),
      " between nodes, latency ", latency * 1e6, " us");
}

LinkModel parse_link(const std::string& text) {
  LinkModel model;
  read_keys("--link", text,
      "intra= and inter= with GB/s, MB/s or KB/s, at least 1KB/s, latency= with s, ms, us or ns, "
      "at most 1s, e.g. intra=160GB/s,inter=40GB/s,latency=5us",
      [&](const std::string& key, const std::string& value) {
        const bool latency = key == "latency";
        if (!latency && key != "intra" && key != "inter") return false;
        const auto x = latency ? parse_quantity(value, kTimes) : parse_quantity(value, kBandwidths);
        (latency ? model.latency : key == "intra" ? model.intra : model.inter) = x.value_or(-1);
        return x && (latency ? *x >= 0 && *x <= 1 : *x >= 1e3);
      });
  return model;
}

}  // namespace duet
