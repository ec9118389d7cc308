// See rehearse.h.
#include "pipeline/train/rehearse.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <ostream>
#include <thread>

#include "model/base/clock.h"
#include "model/base/hash.h"
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

}  // namespace

// --- waiting instead of computing ----------------------------------------------------------------

// When what `stage` needs is there. Its first bytes are its maker's time.
double Rehearsal::arrival(Tag::Kind kind, const Buf& what, int stage) const {
  if (!what) return 0;
  double made;
  std::memcpy(&made, what->data, sizeof made);
  const std::vector<int>& rank_of = job_.schedule.rank_of;
  const int maker = kind == Tag::F ? stage - 1 : stage + 1;
  if (rank_of[size_t(maker)] == rank_of[size_t(stage)]) return made;
  return made + (kind == Tag::F ? profile_.forward_message : profile_.backward_message);
}

Executor::Made Rehearsal::run(const Action& a, const Executor::Given& given) {
  const double start =
      std::max({spans_.empty() ? 0 : spans_.back().end, arrival(Tag::F, given.x, a.stage),
          arrival(Tag::B, given.dy, a.overlapped() ? a.b_stage : a.stage)});
  spans_.push_back({start, start + profile_.of(job_.schedule, a)});
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
  spans_.clear();
  begin_ = world_.gather_values(seconds_now() + kLead)[0] + clock_ahead_;
  const auto wait = [this](const Action& a, const Executor::Given& given) { return run(a, given); };
  Executor executor(job_.schedule, pipeline_, context_, wait, job_.options.overlap);
  sleep_until(begin_);
  {
    const Scope scope(recorder, context_.stream(), {"step", "step"});
    executor.run(job_.schedule.ranks[size_t(job_.layout.pp_rank(world_.rank()))],
        [](int) { return Microbatch(); });
  }
  RehearsedStep step{.spans = spans_};
  step.seconds = std::ranges::max(world_.gather_values(seconds_now() - begin_));
  double busy = 0;
  for (const Span& span : spans_) busy += span.end - span.start;
  for (double rank : world_.gather_values(1 - busy / step.seconds))
    step.bubble += rank / world_.size();
  return step;
}

// --- the command ---------------------------------------------------------------------------------

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

// A rank's part; rank 0 says what comes of it.
static void rehearse(const Job& job, const CostProfile& profile, const Timing& simulated,
    Comm& world, std::ostream& out) {
  const TrainOptions& o = job.options;
  const Layout& l = job.layout;
  const bool json = o.format == Format::json;
  const auto say = [&](const std::string& line) {
    if (world.rank() == 0 && !json) out << line << std::endl;
  };
  if (job.run.transport != Wire::local) {
    require_same_job(world, job);
    world.require_same("--rehearse", cat("costs of hash ", checksum(write_profile(profile))));
  }
  if (world.rank() == 0) check_trace(o);
  const std::unique_ptr<Device> device = make_cpu_device(1);
  Rehearsal rehearsal(job, profile, world, *device);
  const auto [first, last] = o.traced_steps(0);
  Trace trace(world, l, {o.trace, first, last, job.run.transport == Wire::local});
  say(cat("rehearse ", o.rehearse, ": nothing is computed, actions take its times"));
  say(cat("ranks  ", l.world(), " (dp ", l.dp, " x pp ", l.pp, "), schedule ", job.compute.name,
      ", ", o.microbatches, " microbatches"));
  say(format("simulator: a step takes %.2f ms, bubble %.1f%%", 1e3 * simulated.makespan,
      100 * simulated.bubble()));
  std::vector<double> seconds, bubbles;  // of the steps
  for (int64_t step = 1; step <= o.steps; ++step) {
    std::optional<Recorder> recorder;
    if (trace.records(step)) recorder.emplace(*device);
    const RehearsedStep r = rehearsal.step(recorder ? &*recorder : nullptr);
    if (recorder) trace.add(step, *recorder);
    seconds.push_back(r.seconds);
    bubbles.push_back(r.bubble);
    say(format("step %lld/%lld | %.2f ms | %.3f%% longer than simulated | bubble %.1f%%",
        (long long)step, (long long)o.steps, 1e3 * r.seconds,
        100 * (r.seconds / simulated.makespan - 1), 100 * r.bubble));
  }
  for (const std::string& line : trace.finish()) say(line);
  if (world.rank() != 0 || !json) return;
  out << Json::object({{"schedule", job.compute.name}, {"dp", l.dp}, {"pp", l.pp},
                          {"microbatches", o.microbatches}, {"step_s", Json(seconds)},
                          {"bubble", Json(bubbles)}, {"simulated_step_s", simulated.makespan},
                          {"simulated_bubble", simulated.bubble()}})
             .dump(2)
      << std::endl;
}

void rehearse_command(const TrainOptions& options, std::ostream& out) {
  Job job = make_job(options, false);
  const CostProfile profile = profile_of(job);
  const Timing simulated = simulate(rehearsed_schedule(job), profile);
  require(simulated.makespan >= kShortestStep && simulated.makespan <= kLongestStep,
      "--rehearse: found ", options.rehearse, ", by which a step takes ", simulated.makespan,
      " s, allowed: ", kShortestStep, " to ", kLongestStep);
  job.run.timeout += simulated.makespan;
  run_ranks(job.run, [&](Comm& world) { rehearse(job, profile, simulated, world, out); });
}

}  // namespace duet
