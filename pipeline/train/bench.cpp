// See bench.h.
#include "pipeline/train/bench.h"

#include <algorithm>
#include <iostream>
#include <map>
#include <memory>

#include "model/base/command_line.h"
#include "pipeline/train/run_log.h"
#include "pipeline/train/trainer.h"

namespace duet {

void add_bench_command(CLI::App& duet, int&) {
  Command cli(duet, "bench", "tokens/s and GFLOP/s of training steps on this machine");
  const auto o = std::make_shared<TrainOptions>(kBenchOptions);
  cli.text("--preset", o->preset, "model to time, by the names of duet train");
  cli.parsed("--model", o->model, parse_sizes, "sizes instead of the preset's, as in duet train");
  cli.number("--threads", o->threads, 1, 4096, "cores used");
  cli.choice("--device", o->device, {DeviceKind::cpu, DeviceKind::cuda}, device_kind_name,
      "where it runs; default: cuda if there is one");
  cli.choice("--dtype", o->dtype, {Dtype::f32, Dtype::bf16}, dtype_name, "as in duet train");
  cli.number("--steps", o->steps, 1, 1'000'000, "timed steps; the median counts");
  cli.number("--microbatches", o->microbatches, 1, 1 << 20, "per step");
  cli.number("--micro-batch-size", o->micro_batch_size, 0, 1 << 20, "0: the preset's");
  cli.runs([o] { bench_command(*o, std::cout); });
}

// Of a step's kernels, by kind and by kind and name; null where they are not timed.
static Json time_kernels(Trainer& trainer, int64_t step) {
  Device& device = trainer.device;
  Recorder recorder(device);
  device.kernels = &recorder;
  train_step(trainer, step);
  device.kernels = nullptr;
  device.compute().synchronize();
  struct Sum {
    int64_t calls = 0, bytes = 0, flops = 0;
    double seconds = 0;
  };
  std::map<std::string, Sum> sums;
  for (const Recorder::Entry& e : recorder.entries())
    for (const std::string& kind :
        {std::string(e.activity.track), cat(e.activity.track, " ", e.activity.name)}) {
      Sum& s = sums[kind];
      ++s.calls;
      s.bytes += e.activity.bytes;
      s.flops += e.activity.flops;
      s.seconds += e.end->seconds() - e.begin->seconds();
    }
  Json all = Json::array();
  for (const auto& [kind, s] : sums) {
    const double rate = double(s.flops ? s.flops : s.bytes) / s.seconds,
                 peak = s.flops ? device.peak_flops(trainer.context.dtype) : device.peak_bytes();
    Json one = Json::object({{"kind", kind}, {"calls", s.calls}, {"ms", s.seconds * 1e3},
        {s.flops ? "gflops" : "gb_per_s", rate * 1e-9},
        {"of_peak", peak > 0 ? Json(rate / peak) : Json()}});
    if (s.flops && s.bytes) one.set("exact_sums_gb", double(s.bytes) * 1e-9);
    all.push(one);
  }
  return all;
}

void bench_command(TrainOptions o, std::ostream& out) {
  o.steps += 2;
  const Job job = make_job(o);
  std::vector<StepResult> steps;
  std::string device_name;
  double part_of_peak = 0;
  Json kernels;
  run_ranks(job.run, [&](Comm& world) {
    const std::unique_ptr<Device> device = make_device(job, world);
    device_name = device->name();
    Trainer trainer(job, world, *device);
    for (int64_t step = 1; step < o.steps; ++step) {
      const StepResult r = train_step(trainer, step);
      if (step > 1) steps.push_back(r);
    }
    std::ranges::sort(steps, {}, &StepResult::seconds);
    part_of_peak = mfu(job, steps[steps.size() / 2], *device);
    if (device->is_cuda()) kernels = time_kernels(trainer, o.steps);
  });
  const StepResult& median = steps[steps.size() / 2];
  out << Json::object(
             {{"trainer", "duet"}, {"preset", o.preset}, {"device", device_name},
                 {"threads", o.threads}, {"parameters", job.config.parameters()},
                 {"dtype", dtype_name(*job.options.dtype)}, {"tokens", median.tokens},
                 {"step_ms", median.seconds * 1e3},
                 {"tokens_per_s", double(median.tokens) / median.seconds},
                 {"gflops", double(median.flops) / median.seconds * 1e-9},
                 {"mfu", part_of_peak > 0 ? Json(part_of_peak) : Json()}, {"kernels", kernels}})
             .dump()
      << std::endl;
}

}  // namespace duet
