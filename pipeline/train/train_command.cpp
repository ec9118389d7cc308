// See train_command.h.
#include "pipeline/train/train_command.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <iostream>
#include <sstream>

#include "model/base/clock.h"
#include "model/base/command_line.h"
#include "pipeline/insight/trace/trace.h"
#include "pipeline/train/generate.h"
#include "pipeline/train/rehearse.h"
#include "pipeline/train/run_folder.h"
#include "pipeline/train/run_log.h"
#include "pipeline/train/same_run.h"

namespace duet {

namespace {

constexpr int64_t kRehearsedSteps = 3;  // as --help says

// What a signal handler touches: atomics without a lock may be, and ranks read them from their
// threads.
std::atomic<int> stop_signal = 0;
std::atomic<int64_t> stop_time = 0;  // nanoseconds_now() then
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);

// While it lives, SIGINT and SIGTERM ask for a stop instead of ending the process; a second one
// ends it.
class StopOnSignal {
 public:
  StopOnSignal() {
    stop_signal = find_launcher().rank == 0 ? 0 : kQuietly;
    for (int i : {0, 1}) before_[i] = std::signal(kSignals[i], take);
  }
  ~StopOnSignal() {
    for (int i : {0, 1}) std::signal(kSignals[i], before_[i]);
  }
  int signal() const { return std::max(0, stop_signal.load()); }
  // A step that ends within a second is worth waiting for.
  bool overdue() const { return signal() && nanoseconds_now() - stop_time > 1'000'000'000; }

 private:
  static constexpr int kSignals[2] = {SIGINT, SIGTERM};
  static constexpr int kQuietly = -1;  // rank 0 speaks for all processes
  static void take(int signal) {
    constexpr std::string_view kHeard = "\nduet: stopping after this step; again to end now\n";
    if (stop_signal > 0) std::signal(signal, SIG_DFL), std::raise(signal);
    stop_time = nanoseconds_now();
    if (stop_signal.exchange(signal) != kQuietly) [[maybe_unused]]
      const ssize_t written = write(STDERR_FILENO, kHeard.data(), kHeard.size());
  }
  void (*before_[2])(int);
};

void say_first_lines(const Job& job, Device& device, RunLog& log) {
  constexpr const char* kMeans[] = {"threads", "MPI processes", "NCCL"};  // by Wire
  const TrainOptions& o = job.options;
  const ModelConfig& c = job.config;
  const double peak = device.peak_flops(*o.dtype);
  const Layout& l = job.layout;
  log.say(cat("model  ", o.init.empty() ? o.preset : o.init,
      o.model.text.empty() ? "" : " with " + o.model.text, ": ", c.n_layers, " layers, d_model ",
      c.d_model, ", ",
      c.first_k_dense < c.n_layers
          ? cat(c.n_routed, " routed experts (top ", c.topk, ") + ", c.n_shared, " shared; ")
          : cat("dense layers of d_ff ", c.d_ff, "; "),
      c.parameters() / 1000, "K parameters, ", c.active_parameters() / 1000, "K active"));
  log.say(cat("batch  ", l.dp > 1 ? cat(l.dp, " x ") : "", o.microbatches, " microbatches of ",
      o.micro_batch_size, " sequences of ", o.seq_len, " tokens; seed ", o.seed));
  const std::string how = cat(" (dp ", l.dp, " x pp ", l.pp, "), schedule ", job.compute.name, ", ",
      kMeans[int(job.run.transport)]);
  log.say(cat("ranks  ", job.run.ranks, job.run.ranks > 1 ? how : "", "; device ", device.name(),
      ", ", dtype_name(*o.dtype),
      peak > 0               ? cat(", peak ", peak * 1e-12, " TFLOP/s by the datasheet")
          : device.is_cuda() ? ", peak unknown"
                             : ""));
  if (job.run.link.emulated()) log.say("links  emulated: " + job.run.link.text());
  const int64_t known = job.dataset.vocab_size;
  log.say(cat("data   ", describe(job.dataset),
      known < c.vocab_size ? cat(", of the model's ", c.vocab_size, " tokens the first ", known)
                           : ""));
}

// One rank's part of a run.
class RankRun {
 public:
  RankRun(const Job& job, Comm& world, const StopOnSignal& stop, std::ostream& out)
      : job_(job), o_(job.options), world_(world), stop_(stop), out_(out),
        device_(make_device(job, world)) {
    if (job.run.transport != Wire::local) require_same_job(world, job);
    open_files();
    trainer_.emplace(job, world, *device_);
    if (begin_)
      load_checkpoint(*trainer_, checkpoint_dir(o_.out, begin_));
    else if (!o_.init.empty())
      load_checkpoint(*trainer_, o_.init, Restore::weights);
    step_ = saved_ = begin_;
    if (world.rank() == 0) log_.emplace(job, *device_, out, begin_ + 1);
  }

  // Returns the signal that stopped it, or 0.
  int run() {
    Trace trace(world_, job_.layout,
        {o_.trace, o_.traced_steps(begin_).first, o_.traced_steps(begin_).second,
            job_.run.transport == Wire::local});
    if (log_) say_first_lines(job_, *device_, *log_);
    if (begin_) say(cat("resume ", checkpoint_dir(o_.out, begin_), ", after step ", begin_));
    if (folder_)
      for (const std::string& note : folder_->notes()) log_->warn(note);
    if (begin_ && begin_ >= o_.steps)
      say(cat("nothing to do: the run has done ", begin_, " steps, --steps is ", o_.steps));
    while (step_ < o_.steps && step(trace)) continue;
    if (log_) log_->traffic_line();
    save();
    if (!saved_dir().empty()) say("saved  " + saved_dir());
    for (const std::string& line : trace.finish()) say(line);
    if (log_) log_->json_document(step_, saved_dir(), signal_);
    if (signal_)
      say(cat("stopped by a signal after step ", step_, "; ",
          o_.out.empty() ? "nothing was kept: give it an --out"
                         : "go on with the same command and --resume" + not_again()));
    else if (o_.sample && o_.format != Format::json)
      sample();
    return signal_;
  }

