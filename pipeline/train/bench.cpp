// See bench.h.
#include "pipeline/train/bench.h"

#include <algorithm>
#include <iostream>
#include <memory>

#include "model/base/command_line.h"
#include "pipeline/train/trainer.h"

namespace duet {

void add_bench_command(CLI::App& duet, int&) {
  Command cli(duet, "bench", "tokens/s and GFLOP/s of training steps on this machine");
  const auto o = std::make_shared<BenchOptions>();
  cli.text("--preset", o->preset, "model to time, by the names of duet train");
  cli.number("--threads", o->threads, 1, 4096, "cores used");
  cli.number("--steps", o->steps, 1, 1'000'000, "timed steps; the median counts");
  cli.number("--microbatches", o->microbatches, 1, 1 << 20, "per step");
  cli.runs([o] { bench_command(*o, std::cout); });
}

void bench_command(const BenchOptions& b, std::ostream& out) {
  TrainOptions o;
  o.preset = b.preset;
  o.threads = b.threads;
  o.microbatches = b.microbatches;
  o.steps = b.steps + 1;
  o.device = DeviceKind::cpu;
  o.dp = 1;
  const Job job = make_job(o);
  std::vector<double> seconds;
  StepResult last;
  std::string device_name;
  run_ranks(job.run, [&](Comm& world) {
    const std::unique_ptr<Device> device = make_device(job, world);
    device_name = device->name();
    Trainer trainer(job, world, *device);
    for (int64_t step = 1; step <= o.steps; ++step) {
      last = train_step(trainer, step);
      if (step > 1) seconds.push_back(last.seconds);
    }
  });
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  out << Json::object({{"trainer", "duet"}, {"preset", b.preset}, {"device", device_name},
                          {"threads", b.threads}, {"parameters", job.config.parameters()},
                          {"tokens", last.tokens}, {"step_ms", median * 1e3},
                          {"tokens_per_s", double(last.tokens) / median},
                          {"gflops", double(last.flops) / median * 1e-9}})
             .dump()
      << std::endl;
}

}  // namespace duet
