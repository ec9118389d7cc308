// See rehearse.h.
#include "pipeline/train/rehearse.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <ostream>
#include <thread>

#include "model/base/clock.h"
#include "model/base/hash.h"
#include "model/base/json.h"
#include "pipeline/insight/trace/trace.h"
#include "pipeline/train/run_folder.h"
#include "pipeline/train/same_run.h"

namespace duet {
namespace {

constexpr double kLead = 0.005;  // seconds from a step's announcement to its begin
constexpr double kShortestStep = 1e-3, kLongestStep = 3600;  // seconds

void sleep_until(double time) {
  std::this_thread::sleep_for(std::chrono::duration<double>(time - seconds_now()));
}

double message_time(const CostProfile& profile, Tag::Kind kind) {
  return kind == Tag::F ? profile.forward_message : profile.backward_message;
}

}  // namespace

// --- waiting instead of computing ----------------------------------------------------------------

RehearsedStages::RehearsedStages(
    const Schedule& schedule, const CostProfile& profile, const Context& context, double begin)
    : schedule_(schedule), profile_(profile), context_(context), begin_(begin) {}

// When what one stage made is there for another. Its first bytes are its maker's time.
double RehearsedStages::arrival(Tag::Kind kind, const Buf& what, int maker, int user) const {
  if (!what) return 0;
  double made;
  std::memcpy(&made, what->data, sizeof made);
  const std::vector<int>& rank_of = schedule_.rank_of;
  return made +
      (rank_of[size_t(maker)] == rank_of[size_t(user)] ? 0 : message_time(profile_, kind));
}

Stages::Made RehearsedStages::run(const Action& a, Given given) {
  const int b_stage = a.overlapped() ? a.b_stage : a.stage;
  const double start = std::max(
      {spans_.empty() ? 0 : spans_.back().end, arrival(Tag::F, given.x, a.stage - 1, a.stage),
          arrival(Tag::B, given.dy, b_stage + 1, b_stage)});
  spans_.push_back({start, start + profile_.of(schedule_, a)});
  {
    const Scope scope(context_.recorder, context_.stream(), {"not yet", "wait", a.stage});
    sleep_until(begin_ + start);
  }
  const Scope scope(context_.recorder, context_.stream(),
      {a.overlapped() ? "pair" : kind_name(a.kind), "compute", a.stage, a.microbatch});
  sleep_until(begin_ + spans_.back().end);
  const auto make = [&] {
    Buf made = context_.message();
    std::memcpy(made->data, &spans_.back().end, sizeof(double));
    return made;
  };
  const bool forward = a.kind == Kind::F, backward = a.kind == Kind::I || a.kind == Kind::B;
  return {forward ? make() : Buf(), backward || a.overlapped() ? make() : Buf()};
}

// --- a rank of a job -----------------------------------------------------------------------------

Rehearsal::Rehearsal(const Job& job, const CostProfile& profile, Comm& world, Device& device)
    : job_(job), profile_(profile), world_(world), channels_(world, device, message_pairs(job)),
      pipeline_(world.group(job.layout.pipeline_of(world.rank()))),
      context_{device, job.config, Dtype::f32, job.options.seq_len, job.options.micro_batch_size},
      clock_ahead_(job.run.transport == Wire::local
              ? 0
              : 1e-9 * double(clock_offset(world, nanoseconds_now).ahead)) {}

RehearsedStep Rehearsal::step(Recorder* recorder) {
  context_.recorder = recorder;
  const double begin = world_.gather_values(seconds_now() + kLead)[0] + clock_ahead_;
  RehearsedStages stages(job_.schedule, profile_, context_, begin);
  Executor executor(job_.schedule, pipeline_, context_, stages, job_.options.overlap);
  sleep_until(begin);
  {
    const Scope scope(recorder, context_.stream(), {"step", "step"});
    executor.run(job_.schedule.ranks[size_t(job_.layout.pp_rank(world_.rank()))],
        [](int) { return Microbatch(); });
  }
  RehearsedStep step{.spans = stages.spans()};
  for (double end : world_.gather_values(seconds_now() - begin))
    step.seconds = std::max(step.seconds, end);
  double busy = 0;
  for (const Span& span : step.spans) busy += span.end - span.start;
  for (double rank : world_.gather_values(1 - busy / step.seconds))
    step.bubble += rank / world_.size();
  return step;
}

// --- the command ---------------------------------------------------------------------------------

namespace {

std::string milliseconds(double seconds) { return format("%.2f ms", 1e3 * seconds); }

// What a rank's part of the run says, on rank 0.
class Report {
 public:
  Report(const Job& job, const Timing& simulated, std::ostream& out)
      : job_(job), simulated_(simulated), out_(out) {}