 private:
  // Rank 0 looks, then changes what is to be changed; then all know where the run begins.
  void open_files() {
    const Guard while_rank_0_reads = world_.patience();
    if (world_.rank() == 0) {
      if (!o_.init.empty()) check_checkpoint(o_.init, job_.config);
      check_trace(o_);
      folder_.emplace(job_);
    }
    begin_ = world_.gather_values(folder_ ? folder_->resumes() : 0)[0];
    if (job_.run.transport == Wire::local) return;
    if (begin_) require_same_checkpoint(world_, "--out", checkpoint_dir(o_.out, begin_));
    if (!o_.init.empty()) require_same_checkpoint(world_, "--init", o_.init);
  }

  void save() {
    if (o_.out.empty() || saved_ == step_) return;
    if (log_) log_->sync_metrics();
    save_checkpoint(*trainer_, checkpoint_dir(o_.out, step_), step_);
    saved_ = step_;
    if (folder_) folder_->forget_old();
  }

  // Returns whether there is to be another one.
  bool step(Trace& trace) {
    const int64_t step = step_ + 1;
    const std::string dump =
        step == o_.dump_step ? cat(o_.out, "/dump-step-", step, ".safetensors") : "";
    std::optional<Recorder> recorder;
    if (trace.records(step)) recorder.emplace(*device_);
    StepResult result = train_step(*trainer_, step,
        {.dump = dump,
            .stop = [&] { return stop_.signal(); },
            .give_up = [&] { return stop_.overdue(); },
            .recorder = recorder ? &*recorder : nullptr});
    signal_ = result.stop;
    if (result.given_up) return false;
    step_ = step;
    if (recorder) {
      const Overlap overlap = trace.add(step, *recorder).steps;
      if (overlap.comm > 0) result.overlap = overlap.fraction();
    }
    std::optional<double> val_loss;
    if (step == o_.steps || (o_.val_every && step % o_.val_every == 0))
      val_loss = validation_loss(*trainer_);
    if (log_) log_->step(result, val_loss);
    if (log_ && step == begin_ + 1) log_->memory_table();
    if (o_.checkpoint_every && step % o_.checkpoint_every == 0) save();
    if (step == o_.steps) signal_ = 0;  // it came too late to stop anything
    return !signal_;
  }

  // The options that resuming would refuse.
  std::string not_again() const {
    std::string names = o_.overwrite ? ", --overwrite" : "";
    if (o_.dump_step && o_.dump_step <= step_) names += ", --dump-step";
    if (!o_.trace.empty() && o_.traced_steps(begin_).first <= step_) names += ", --trace";
    return names.empty() ? "" : ", without " + names.substr(2);
  }

  void sample() {
    const Tokenizer tokenizer =
        job_.dataset.tokenizer_path.empty() ? Tokenizer() : Tokenizer(job_.dataset.tokenizer_path);
    if (tokenizer.vocab_size() < job_.dataset.vocab_size)
      return say("no sample: the shards' folder has no tokenizer .bin");
    say("sample:");
    std::ostringstream unheard;
    signal_ = generate(*trainer_, tokenizer, {.tokens = o_.sample, .seed = o_.seed},
        log_ ? out_ : unheard, [&] { return stop_.signal(); });
  }

  void say(const std::string& line) {
    if (log_) log_->say(line);
  }
  // of the step that the run is at, or empty where it has none
  std::string saved_dir() const {
    return !o_.out.empty() && saved_ == step_ && step_ > 0 ? checkpoint_dir(o_.out, step_) : "";
  }

  const Job& job_;
  const TrainOptions& o_;
  Comm& world_;
  const StopOnSignal& stop_;
  std::ostream& out_;
  std::optional<RunFolder> folder_;  // rank 0's, as log_ is
  const std::unique_ptr<Device> device_;
  std::optional<Trainer> trainer_;
  std::optional<RunLog> log_;
  int64_t begin_ = 0, step_ = 0, saved_ = 0;  // steps: done before, done, in the last checkpoint
  int signal_ = 0;
};

}  // namespace

void add_train_command(CLI::App& duet, int& exit_status) {
  Command cli(duet, "train", "train a model; without options a demonstration of under a minute");
  const auto o = std::make_shared<TrainOptions>();
  add_train_options(cli, *o);
  cli.runs([o, cli, &exit_status] {
    if (o->rehearse.empty()) return void(exit_status = train_command(*o, std::cout));
    cli.refuse_beside("--rehearse", "computes nothing and takes its profile's time for a message",
        {"--steps", "--dp", "--pp", "--microbatches", "--schedule", "--virtual-stages", "--overlap",
            "--preset", "--model", "--seq-len", "--micro-batch-size", "--transport",
            "--comm-timeout", "--trace", "--trace-steps", "--format"});
    const std::vector<std::string> given = cli.given();
    if (std::find(given.begin(), given.end(), "--steps") == given.end()) o->steps = kRehearsedSteps;
    rehearse_command(*o, std::cout);
  });
}

int train_command(const TrainOptions& options, std::ostream& out) {
  const Job job = make_job(options);
  StopOnSignal stop;
  std::atomic<int> signal = 0;
  run_ranks(job.run, [&](Comm& world) { signal = RankRun(job, world, stop, out).run(); });
  return signal ? 128 + signal : 0;
}

}  // namespace duet
