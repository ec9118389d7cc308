// See validate.h. A record becomes a job and a layout.
#include "pipeline/insight/plan/validate.h"

#include <algorithm>

namespace duet {
namespace {

// Layers of each rank become layers of each of its chunks; what is missing is missing at the ends.
std::vector<int> chunked(const std::vector<int64_t>& of_rank, const PlanLayout& l) {
  const int stages = model_stages(l), pp = int(of_rank.size());
  if (stages == pp) return {of_rank.begin(), of_rank.end()};
  std::vector<int> split(size_t(stages), 0);
  for (int rank = 0; rank < pp; ++rank)
    for (int i = 0; i < of_rank[size_t(rank)]; ++i) {
      const int chunk = i % (stages / pp), from = rank == 0 ? stages / pp - 1 - chunk : chunk;
      const bool turns = l.schedule != "interleaved" && from == 1;  // up the V
      ++split[size_t(turns ? stages - 1 - rank : from * pp + rank)];
    }
  return split;
}

PlanLayout read_layout(const Fields& f, const PlanModel& m, const std::string& precision,
    const std::vector<std::string>& guessed) {
  PlanLayout l;
  const bool old = precision == "fp16", fixed = f.flag("fixed", true);
  const auto degree = [&](const char* key, int otherwise) {
    return int(f.integer_or(key, otherwise, 1));
  };
  l.tp = degree("tp", fixed), l.pp = degree("pp", fixed), l.cp = degree("cp", fixed);
  l.ep = degree("ep", fixed), l.etp = degree("etp", 1), l.dp = degree("dp", 0);
  l.virtual_stages = degree("virtual_stages", 0);
  l.schedule = f.text_or("schedule", "");
  if (l.schedule == "zb-h1") l.schedule = "zb1p";
  if (l.schedule == "v-zb") l.schedule = "zbv";
  if (l.pp == 1) l.schedule = "1f1b", l.virtual_stages = 1;
  const auto is_guess = [&](const char* key) { return std::ranges::count(guessed, key) > 0; };
  if (l.pp > 1 && is_guess("layout.schedule") && is_guess("layout.virtual_stages"))
    l.schedule = "", l.virtual_stages = 0;
  if (l.schedule.empty()) l.schedule = l.virtual_stages == 1 ? "1f1b" : "interleaved";
  if (l.schedule == "1f1b") l.virtual_stages = 1;
  if (f.has("stage_layers")) l.split = chunked(f.integers("stage_layers"), l);
  if (f.has("recompute")) set_layout(l, "recompute", f.text("recompute"));
  l.zero = int(f.integer_or("zero", old ? 0 : 1));
  l.precision = old ? Precision::bf16 : parse_precision(precision, f.where() + ": precision");
  l.gradient_bytes = old ? 2 : 4;
  l.tiles = false;
  l.fused_attention = f.flag("flash_attention", !old);
  l.sequence_parallel = l.tp != 1 && f.flag("sequence_parallel", !old);
  l.overlap_dp = f.flag("overlap_dp", !old);
  l.overlap_ep = f.flag("overlap_ep", false);
  l.overlap_tp =
      f.flag("overlap_tp", !m.experts && l.sequence_parallel && l.precision > Precision::bf16);
  const std::string routing = f.text_or("routing", "");
  l.imbalance = m.experts && routing != "balanced" && routing != "token-drop" ? 1.1 : 1;
  return l;
}

void read_measured(const Fields& f, Record& r) {
  for (size_t k = 0; k < size_t(Measured::out_of_memory); ++k)
    if (f.has(kMeasured[k])) r.kind = Measured(k), r.measured = f.number(kMeasured[k], 0, 1e15);
  if (f.flag("out_of_memory", false)) r.kind = Measured::out_of_memory;
  require(r.kind.has_value(), f.where(),
      ": expected one of step_s, tokens_per_s, tflops_per_gpu, mfu, bubble_rate, out_of_memory");
  const std::string formula = f.text_or("flops_formula", ""),
                    attention = f.text_or("flops_attention", "");
  if (formula == "6N") r.formula = Flops::six_n;
  if (formula == "6N+attention") r.formula = Flops::six_n_attention;
  if (formula == "incl_recompute") r.formula = Flops::with_recompute;
  if (attention == "full" || attention == "causal") r.causal = attention == "causal";
  if (r.kind == Measured::mfu) r.peak_flops = f.number("peak_tflops", 1, 1e5) * 1e12;
  r.memory_gib = f.number_or("memory_gib", 0, 0, 1e4);
}

}  // namespace

Record read_record(const Json& json) {
  const Fields f(json);
  Record r;
  r.id = f.text("id"), r.suite = f.text("suite");
  const Fields hardware = f.object("hardware"), batch = f.object("batch");
  PlanJob& job = r.job;
  job.model = read_published_model(f.at("model"));
  const std::string gpu = hardware.text("gpu");
  const double hbm = hardware.number_or("hbm_gb", 0, 1, 4000) * 1e9;
  job.cluster = find_cluster(gpu == "H100" && hbm == 96e9 ? "h100-96g" : gpu);
  Cluster& c = job.cluster;
  c.gpus_per_node = hardware.number_or("gpus_per_node", c.gpus_per_node, 1, 1024);
  c.nvlink_domain = hardware.number_or("nvlink_domain", c.nvlink_domain, 1, 1024);
  if (hbm > 0 && std::abs(hbm / c.memory_bytes - 1) > 0.1) c.memory_bytes = hbm;
  job.gpus = hardware.integer("gpus", 1);
  job.batch = batch.integer("global_sequences", 1), job.seq_len = batch.integer("seq_len", 1);
  const std::string precision = f.text_or("precision", "bf16");
  std::vector<std::string> guessed;
  if (f.has("filled"))
    for (const Json& field : f.at("filled").items()) guessed.push_back(field.string());
  r.layout = read_layout(f.object("layout"), job.model, precision, guessed);
  const std::string note = f.text_or("note", "");
  const auto says = [&](const char* what) { return note.find(what) != note.npos; };
  if (says("mode: eager") || says("kernel: ")) r.layout.row_passes = says("RMS kernel") ? 2 : 3.5;
  r.layout.micro_batch = int(batch.integer_or("micro_batch_size", job.model.experts > 0, 1));
  read_measured(f.object("measured"), r);
  r.scan = cat(r.suite, f.at("model").dump(), f.at("hardware").dump(), job.batch, "x", job.seq_len,
      precision);
  if (f.has("stage_times_ms")) {
    const Fields times = f.object("stage_times_ms");
    const auto seconds = [&](const char* key) { return times.number(key, 0, 1e6) / 1e3; };
    CostProfile profile;
    StageCosts stage{seconds("F"), seconds("B"), seconds("W")};
    stage.FB = stage.F + stage.I + stage.W;
    const int stages = model_stages(r.layout);  // of which a rank's take that together
    profile.stages.assign(size_t(stages), stage.scaled(double(r.layout.pp) / stages));
    profile.forward_message = profile.backward_message = seconds("comm");
    r.profile = profile;
  }
  return r;
}

}  // namespace duet
