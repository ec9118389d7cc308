// See records.h.
#include "pipeline/insight/plan/records.h"

#include <algorithm>

namespace duet {
namespace {

PlanModel read_model(const Fields& f) {
  PlanModel m;
  m.name = f.text_or("name", "unnamed"), m.type = f.text("type");
  const std::vector<std::string> types = {
      "gpt", "llama", "qwen3", "moe", "gpt_oss", "deepseek_v2", "deepseek_v3"};
  require(std::find(types.begin(), types.end(), m.type) != types.end(), f.where(), ": type: found ",
      m.type, ", allowed: gpt, llama, qwen3, moe, gpt_oss, deepseek_v2, deepseek_v3");
  m.layers = f.integer("layers", 1), m.hidden = f.integer("hidden", 1),
  m.vocab = f.integer("vocab", 1);
  m.heads = f.integer("heads", 1), m.kv_heads = f.integer_or("kv_heads", m.heads, 1);
  m.head_dim = f.integer_or("head_dim", m.hidden / m.heads, 1);
  m.ffn = f.integer_or("ffn", 0);
  m.gated = f.flag("gated", m.type != "gpt"), m.tied = f.flag("tied_embeddings", m.type == "gpt");
  m.mtp = f.integer_or("mtp_layers", 0), m.window = f.integer_or("window", 0);
  m.experts = f.integer_or("experts", 0);
  if (m.experts) {
    m.topk = f.integer("top_k", 1, m.experts), m.expert_ffn = f.integer("expert_ffn", 1);
    m.shared_ffn = f.integer_or("shared_ffn", 0), m.dense_layers = f.integer_or("dense_layers", 0);
    if (m.type == "deepseek_v3" && m.experts == 256) m.groups = 8, m.topk_groups = 4;
  }
  if (f.has("kv_lora_rank")) {
    m.q_lora = f.integer_or("q_lora_rank", 0), m.kv_lora = f.integer("kv_lora_rank", 1);
    m.nope = f.integer("qk_nope_head_dim", 1), m.rope = f.integer("qk_rope_head_dim", 1);
    m.v_dim = f.integer("v_head_dim", 1);
  }
  return m;
}

std::string schedule_name(const std::string& text) {
  if (text == "zb-h1") return "zb1p";
  return text == "v-zb" ? "zbv" : text;
}

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
  const auto degree = [&](const char* key) { return int(f.integer_or(key, fixed ? 1 : 0, 1)); };
  l.tp = degree("tp"), l.pp = degree("pp"), l.cp = degree("cp"), l.ep = degree("ep");
  l.etp = int(f.integer_or("etp", 1, 1));
  l.dp = int(f.integer_or("dp", 0, 1));
  l.virtual_stages = int(f.integer_or("virtual_stages", 0, 1));
  l.schedule = schedule_name(f.text_or("schedule", ""));
  if (l.pp == 1) l.schedule = "1f1b", l.virtual_stages = 1;
  const auto is_guess = [&](const char* field) {
    return std::find(guessed.begin(), guessed.end(), field) != guessed.end();
  };
  if (l.pp > 1 && is_guess("layout.schedule") && is_guess("layout.virtual_stages"))
    l.schedule = "", l.virtual_stages = 0;
  if (l.schedule.empty()) l.schedule = l.virtual_stages == 1 ? "1f1b" : "interleaved";
  if (l.schedule == "1f1b") l.virtual_stages = 1;
  if (f.has("stage_layers")) l.split = chunked(f.integers("stage_layers"), l);
  const std::string recompute = f.text_or("recompute", "");
  for (size_t i = 0; i < 4; ++i)
    if (recompute == kRecomputes[i]) l.recompute = Recompute(i);
  l.zero = int(f.integer_or("zero", old ? 0 : 1));
  l.precision = old ? Precision::bf16 : parse_precision(precision, f.where() + ": precision");
  l.gradient_bytes = old ? 2 : 4;
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
  for (const char* kind : {"step_s", "tokens_per_s", "tflops_per_gpu", "mfu", "bubble_rate"})
    if (f.has(kind)) r.kind = kind, r.measured = f.number(kind, 0, 1e15);
  if (f.flag("out_of_memory", false)) r.kind = "out_of_memory";
  require(!r.kind.empty(), f.where(),
      ": expected one of step_s, tokens_per_s, tflops_per_gpu, mfu, bubble_rate, out_of_memory");
  r.formula = f.text_or("flops_formula", ""), r.attention = f.text_or("flops_attention", "");
  if (r.kind == "mfu") r.peak_flops = f.number("peak_tflops", 1, 1e5) * 1e12;
  if (f.has("memory_gib")) r.memory_gib = f.number("memory_gib", 0, 1e4);
}

}  // namespace

Record read_record(const Json& json, const std::string& where) {
  const Fields f(json, where);
  Record r;
  r.id = f.text("id"), r.suite = f.text("suite");
  const Fields hardware = f.object("hardware"), batch = f.object("batch");
  PlanJob& job = r.job;
  job.model = read_model(f.object("model"));
  const bool slow = hardware.text("gpu") == "H100" && hardware.has("hbm_gb") &&
      hardware.number("hbm_gb", 1, 4000) == 96;
  job.cluster = find_cluster(slow ? "h100-96g" : hardware.text("gpu"));
  job.cluster.gpus_per_node =
      double(hardware.integer_or("gpus_per_node", int64_t(job.cluster.gpus_per_node), 1));
  job.cluster.nvlink_domain =
      double(hardware.integer_or("nvlink_domain", int64_t(job.cluster.nvlink_domain), 1));
  if (hardware.has("hbm_gb")) {
    const double bytes = hardware.number("hbm_gb", 1, 4000) * 1e9;
    if (std::abs(bytes / job.cluster.memory_bytes - 1) > 0.1) job.cluster.memory_bytes = bytes;
  }
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
    profile.stages.assign(size_t(model_stages(r.layout)), stage);
    profile.forward_message = profile.backward_message = seconds("comm");
    r.profile = profile;
  }
  return r;
}

}  // namespace duet
