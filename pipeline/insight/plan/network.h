// What the collectives of a layout cost: ring all-gather, reduce-scatter and all-reduce, the
// all-to-alls of experts, and messages between stages.
//
// A group of n ranks lies with `local` ranks in each NVLink domain. A ring goes through all ranks
// of a domain before it leaves it, on the network cards of all of them, so that between domains it
// has local x network_gb_s. With S bytes gathered in all,
//
//   all-gather = reduce-scatter = (n-1)/n S / min(nvlink, local x network) + latency
//   all-reduce = twice that
//   latency    = nvlink_latency (1 + log2 local) + network_latency log2(domains)
//
// An all-to-all of tokens sends each token once to every domain in which it has an expert
// (DeepSeek-V3, section 3.2.2) and from there by NVLink to every GPU in which it has one; the two
// overlap, the slower counts.
//
// Read next: layout.h.
#pragma once
#include "pipeline/insight/plan/cluster.h"

namespace duet {

struct RankGroup {
  double size = 1, local = 1;
  double domains() const { return size / local; }
};
// `size` ranks that are `stride` apart.
RankGroup rank_group(const Cluster& cluster, double size, double stride);

double gather_seconds(const Cluster& cluster, const RankGroup& group, double bytes);
double all_reduce_seconds(const Cluster& cluster, const RankGroup& group, double bytes);
// bytes from one rank to one `stride` ranks further.
double message_seconds(const Cluster& cluster, double stride, double bytes);

struct TokenExchange {
  double tokens = 0;  // of one rank
  double bytes = 0;   // of a token
  double topk = 1;
  double max_domains = 0;  // that a token's experts may lie in; 0: any
};
double all_to_all_seconds(
    const Cluster& cluster, const RankGroup& group, const TokenExchange& exchange);

}  // namespace duet