  void first_lines() const {
    const Layout& l = job_.layout;
    say(cat("rehearse ", job_.options.rehearse, ": nothing is computed, actions take its times"));
    say(cat("ranks  ", l.world(), " (dp ", l.dp, " x pp ", l.pp, "), schedule ", job_.compute.name,
        ", ", job_.options.microbatches, " microbatches"));
    say(cat("simulator: a step takes ", milliseconds(simulated_.makespan),
        format(", bubble %.1f%%", 100 * simulated_.bubble())));
  }
  void step(int64_t number, const RehearsedStep& r) {
    steps_.push_back(r.seconds), bubbles_.push_back(r.bubble);
    say(format("step %lld/%lld | %s | %.3f%% longer than simulated | bubble %.1f%%",
        (long long)number, (long long)job_.options.steps, milliseconds(r.seconds).c_str(),
        100 * (r.seconds / simulated_.makespan - 1), 100 * r.bubble));
  }
  void last_lines(const std::vector<std::string>& of_trace) const {
    for (const std::string& line : of_trace) say(line);
    if (job_.options.format != Format::json) return;
    out_ << Json::object(
                {{"schedule", job_.compute.name}, {"dp", job_.layout.dp}, {"pp", job_.layout.pp},
                    {"microbatches", job_.options.microbatches}, {"step_s", Json(steps_)},
                    {"bubble", Json(bubbles_)}, {"simulated_step_s", simulated_.makespan},
                    {"simulated_bubble", simulated_.bubble()}})
                .dump(2)
         << std::endl;
  }

 private:
  void say(const std::string& line) const {
    if (job_.options.format != Format::json) out_ << line << std::endl;
  }
  const Job& job_;
  const Timing& simulated_;
  std::ostream& out_;
  std::vector<double> steps_, bubbles_;  // seconds; parts of them
};

}  // namespace

Schedule rehearsed_schedule(const Job& job) {
  Schedule s = job.compute;
  if (job.options.overlap) return s;
  for (std::vector<Action>& list : s.ranks) {
    std::vector<Action> parts;
    for (const Action& a : list) for_parts(a, [&](const Action& part) { parts.push_back(part); });
    list = std::move(parts);
  }
  return s;
}

static CostProfile profile_of(const Job& job) {
  const TrainOptions& o = job.options;
  const CostProfile profile = read_profile(o.rehearse);
  require(profile.fits(job.compute), "--rehearse: found ", profile.stages.size(), " stages in ",
      o.rehearse, ", allowed: 1 or ", job.compute.model_stages(), ", as many as ", job.compute.name,
      " cuts the model into");
  const int64_t bytes = o.seq_len * o.micro_batch_size * job.config.d_model * 4;
  require(bytes >= int64_t(sizeof(double)),
      "--model, --seq-len, --micro-batch-size: found messages of ", bytes,
      " bytes, allowed with --rehearse: at least ", sizeof(double),
      ", which hold their sender's time");
  return profile;
}

void rehearse_command(const TrainOptions& options, std::ostream& out) {
  Job job = make_job(options, false);
  const CostProfile profile = profile_of(job);
  const Timing simulated = simulate(rehearsed_schedule(job), profile);
  require(simulated.makespan >= kShortestStep && simulated.makespan <= kLongestStep,
      "--rehearse: found ", options.rehearse, ", by which a step takes ", simulated.makespan,
      " s, allowed: ", kShortestStep, " to ", kLongestStep);
  job.run.timeout += simulated.makespan;
  run_ranks(job.run, [&](Comm& world) {
    if (job.run.transport != Wire::local) {
      require_same_job(world, job);
      world.require_same("--rehearse", cat("costs of hash ", checksum(write_profile(profile))));
    }
    if (world.rank() == 0) check_trace(job.options);
    const std::unique_ptr<Device> device = make_cpu_device(1);
    Rehearsal rehearsal(job, profile, world, *device);
    const auto [first, last] = job.options.traced_steps(0);
    Trace trace(
        world, job.layout, {job.options.trace, first, last, job.run.transport == Wire::local});
    std::optional<Report> report;
    if (world.rank() == 0) report.emplace(job, simulated, out), report->first_lines();
    for (int64_t step = 1; step <= job.options.steps; ++step) {
      std::optional<Recorder> recorder;
      if (trace.records(step)) recorder.emplace(*device);
      const RehearsedStep result = rehearsal.step(recorder ? &*recorder : nullptr);
      if (recorder) trace.add(step, *recorder);
      if (report) report->step(step, result);
    }
    const std::vector<std::string> of_trace = trace.finish();
    if (report) report->last_lines(of_trace);
  });
}

}  // namespace duet
