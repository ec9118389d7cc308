// See network.h.
#include "pipeline/insight/plan/network.h"

#include <algorithm>
#include <cmath>

namespace duet {

RankGroup rank_group(const Cluster& c, double size, double stride) {
  return {size, std::clamp(std::floor(c.nvlink_domain / stride), 1.0, size)};
}

// A message between two GPUs uses few of the channels that a ring has, and posting it is worth this
// many launches (times of stages' messages in "Zero Bubble Pipeline Parallelism", table 6).
constexpr double kMessageChannels = 0.25, kMessageCalls = 5;

static double nvlink(const Cluster& c) { return c.nvlink_bytes_s * c.nvlink_efficiency; }
static double network(const Cluster& c) { return c.network_bytes_s * c.network_efficiency; }

static double latency(const Cluster& c, const RankGroup& g) {
  return (g.local > 1 ? c.nvlink_latency_s * (1 + std::log2(g.local)) : 0) +
      (g.domains() > 1 ? c.network_latency_s * (1 + std::log2(g.domains())) : 0);
}

double gather_seconds(const Cluster& c, const RankGroup& g, double bytes) {
  if (g.size <= 1 || bytes <= 0) return 0;
  const double inside = g.local > 1 ? nvlink(c) : INFINITY;
  const double between = g.domains() > 1 ? g.local * network(c) : INFINITY;
  return (g.size - 1) / g.size * bytes / std::min(inside, between) + latency(c, g);
}

double all_reduce_seconds(const Cluster& c, const RankGroup& g, double bytes) {
  return 2 * gather_seconds(c, g, bytes);
}

double message_seconds(const Cluster& c, double stride, double bytes) {
  const double call = kMessageCalls * c.launch_s;
  return stride < c.nvlink_domain
      ? bytes / (nvlink(c) * kMessageChannels) + call + c.nvlink_latency_s
      : bytes / network(c) + call + c.network_latency_s;
}

double all_to_all_seconds(const Cluster& c, const RankGroup& g, const TokenExchange& x) {
  if (g.size <= 1 || x.tokens <= 0) return 0;
  const double domains = g.domains();
  const auto visited = [&](double places) {
    return places * (1 - std::pow(1 - 1 / places, x.topk));
  };
  double reached = visited(domains);
  if (x.max_domains > 0) reached = std::min(reached, x.max_domains);
  const double sent = x.tokens * x.bytes;
  const double between = sent * reached * (domains - 1) / domains / network(c);
  const double inside =
      g.local > 1 ? sent * visited(g.size) * (g.local - 1) / g.local / nvlink(c) : 0;
  return std::max(between, inside) + latency(c, g);
}

}  // namespace duet
