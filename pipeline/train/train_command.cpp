// See train_command.h.
#include "pipeline/train/train_command.h"

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include "model/base/command_line.h"
#include "pipeline/checkpoint/durable.h"
#include "pipeline/insight/trace/trace.h"
#include "pipeline/train/generate.h"
#include "pipeline/train/run_log.h"

namespace duet {

namespace fs = std::filesystem;

namespace {

// The one thing a signal handler touches: an atomic without a lock may be, and ranks read it from
// their threads.
std::atomic<int> stop_signal = 0;
static_assert(std::atomic<int>::is_always_lock_free);

// While it lives, SIGINT and SIGTERM ask for a stop instead of ending the process; a second one
// ends it.
class StopOnSignal {
 public:
  StopOnSignal() {
    stop_signal = 0;
    for (int i : {0, 1})
      before_[i] = std::signal(kSignals[i], [](int signal) {
        if (stop_signal) std::signal(signal, SIG_DFL), std::raise(signal);
        stop_signal = signal;
      });
  }
  ~StopOnSignal() {
    for (int i : {0, 1}) std::signal(kSignals[i], before_[i]);
  }
  bool asked() const { return stop_signal != 0; }

 private:
  static constexpr int kSignals[2] = {SIGINT, SIGTERM};
  void (*before_[2])(int);
};

std::string checkpoint_dir(const TrainOptions& o, int64_t step) {
  return o.out + format("/step-%06lld", (long long)step);
}

// Makes the run's folder, or refuses one that holds a run.
void open_out(const TrainOptions& o) {
  if (o.out.empty()) return;
  const bool holds_run = fs::exists(o.out + "/metrics.jsonl") || !newest_checkpoint(o.out).empty();
  require(!holds_run || o.resume || o.overwrite, "--out: found a run in ", o.out,
      ", allowed: another folder, --resume or --overwrite");
  std::error_code error;
  fs::create_directories(o.out, error);
  require(!error && fs::is_directory(o.out), "--out: cannot make the folder ", o.out, ": ",
      error.message());
  if (!o.overwrite || o.resume) return;
  for (const std::string& dir : complete_dirs(o.out)) fs::remove_all(dir);
  fs::remove(o.out + "/metrics.jsonl");
}

// Refuses a file that cannot be written. Its folder may be the --out that is made later.
void check_trace(const TrainOptions& o) {
  if (o.trace.empty()) return;
  const auto folder_of = [](const fs::path& file) {
    return fs::absolute(file).lexically_normal().parent_path();
  };
  if (!o.out.empty() && folder_of(o.trace) == folder_of(fs::path(o.out) / "trace") &&
      !fs::exists(o.out))
    return;
  const bool existed = fs::exists(o.trace);
  require(std::ofstream(o.trace, std::ios::app).good(), "--trace: found ", o.trace,
      ", which cannot be written, allowed: a file in a folder that exists");
  if (!existed) fs::remove(o.trace);
}

void say_first_lines(const Job& job, Device& device, RunLog& log) {
  constexpr const char* kMeans[] = {"threads", "MPI processes", "NCCL"};  // by Wire
  const TrainOptions& o = job.options;
  const ModelConfig& c = job.config;
  const double peak = device.peak_flops(o.dtype);
  const Layout& l = job.layout;
  log.say(cat("model  ", o.init.empty() ? o.preset : o.init,
      o.model.text.empty() ? "" : " with " + o.model.text, ": ", c.n_layers, " layers, d_model ",
      c.d_model, ", ", c.n_routed, " routed experts (top ", c.topk, ") + ", c.n_shared, " shared; ",
      c.parameters() / 1000, "K parameters, ", c.active_parameters() / 1000, "K active"));
  log.say(cat("batch  ", l.dp > 1 ? cat(l.dp, " x ") : "", o.microbatches, " microbatches of ",
      o.micro_batch_size, " sequences of ", o.seq_len, " tokens; seed ", o.seed));
  const std::string how = cat(" (dp ", l.dp, " x pp ", l.pp, "), schedule ", job.compute.name, ", ",
      kMeans[int(job.run.transport)]);
  log.say(cat("ranks  ", job.run.ranks, job.run.ranks > 1 ? how : "", "; device ", device.name(),
      ", ", dtype_name(o.dtype),
      peak > 0 ? cat(", peak ", peak * 1e-12, " TFLOP/s by the datasheet") : ""));
  if (job.run.link.emulated()) log.say("links  emulated: " + job.run.link.text());
  log.say("data   " + describe(job.dataset));
}

// What rank 0 alone does with files, so that every rank finds them done.
void prepare_files(const Job& job, const std::string& resume_from) {
  const TrainOptions& o = job.options;
  if (!resume_from.empty()) check_checkpoint(resume_from, job.config);
  if (!o.init.empty()) check_checkpoint(o.init, job.config);
  check_trace(o);
  open_out(o);
}

// One rank from its first step to its last.
void train_rank(const Job& job, Comm& world, const StopOnSignal& stop, std::ostream& out) {
  const TrainOptions& o = job.options;
  const std::string resume_from = o.resume ? newest_checkpoint(o.out) : "";
  world.barrier();  // everyone has looked before rank 0 changes anything
  if (world.rank() == 0) prepare_files(job, resume_from);
  world.barrier();
  const std::unique_ptr<Device> device = make_device(job, world.rank());
  Trainer trainer(job, world, *device);
  if (!o.init.empty()) load_checkpoint(trainer, o.init);
  const int64_t done = resume_from.empty() ? 0 : load_checkpoint(trainer, resume_from);

  const auto [first_traced, last_traced] = o.traced_steps(done);
  Trace trace(
      world, job.layout, {o.trace, first_traced, last_traced, job.run.transport == Wire::local});

  std::optional<RunLog> log;
  if (world.rank() == 0) log.emplace(job, *device, out, done + 1);
  const auto say = [&](const std::string& line) {
    if (log) log->say(line);
  };
  if (log) say_first_lines(job, *device, *log);
  if (!resume_from.empty()) say(cat("resume ", resume_from, ", after step ", done));

  int64_t step = done, saved = done;
  const auto save = [&] {
    if (o.out.empty() || saved == step) return;
    save_checkpoint(trainer, checkpoint_dir(o, step), step);
    saved = step;
  };
  bool stopped = false;
  while (step < o.steps && !stopped) {
    ++step;
    const std::string dump =
        step == o.dump_step ? cat(o.out, "/dump-step-", step, ".safetensors") : "";
    std::optional<Recorder> recorder;
    if (trace.records(step)) recorder.emplace(*device);
    StepResult result = train_step(
        trainer, step, {dump, [&] { return stop.asked(); }, recorder ? &*recorder : nullptr});
    if (recorder) {
      const Overlap overlap = trace.add(step, *recorder).steps;
      if (overlap.comm > 0) result.overlap = overlap.fraction();
    }
    stopped = result.stop;
    const bool validate = step == o.steps || (o.val_every && step % o.val_every == 0);
    const std::optional<double> val_loss =
        validate ? std::optional(validation_loss(trainer)) : std::nullopt;
    if (log) log->step(result, val_loss);
    if (log && step == done + 1) log->memory_table();
    if (o.checkpoint_every && step % o.checkpoint_every == 0) save();
  }
  if (log) log->traffic_line();
  save();
  if (!o.out.empty()) say("saved  " + checkpoint_dir(o, step));
  for (const std::string& line : trace.finish()) say(line);
  if (step < o.steps) {
    return say(
        cat("stopped by a signal after step ", step, "; go on with the same command and --resume",
            o.out.empty() ? " (nothing was kept: give it an --out)" : ""));
  }
  if (log) log->json_document(o.out.empty() ? "" : checkpoint_dir(o, step));
  if (o.sample == 0 || o.format == Format::json) return;
  const Tokenizer tokenizer =
      job.dataset.tokenizer_path.empty() ? Tokenizer() : Tokenizer(job.dataset.tokenizer_path);
  if (tokenizer.vocab_size() < job.dataset.vocab_size)
    return say("no sample: the shards' folder has no tokenizer .bin");
  say("sample:");
  std::ostringstream unheard;
  generate(trainer, tokenizer, {.tokens = o.sample, .seed = o.seed}, log ? out : unheard);
}

}  // namespace

void add_train_command(CLI::App& duet, int&) {
  Command cli(duet, "train", "train a model; without options a demonstration of under a minute");
  const auto o = std::make_shared<TrainOptions>();
  add_train_options(cli, *o);
  cli.runs([o] { train_command(*o, std::cout); });
}

void train_command(const TrainOptions& options, std::ostream& out) {
  const Job job = make_job(options);
  StopOnSignal stop;
  run_ranks(job.run, [&](Comm& world) { train_rank(job, world, stop, out); });
}

}  // namespace duet
