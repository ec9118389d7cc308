// See bench.h.
#include "pipeline/bench.h"

#include <algorithm>
#include <ostream>

#include "data/dataset.h"
#include "model/gemm_bench.h"
#include "pipeline/trainer.h"

namespace duet {

void bench_command(const BenchOptions& b, std::ostream& out) {
  require(b.steps >= 1, "--steps: found ", b.steps, ", allowed: at least 1");
  TrainOptions o;
  o.preset = b.preset;
  o.threads = b.threads;
  o.microbatches = b.microbatches;
  o.steps = b.steps + 1;
  o.device = "cpu";
  const ModelConfig config = o.resolve();
  if (b.gemm) return bench_gemm(int(b.threads), out);
  const Dataset dataset = load_dataset("", o.seq_len);
  const BatchSource batches(dataset, o.seq_len, o.microbatches * o.micro_batch_size, config.vocab_size);
  const std::unique_ptr<Device> device = make_device(o);
  Trainer trainer(o, config, *device, batches);
  std::vector<double> seconds;
  StepResult last;
  for (int64_t step = 1; step <= o.steps; ++step) {
    last = trainer.step(step);
    if (step > 1) seconds.push_back(last.seconds);
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  out << Json::object({{"trainer", "duet"}, {"preset", b.preset}, {"device", device->name()}, {"threads", b.threads},
                       {"tokens", last.tokens}, {"step_ms", median * 1e3}, {"tokens_per_s", double(last.tokens) / median},
                       {"gflops", double(last.flops) / median * 1e-9}}).dump() << std::endl;
}

}  // namespace duet
