// Cluster: what a GPU and the network between GPUs can do. One set of constants for a GPU type,
// none for a run.
//
// A cluster file is one flat JSON object whose keys carry their units; duet's own are in clusters/
// and compiled in. The formulas that use the constants are below and in costs.cpp.
//
// Read next: layout.h.
#pragma once
#include <array>
#include <string>

#include "model/base/json.h"

namespace duet {

// What products of matrices compute in.
enum class Precision { fp32, bf16, fp8, mxfp8, nvfp4 };
inline constexpr const char* kPrecisions[] = {"fp32", "bf16", "fp8", "mxfp8", "nvfp4"};
Precision parse_precision(const std::string& text, const std::string& where);

struct Cluster {
  std::string name, source;
  double gpus_per_node = 8, nvlink_domain = 8;  // a domain: GPUs that reach each other by NVLink
  // of a GPU: all, and what context, libraries and communication buffers take of it
  double memory_bytes = 0, reserved_bytes = 0;
  double fragmentation = 0;            // lost between allocations, of what is allocated
  std::array<double, 5> peak{};        // [Precision] dense FLOP/s; 0: not there
  std::array<double, 5> efficiency{};  // [Precision] of the peak, for an endless product
  double sms = 0;
  double tail_waves = 0;  // waves of tiles lost at the end of a product
  double k_half = 0;      // length of the inner dimension at which filling takes as long as working
  double attention_f = 0, attention_b = 0;  // fused attention, of the bf16 peak: forward, backward
  double attention_half = 0;                // tokens at which it reaches half of that
  double hbm_bytes_s = 0, hbm_efficiency = 0;
  double launch_s = 0;  // the host's time for a kernel
  double nvlink_bytes_s = 0, nvlink_efficiency = 0, nvlink_latency_s = 0;  // of a GPU, one way
  double network_bytes_s = 0, network_efficiency = 0, network_latency_s = 0;
  double comm_sms = 0;  // lent to communication while it overlaps with computation
  double other = 0;     // of a step: loading data, checking gradients, clocks that differ
  double hidden = 0;    // of communication that has something to hide under, what hides
  // A core of a processor, on which duet's own CPU code runs: it works and fetches in turn, and
  // cuts gradients' sums at segments of 128 tokens (model/machine/grid.h). Row operations wait for
  // its instructions, not for memory.
  bool core = false;
  double cache_bytes = 0, cache_bytes_s = 0;  // its last cache, which all cores share
  double row_bytes_s = 0;

  // of attention, and what MFU divides by: the 16-bit peak where there is one
  double wide_peak() const { return peak[peak[1] > 0 ? 1 : 0]; }
  double hbm() const { return hbm_bytes_s * hbm_efficiency; }
  double rows() const { return core ? row_bytes_s : hbm(); }
  double products_per_s(Precision p) const { return peak[size_t(p)] * efficiency[size_t(p)]; }
  // With the memory bandwidth that a core sees when it passes again and again over working_set
  // bytes, one of `ranks` that do so: what fits its share of the cache is read there; of a larger
  // set a part is evicted before it is used again (random replacement: README.md).
  Cluster fetching(double working_set, double ranks) const;
  // Computation is slower by this while it shares the GPU with communication.
  double lending() const { return sms / (sms - comm_sms); }
};

// C [m, n] = A [m, k] B [k, n], `count` times in one launch: the larger of
//   arithmetic  2 m n k / (peak efficiency), times 1 + tail_waves / waves and 1 + k_half / k, where
//               a wave is a tile of 128 x 256 on each SM
//   memory      the three matrices once, out_bytes an element of C
// or, of a core, their sum.
struct ProductSize {
  double m, n, k, count = 1, out_bytes = 2;
};
double product_seconds(const Cluster& c, Precision precision, const ProductSize& product);

// The same for a gradient: a sum over k = tokens into 8 bytes an element, to which a product for
// each expert, and a core's, adds in a pass of its own (the trace's mlp(W)). pieces: exact sums
// into which a core cuts it.
double weight_product_seconds(
    const Cluster& c, Precision precision, ProductSize product, double pieces);

// --- links ---------------------------------------------------------------------------------------

// A group of n ranks lies with `local` ranks in each NVLink domain. A ring goes through all ranks
// of a domain before it leaves it, on the network cards of all of them, so that between domains it
// has local x network_gb_s. With S bytes gathered in all,
//
//   all-gather = reduce-scatter = (n-1)/n S / min(nvlink, local x network) + latency
//   all-reduce = twice that
//   latency    = nvlink_latency (1 + log2 local) + network_latency (1 + log2 domains), either one
//                where there are several
//
// An all-to-all of tokens sends each token once to every domain in which it has an expert
// (DeepSeek-V3, section 3.2.2) and from there by NVLink to every GPU in which it has one; the two
// overlap, the slower counts.
struct RankGroup {
  double size = 1, local = 1;
  double domains() const { return size / local; }
};
// `size` ranks that are `stride` apart.
RankGroup rank_group(const Cluster& cluster, double size, double stride);

double gather_seconds(const Cluster& cluster, const RankGroup& group, double bytes);
// bytes from one rank to one `stride` ranks further.
double message_seconds(const Cluster& cluster, double stride, double bytes);

// bytes: of one rank's tokens, each once. max_domains: that a token's experts may lie in; 0: any.
double all_to_all_seconds(const Cluster& cluster, const RankGroup& group, double bytes, double topk,
    double max_domains = 0);

// --- files ---------------------------------------------------------------------------------------

// A name ("h100") or the path of a file. Throws UsageError that names what is missing, or out of
// the range that its unit allows.
Cluster find_cluster(const std::string& name_or_path);
Cluster read_cluster(const Json& json);
std::string write_cluster(const Cluster& cluster);  // reads back

// `duet plan --measure FILE`: a cluster file of this machine, from duet's own operations at sizes
// of its own: linear layers (F, I and W; peak, k_half and tail_waves are fitted to their times),
// the optimizer (memory), causal attention. Of a machine without a GPU a "GPU" is one core, so that
// a plan for as many ranks as it has cores is one for `duet train --threads 1`. Links are a guess
// on a machine with one device: what a copy between two ranks of a process reaches.
Cluster measure_cluster();  // seconds

}  // namespace duet
