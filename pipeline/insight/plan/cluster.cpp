// See cluster.h. Cluster files: the table of their fields, with units and ranges.
#include "pipeline/insight/plan/cluster.h"

#include <algorithm>
#include <cmath>

#include "pipeline/insight/plan/fields.h"

#define OWN(name) DUET_FILE("pipeline/insight/plan/clusters/" name ".json")
#define NEXT(name) ".ascii \",\"\n" OWN(name)
DUET_EMBED(clusters,
    ".ascii \"[\"\n" OWN("a100-40g") NEXT("a100-80g") NEXT("h100") NEXT("h100-96g") NEXT("h800")
        NEXT("h200") NEXT("b200") NEXT("b300") NEXT("gb200") NEXT("gb300") ".ascii \"]\"\n")

namespace duet {
namespace {

// whole: in whole numbers; of_core: of a core alone
enum class Kept { always, whole, of_core };
struct ClusterField {
  const char* key;
  double Cluster::*member;
  double unit, lo, hi;
  Kept kept = Kept::always;
};
constexpr ClusterField kFields[] = {
    {"gpus_per_node", &Cluster::gpus_per_node, 1, 1, 1024, Kept::whole},
    {"nvlink_domain", &Cluster::nvlink_domain, 1, 1, 1024, Kept::whole},
    {"memory_gb", &Cluster::memory_bytes, 1e9, 0.5, 4000},
    {"reserved_gb", &Cluster::reserved_bytes, 1e9, 0, 40},
    {"fragmentation", &Cluster::fragmentation, 1, 0, 0.5},
    {"sms", &Cluster::sms, 1, 1, 2000, Kept::whole}, {"tail_waves", &Cluster::tail_waves, 1, 0, 2},
    {"k_half", &Cluster::k_half, 1, 0, 4096},
    {"attention_forward", &Cluster::attention_f, 1, 0.01, 1},
    {"attention_backward", &Cluster::attention_b, 1, 0.01, 1},
    {"attention_half_tokens", &Cluster::attention_half, 1, 0, 8192},
    {"hbm_gb_s", &Cluster::hbm_bytes_s, 1e9, 5, 50000},
    {"hbm_efficiency", &Cluster::hbm_efficiency, 1, 0.05, 1},
    {"launch_us", &Cluster::launch_s, 1e-6, 0.1, 1000},
    {"nvlink_gb_s", &Cluster::nvlink_bytes_s, 1e9, 0.5, 5000},
    {"nvlink_efficiency", &Cluster::nvlink_efficiency, 1, 0.05, 1},
    {"nvlink_latency_us", &Cluster::nvlink_latency_s, 1e-6, 0.1, 1000},
    {"network_gb_s", &Cluster::network_bytes_s, 1e9, 0.05, 1000},
    {"network_efficiency", &Cluster::network_efficiency, 1, 0.05, 1},
    {"network_latency_us", &Cluster::network_latency_s, 1e-6, 0.1, 10000},
    {"comm_sms", &Cluster::comm_sms, 1, 0, 100, Kept::whole}, {"other", &Cluster::other, 1, 0, 1},
    {"hidden", &Cluster::hidden, 1, 0, 1},
    {"cache_mb", &Cluster::cache_bytes, 1e6, 0, 1e5, Kept::of_core},
    {"cache_gb_s", &Cluster::cache_bytes_s, 1e9, 5, 50000, Kept::of_core},
    {"row_gb_s", &Cluster::row_bytes_s, 1e9, 5, 50000, Kept::of_core}};

const char* unit_of(std::string_view key) {
  return key.ends_with("_gb_s") ? "GB/s (8 Gbit/s are 1)"
      : key.ends_with("_gb")    ? "GB"
      : key.ends_with("_mb")    ? "MB"
      : key.ends_with("_us")    ? "microseconds"
                                : "a number";
}

// What is in its range and yet not in its unit stands out beside the others.
void check_units(const Cluster& c, const std::string& where) {
  for (size_t p = 0; p < c.peak.size(); ++p) {
    const double per_byte = c.peak[p] / c.hbm_bytes_s;
    require(!c.peak[p] || (per_byte >= (c.core ? 0.02 : 2) && per_byte <= 1e4), where, ": ",
        kPrecisions[p], "_tflops: expected TFLOP/s, 2 to 10000 FLOP a byte of hbm_gb_s, found ",
        c.peak[p] / 1e12, ", which is ", per_byte);
  }
  if (c.core) return;
  const double nvlink = c.nvlink_bytes_s / 1e9, network = c.network_bytes_s / 1e9;
  const double most = c.hbm_bytes_s / 4e9, pcie = 64;
  require(nvlink <= std::max(most, pcie), where, ": nvlink_gb_s: expected ", unit_of("_gb_s"),
      ", at most a quarter of hbm_gb_s, ", most, ", found ", nvlink);
  require(network <= std::max(nvlink / 4, std::min(nvlink, pcie / 2)), where,
      ": network_gb_s: expected ", unit_of("_gb_s"),
      " of a GPU's own card, at most a quarter of nvlink_gb_s, ", nvlink / 4, ", found ", network);
}

const Json& own_clusters() {
  static const Json all = Json::parse(clusters, "clusters/");
  return all;
}

}  // namespace

Cluster read_cluster(const Json& json) {
  const Fields f(json);
  const std::string where = f.where();
  Cluster c;
  c.name = one_line(f.text("name")), c.source = f.text_or("source", ""),
  c.core = f.flag("core", false);
  std::vector<std::string> known = {"name", "source", "core"};
  for (const ClusterField& field : kFields) {
    if (field.kept == Kept::of_core && !c.core) continue;
    const double scale = field.unit == 1 ? 1 : 0.01;  // a core is slower
    const double lo = c.core ? field.lo * scale : field.lo, value = f.at(field.key).number();
    require(value >= lo && value <= field.hi, where, ": ", field.key, ": expected ",
        unit_of(field.key), ", ", lo, " to ", field.hi, ", found ", value);
    require(field.kept != Kept::whole || value == std::floor(value), where, ": ", field.key,
        ": expected a whole number, found ", value);
    c.*field.member = value * field.unit;
    known.push_back(field.key);
  }
  for (size_t p = 0; p < c.peak.size(); ++p) {
    const std::string peak = cat(kPrecisions[p], "_tflops"),
                      part = cat(kPrecisions[p], "_efficiency");
    known.insert(known.end(), {peak, part});
    if (!f.has(peak)) continue;
    c.peak[p] = f.number(peak, 1e-5, 1e5) * 1e12;
    c.efficiency[p] = f.number(part, 0.01, 1);
  }
  require(c.peak[size_t(Precision::bf16)] > 0 || c.peak[size_t(Precision::fp32)] > 0, where,
      ": bf16_tflops is missing");
  require(c.comm_sms < c.sms, where, ": comm_sms: expected fewer than sms = ", c.sms, ", found ",
      c.comm_sms);
  check_units(c, where);
  for (const auto& [key, _] : json.members())
    require(std::find(known.begin(), known.end(), key) != known.end(), where, ": found ", key,
        ", which is no field; units are part of the names, e.g. memory_gb, hbm_gb_s, launch_us");
  return c;
}

Precision parse_precision(const std::string& text, const std::string& where) {
  for (size_t p = 0; p < 5; ++p)
    if (text == kPrecisions[p]) return Precision(p);
  throw UsageError(cat(where, ": found ", text, ", allowed: fp32, bf16, fp8, mxfp8, nvfp4"));
}

Cluster Cluster::fetching(double working_set, double ranks) const {
  Cluster c = *this;
  if (!core) return c;
  const double share = cache_bytes / std::clamp(ranks, 1.0, gpus_per_node);
  double missed = working_set > share ? 1 : 0;  // = 1 - exp(-missed working_set / share)
  for (int i = 0; i < 50; ++i) missed = 1 - std::exp(-missed * working_set / share);
  c.hbm_bytes_s = 1 / ((1 - missed) / cache_bytes_s + missed / hbm_bytes_s);
  return c;
}

double product_seconds(const Cluster& c, Precision precision, const ProductSize& product) {
  const auto [m, n, k, count, out_bytes] = product;
  if (m <= 0 || n <= 0 || k <= 0 || count <= 0) return 0;
  const double in_bytes = precision == Precision::fp32 ? 4
      : precision == Precision::bf16                   ? 2
      : precision == Precision::nvfp4                  ? 0.5
                                                       : 1;
  const double waves = count * std::ceil(m / 128) * std::ceil(n / 256) / c.sms;
  const double arithmetic = 2 * m * n * k * count / c.products_per_s(precision) *
      (1 + c.tail_waves / waves) * (1 + c.k_half / k);
  const double memory = count * ((m * k + k * n) * in_bytes + m * n * out_bytes) / c.hbm();
  return c.core ? arithmetic + memory : std::max(arithmetic, memory);
}

double weight_product_seconds(
    const Cluster& c, Precision precision, ProductSize product, double pieces) {
  product.out_bytes = 8;
  double seconds = product_seconds(c, precision, product);
  const double elements = product.m * product.n * product.count;
  if (product.count > 1 || c.core) seconds += 8 * elements / c.hbm();
  if (c.core) seconds += 2 * elements / c.products_per_s(precision) * c.k_half * (pieces - 1);
  return seconds;
}

// --- links ---------------------------------------------------------------------------------------

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

double message_seconds(const Cluster& c, double stride, double bytes) {
  const double call = kMessageCalls * c.launch_s;
  return stride < c.nvlink_domain
      ? bytes / (nvlink(c) * kMessageChannels) + call + c.nvlink_latency_s
      : bytes / network(c) + call + c.network_latency_s;
}

double all_to_all_seconds(
    const Cluster& c, const RankGroup& g, double bytes, double topk, double max_domains) {
  if (g.size <= 1 || bytes <= 0) return 0;
  const double domains = g.domains();
  const auto visited = [&](double places) { return places * (1 - std::pow(1 - 1 / places, topk)); };
  double reached = visited(domains);
  if (max_domains > 0) reached = std::min(reached, max_domains);
  const double between = bytes * reached * (domains - 1) / domains / network(c);
  const double inside =
      g.local > 1 ? bytes * visited(g.size) * (g.local - 1) / g.local / nvlink(c) : 0;
  return std::max(between, inside) + latency(c, g);
}

// --- files ---------------------------------------------------------------------------------------

Cluster find_cluster(const std::string& name) {
  std::string names;
  if (const auto own = find_named(own_clusters(), name, names)) return read_cluster(*own);
  require(name.find('.') != name.npos, "--cluster: found ", name, ", allowed: ", names,
      "or the path of a cluster file");
  return read_cluster(Json::load(name));
}

std::string write_cluster(const Cluster& c) {
  Json json = Json::object({{"name", c.name}, {"source", c.source}, {"core", c.core}});
  for (size_t p = 0; p < c.peak.size(); ++p)
    if (c.peak[p] > 0) {
      json.set(cat(kPrecisions[p], "_tflops"), c.peak[p] / 1e12);
      json.set(cat(kPrecisions[p], "_efficiency"), c.efficiency[p]);
    }
  for (const ClusterField& field : kFields)
    if (c.core || field.kept != Kept::of_core) json.set(field.key, c.*field.member / field.unit);
  return json.dump(2) + "\n";
}

}  // namespace duet
