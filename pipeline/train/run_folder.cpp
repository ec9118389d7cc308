// See run_folder.h.
#include "pipeline/train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "data/open_file.h"
#include "pipeline/checkpoint/checkpoint.h"
#include "pipeline/train/same_run.h"

namespace duet {

namespace fs = std::filesystem;

// From a constructor that is done, so that what throws here ends the lock, too.
RunFolder::RunFolder(const Job& job) : RunFolder(job.options) {
  const std::string& out = options_.out;
  if (out.empty()) return;
  // what is nobody's run yet is not even locked before it is known to become one
  if (holds_run() || fs::exists(out + "/.lock")) lock();
  refuse_wrong_folder();
  choose_checkpoint(job);
  const std::error_code error = make_folders(out);
  require(!error, "--out: cannot make the folder ", out, ": ", error.message());
  lock();
  const bool writable = access(out.c_str(), W_OK | X_OK) == 0;
  require(writable, "--out: ", out, cannot_be("written"));
  make_room();
}

RunFolder::~RunFolder() {
  if (lock_ >= 0) close(lock_);
}

// A lock of flock's ends with the process, however that ends.
void RunFolder::lock() {
  if (lock_ >= 0) return;
  const std::string path = options_.out + "/.lock";
  lock_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  require(lock_ >= 0, "--out: ", path, cannot_be("opened"));
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    char holder[100] = "";
    if (pread(lock_, holder, sizeof holder - 1, 0) <= 0) holder[0] = '?';
    throw UsageError(cat("--out: found ", options_.out, " in use by process ", holder,
        ", allowed: another folder, or this one when that run has ended"));
  }
  char host[60] = "";
  gethostname(host, sizeof host - 1);
  const std::string me = cat(getpid(), " on ", host);
  const bool written = ftruncate(lock_, 0) == 0 && pwrite(lock_, me.data(), me.size(), 0) > 0;
  if (!written) throw Error(path + cannot_be("written"));
}

bool RunFolder::holds_run() const {
  return fs::exists(options_.out + "/metrics.jsonl") || !run_checkpoints(options_.out).empty();
}

void RunFolder::refuse_wrong_folder() const {
  const std::string &out = options_.out, &init = options_.init;
  const bool run = holds_run();
  require(!run || options_.resume || options_.overwrite, "--out: found a run in ", out,
      ", allowed: another folder, --resume or --overwrite");
  require(run || !fs::exists(out + "/config.json"), "--out: found a config.json in ", out,
      ", which is not a run's, allowed: a folder without");
  if (!options_.overwrite || init.empty()) return;
  for (const auto& [step, dir] : run_checkpoints(out)) {
    std::error_code missing;
    for (fs::path p = fs::weakly_canonical(init); p.has_relative_path(); p = p.parent_path())
      require(!fs::equivalent(p, dir, missing), "--init: found ", init,
          ", which --overwrite would delete, allowed: a copy elsewhere, or another --out");
  }
}

// Of several that are whole the newest; where that is damaged, it is for the user to go back.
void RunFolder::choose_checkpoint(const Job& job) {
  if (!options_.resume) return;
  std::map<int64_t, std::string> found = run_checkpoints(options_.out);
  if (const int64_t from = options_.from_step) {
    std::string steps;
    for (const auto& [step, dir] : found) steps += cat(steps.empty() ? "" : ", ", step);
    require(found.contains(from), "--from-step: found ", from,
        ", allowed: ", steps.empty() ? "nothing, there is no checkpoint" : steps);
    found.erase(found.upper_bound(from), found.end());
  }
  if (found.empty()) return;
  const auto [newest, dir] = *found.rbegin();
  const auto damage_of = [&](int64_t step, const std::string& checkpoint) -> std::string {
    try {
      check_checkpoint(checkpoint, job.config);
      const Json trainer = checkpoint_trainer(checkpoint);
      const int64_t said = trainer.is_null() ? -1 : trainer.at("step").integer(0, kMostSteps);
      require(said == step, checkpoint, "/trainer.json: found step ", said, ", allowed: ", step);
      return "";
    } catch (const UsageError& damage) {
      return damage.what();
    }
  };
  if (const std::string damage = damage_of(newest, dir); !damage.empty()) {
    auto good = std::next(found.rbegin());
    while (good != found.rend() && !damage_of(good->first, good->second).empty()) ++good;
    throw UsageError(good == found.rend() ? damage
                                          : cat(damage, "; the newest good one is ", good->second,
                                                ", allowed: --from-step ", good->first));
  }
  notes_ = check_same_run(job, checkpoint_trainer(dir), dir);
  require(!options_.dump_step || options_.dump_step > newest, "--dump-step: found ",
      options_.dump_step, ", allowed: after step ", newest, ", where the run goes on");
  resumes_ = newest;
}

// Removes the run that is overwritten, and puts aside what lies after where one goes on.
void RunFolder::make_room() {
  for (const auto& [step, dir] : run_checkpoints(options_.out)) {
    if (options_.overwrite) remove_dir(dir);
    if (!options_.from_step || step <= resumes_) continue;
    notes_.push_back(cat("aside  ", put_aside(dir), ", which was a later checkpoint"));
  }
  if (options_.overwrite) fs::remove(options_.out + "/metrics.jsonl");
}

void RunFolder::forget_old() const {
  if (options_.out.empty() || !options_.keep_last) return;
  std::map<int64_t, std::string> found = run_checkpoints(options_.out);
  for (; int64_t(found.size()) > options_.keep_last; found.erase(found.begin()))
    remove_dir(found.begin()->second);
}

void check_trace(const TrainOptions& o) {
  if (o.trace.empty()) return;
  require(fs::path(o.trace).filename() != "metrics.jsonl", "--trace: found ", o.trace,
      ", allowed: another name than that of a run's own file");
  const auto folder_of = [](const fs::path& file) {
    return fs::absolute(file).lexically_normal().parent_path();
  };
  if (!o.out.empty() && folder_of(o.trace) == folder_of(fs::path(o.out) / "trace") &&
      !fs::exists(o.out))
    return;
  const bool existed = fs::exists(o.trace);
  constexpr std::string_view kBegin = "{\"displayTimeUnit\":";  // of a trace (trace.cpp)
  std::string begin;
  if (fs::is_regular_file(o.trace)) {
    const OpenFile file(o.trace);
    begin = file.read(0, std::min(file.size(), int64_t(kBegin.size())));
  }
  require(begin.empty() || begin == kBegin, "--trace: found ", o.trace,
      ", which would be overwritten, allowed: a new file, or an older trace");
  require(std::ofstream(o.trace, std::ios::app).good(), "--trace: found ", o.trace,
      ", which cannot be written, allowed: a file in a folder that exists");
  if (!existed) fs::remove(o.trace);
}

}  // namespace duet
