// See train_command.h.
#include "pipeline/train_command.h"

#include <csignal>
#include <filesystem>
#include <ostream>
#include <sstream>

#include "data/dataset.h"
#include "pipeline/durable.h"
#include "pipeline/generate.h"
#include "pipeline/run_log.h"

namespace duet {

namespace fs = std::filesystem;

namespace {

// The one thing a signal handler may touch.
volatile std::sig_atomic_t stop_signal = 0;

// While it lives, SIGINT and SIGTERM ask for a stop instead of ending the process; a second one ends it.
class StopOnSignal {
 public:
  StopOnSignal() {
    stop_signal = 0;
    for (int i : {0, 1}) before_[i] = std::signal(kSignals[i], [](int signal) {
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
  std::ostringstream name;
  name << o.out << "/step-";
  name.width(6);
  name.fill('0');
  name << step;
  return name.str();
}

// Makes the run's folder, or refuses one that holds a run.
void open_out(const TrainOptions& o) {
  if (o.out.empty()) return;
  const bool holds_run = fs::exists(o.out + "/metrics.jsonl") || !newest_checkpoint(o.out).empty();
  require(!holds_run || o.resume || o.overwrite, "--out: found a run in ", o.out, ", allowed: another folder, --resume or --overwrite");
  std::error_code error;
  fs::create_directories(o.out, error);
  require(!error && fs::is_directory(o.out), "--out: cannot make the folder ", o.out, ": ", error.message());
  if (!o.overwrite || o.resume) return;
  for (const std::string& dir : complete_dirs(o.out)) fs::remove_all(dir);
  fs::remove(o.out + "/metrics.jsonl");
}

std::string first_lines(const TrainOptions& o, const ModelConfig& c, Device& device) {
  return cat("model  ", o.preset, o.model.empty() ? "" : " with " + o.model, ": ", c.n_layers, " layers, d_model ", c.d_model, ", ",
             c.n_routed, " routed experts (top ", c.topk, ") + ", c.n_shared, " shared; ", c.parameters() / 1000, "K parameters, ",
             c.active_parameters() / 1000, "K active\n", "batch  ", o.microbatches, " microbatches of ", o.micro_batch_size,
             " sequences of ", o.seq_len, " tokens; seed ", o.seed, "\n", "device ", device.name(), ", ", o.dtype);
}

}  // namespace

void train_command(TrainOptions o, std::ostream& out) {
  ModelConfig config = o.init.empty() ? o.resolve() : (o.resolve(), checkpoint_config(o.init));
  const Dataset dataset = load_dataset(o.data, o.seq_len);
  config.vocab_size = o.init.empty() ? std::max(config.vocab_size, dataset.vocab_size) : config.vocab_size;
  const BatchSource batches(dataset, o.seq_len, o.microbatches * o.micro_batch_size, config.vocab_size);
  const std::string resume_from = o.resume ? newest_checkpoint(o.out) : "";
  if (!resume_from.empty())
    require(checkpoint_config(resume_from) == config, "--resume: found a model of other sizes in ", resume_from,
            ", allowed: the same --preset, --model and vocabulary");
  const std::unique_ptr<Device> device = make_device(o);
  open_out(o);

  Trainer trainer(o, config, *device, batches);
  if (!o.init.empty()) trainer.load(o.init);
  const int64_t done = resume_from.empty() ? 0 : trainer.load(resume_from);
  RunLog log(o, *device, out, done + 1);
  log.say(first_lines(o, config, *device));
  log.say("data   " + describe(dataset));
  if (!resume_from.empty()) log.say(cat("resume ", resume_from, ", after step ", done));

  StopOnSignal stop;
  int64_t step = done, saved = done;
  const auto save = [&] {
    if (o.out.empty() || saved == step) return;
    trainer.save(checkpoint_dir(o, step), step);
    saved = step;
  };
  while (step < o.steps && !stop.asked()) {
    ++step;
    const StepResult result = trainer.step(step, step == o.dump_step ? cat(o.out, "/dump-step-", step, ".safetensors") : "");
    const bool last = step == o.steps, validate = last || (o.val_every && step % o.val_every == 0);
    log.step(result, validate ? std::optional(trainer.validate()) : std::nullopt);
    if (step == done + 1) log.memory_table();
    if (o.checkpoint_every && step % o.checkpoint_every == 0) save();
  }
  save();
  if (!o.out.empty()) log.say("saved  " + checkpoint_dir(o, step));
  if (step < o.steps) {
    log.say(cat("stopped by a signal after step ", step, "; go on with the same command and --resume",
                o.out.empty() ? " (nothing was kept: give it an --out)" : ""));
    return;
  }
  if (o.sample == 0) return;
  const Tokenizer tokenizer = dataset.tokenizer_path.empty() ? Tokenizer() : Tokenizer(dataset.tokenizer_path);
  if (tokenizer.vocab_size() < dataset.vocab_size) {
    log.say("no sample: the shards' folder has no tokenizer .bin");
    return;
  }
  log.say("sample:");
  generate(trainer, tokenizer, {.tokens = o.sample, .seed = o.seed}, out);
}

}  // namespace duet
