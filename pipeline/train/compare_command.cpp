// See compare_command.h.
#include "pipeline/train/compare_command.h"

#include <algorithm>
#include <iostream>
#include <ostream>
#include <span>
#include <sstream>

#include "model/base/command_line.h"
#include "pipeline/schedule/simulator.h"
#include "pipeline/train/trainer.h"

namespace duet {
namespace {

// What a schedule did.
struct Outcome {
  std::string schedule;
  std::vector<double> loss, norm;  // [steps]
  uint64_t fingerprint = 0;
  double bubble = 0, measured = 0;
  double activations = 0;        // parts of 1/pp of the model
  int64_t activation_bytes = 0;  // of the rank with the most
  int copies = 1;

  // The first step whose bits differ from the reference's; 0 where none does, steps + 1 where only
  // the final state does.
  int64_t differs(const Outcome& reference) const {
    for (size_t i = 0; i < loss.size(); ++i)
      if (loss[i] != reference.loss[i] || norm[i] != reference.norm[i]) return int64_t(i) + 1;
    return fingerprint == reference.fingerprint ? 0 : int64_t(loss.size()) + 1;
  }
};

// One rank's part in running a job; what rank 0 returns counts.
Outcome train(const Job& job, Comm& world) {
  const Schedule& s = job.compute;
  Outcome o;
  o.schedule = job.layout.world() == 1 ? "one rank" : s.name;
  o.bubble = simulate(s, Costs()).bubble();
  o.activations = job.usage.peak() * s.stage_share();
  o.copies = s.weight_copies();
  const std::unique_ptr<Device> device = make_device(job, world.rank());
  Trainer trainer(job, world, *device);
  for (int64_t step = 1; step <= job.options.steps; ++step) {
    const StepResult r = train_step(trainer, step);
    o.loss.push_back(r.loss);
    o.norm.push_back(r.grad_norm);
    o.measured += r.idle / double(job.options.steps);
  }
  o.fingerprint = fingerprint(trainer);
  DUET_CHECK(copies_agree(trainer), job.compute.name,
      ": expected all copies of a parameter to hold the same bits");
  for (int64_t bytes : world.gather_values(device->memory(Use::activations).peak))
    o.activation_bytes = std::max(o.activation_bytes, bytes);
  return o;
}

void print_text(
    const std::vector<Outcome>& outcomes, const std::string& why_not_timed, std::ostream& out) {
  out << "schedule       final loss   bits                    bubble  measured  activations      "
         "MiB  copies\n";
  for (const Outcome& o : outcomes) {
    const int64_t step = o.differs(outcomes[0]);
    const std::string bits = &o == &outcomes[0] ? "the reference"
        : step == 0                             ? "identical"
        : step > int64_t(o.loss.size())         ? "state differs at the end"
                                                : cat("differ from step ", step);
    const std::string measured = why_not_timed.empty() ? format("%.1f%%", 100 * o.measured) : "-";
    out << format("%-14s %-12.8f %-22s %6.1f%% %9s %12.1f %8.1f %7d\n", o.schedule.c_str(),
        o.loss.back(), bits.c_str(), 100 * o.bubble, measured.c_str(), o.activations,
        double(o.activation_bytes) / (1 << 20), o.copies);
  }
  if (!why_not_timed.empty()) out << "measured: - because " << why_not_timed << "\n";
}

void print_json(
    const std::vector<Outcome>& outcomes, const std::string& why_not_timed, std::ostream& out) {
  Json rows = Json::array();
  for (const Outcome& o : outcomes) {
    const int64_t step = o.differs(outcomes[0]);
    rows.push(Json::object({{"schedule", o.schedule}, {"final_loss", o.loss.back()},
        {"final_loss_hex", format("%a", o.loss.back())},
        {"fingerprint", format("%016llx", (unsigned long long)o.fingerprint)},
        {"identical", step == 0}, {"first_step_that_differs", step ? Json(step) : Json()},
        {"ideal_bubble", o.bubble},
        {"measured_bubble", why_not_timed.empty() ? Json(o.measured) : Json()},
        {"peak_activations", o.activations}, {"peak_activation_bytes", o.activation_bytes},
        {"parameter_copies", o.copies}}));
  }
  out << Json::object({{"schedules", rows}, {"why_not_measured", why_not_timed}}).dump(2) << "\n";
}

}  // namespace

void add_compare_command(CLI::App& duet, int& exit_status) {
  Command cli(duet, "compare",
      "train under each schedule and compare every bit; exit status 1 if one differs");
  const auto o = std::make_shared<CompareOptions>();
  add_train_options(cli, o->train);
  cli.parsed(
      "--schedules", o->schedules, [](const std::string& text) { return split(text); },
      "names or CSV files, with commas between; default: all published");
  cli.runs([o, &exit_status] { exit_status = compare_command(*o, std::cout) ? 0 : 1; });
}

bool compare_command(const CompareOptions& options, std::ostream& out) {
  require(
      options.train.steps >= 1, "--steps: found ", options.train.steps, ", allowed: at least 1");
  std::vector<Job> jobs;
  TrainOptions o = options.train;
  o.out.clear();
  o.dump_step = 0;
  o.trace.clear();
  o.trace_steps.reset();
  std::vector<std::string> names = options.schedules;
  if (names.empty())
    for (const ScheduleKind& kind : schedule_kinds()) names.push_back(kind.name);
  for (const std::string& name : names) {
    o.schedule = name;
    jobs.push_back(make_job(o));
  }

  std::vector<Outcome> outcomes;
  const auto run = [&](std::span<const Job> some) {
    run_ranks(some[0].run, [&](Comm& world) {
      for (const Job& job : some) {
        const Outcome outcome = train(job, world);
        if (world.rank() == 0) outcomes.push_back(outcome);
      }
    });
  };
  if (jobs[0].run.transport != Wire::mpi && find_launch().ranks == 1) {
    o.pp = 1;
    o.schedule = "1f1b";
    o.split.clear();
    const Job one = make_job(o);
    run({&one, 1});
  }
  run(jobs);
  if (outcomes.empty()) return true;  // of another MPI process than rank 0, which decides
  (options.train.format == Format::json ? print_json : print_text)(
      outcomes, why_not_timed(jobs[0]), out);
  return std::all_of(outcomes.begin(), outcomes.end(),
      [&](const Outcome& x) { return x.differs(outcomes[0]) == 0; });
}

}  // namespace duet
