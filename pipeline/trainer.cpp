// See trainer.h.
#include "pipeline/trainer.h"

#include <chrono>
#include <cmath>
#include <thread>

#include "pipeline/dump.h"

namespace duet {

std::unique_ptr<Device> make_device(const TrainOptions& o) {
  if (o.device == "cuda") return make_cuda_device(0);
  return make_cpu_device(o.threads ? int(o.threads) : int(std::max(1u, std::thread::hardware_concurrency())));
}

Trainer::Trainer(const TrainOptions& o, const ModelConfig& config, Device& device, const BatchSource& batches)
    : options_(o), config_(config), device_(device), batches_(batches),
      context_{device, config_, o.dtype == "bf16" ? Dtype::bf16 : Dtype::f32, o.seq_len, o.micro_batch_size} {
  const double sequences = double(o.microbatches * o.micro_batch_size);
  context_.loss_scale = 1 / (sequences * double(o.seq_len));
  context_.balance_scale = o.balance_loss / sequences;
  stage_ = std::make_unique<Stage>(
      context_, StageOptions{.layer_begin = 0, .layer_end = config.n_layers, .microbatches = int(o.microbatches), .seed = o.seed});
}

Microbatch Trainer::microbatch(int64_t step, int64_t m) const {
  Microbatch batch;
  std::vector<int32_t> tokens(size_t(options_.seq_len) + 1);
  for (int64_t j = 0; j < options_.micro_batch_size; ++j) {
    batches_.sequence(options_.seed, step - 1, sequence_index(m, 0, 1, options_.micro_batch_size, j), tokens);
    batch.inputs.insert(batch.inputs.end(), tokens.begin(), tokens.end() - 1);
    batch.targets.insert(batch.targets.end(), tokens.begin() + 1, tokens.end());
  }
  return batch;
}

StepResult Trainer::step(int64_t step, const std::string& dump) {
  const auto begin = std::chrono::steady_clock::now();
  device_.flops = 0;
  StepResult result{.step = step, .lr = options_.lr_at(step), .tokens = options_.microbatches * context_.tokens()};
  std::unique_ptr<StepDump> dumped;
  if (!dump.empty()) dumped = std::make_unique<StepDump>(context_, result.tokens);
  stage_->keep_logits(bool(dumped));

  stage_->begin_step();
  for (int m = 0; m < options_.microbatches; ++m) {
    const Microbatch batch = microbatch(step, m);
    stage_->forward(m, Buf(), batch);
    if (dumped) dumped->add(batch, stage_->logits());
    stage_->backward_input(m, Buf());
    stage_->backward_weight(m);
  }
  finish_step(result);
  if (dumped) dumped->write(dump, result.loss, stage_->params());
  AdamWOptions adamw = options_.adamw;
  adamw.lr = result.lr;
  const bool clip = options_.clip > 0 && result.grad_norm > options_.clip;
  stage_->params().adamw(context_.stream(), adamw, clip ? options_.clip / result.grad_norm : 1.0, step);
  collect_loads(result);
  context_.stream().synchronize();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  result.flops = device_.flops;
  return result;
}

// Loss and gradient norm, each a sum in a fixed order: losses by global sequence, squares by tensor name.
void Trainer::finish_step(StepResult& result) {
  const std::vector<double> squares = stage_->params().finish_grad(context_.stream());  // synchronizes
  for (int m = 0; m < options_.microbatches; ++m)
    for (double loss : stage_->losses(m)) result.loss += loss;
  result.loss /= double(result.tokens);

  std::map<std::string, double> by_name;
  size_t i = 0;
  for (const Param& p : stage_->params().all())
    if (p.trained) by_name[p.name] = squares[i++];
  double sum = 0;
  for (const auto& [name, square] : by_name) sum += square;
  result.grad_norm = std::sqrt(sum);
  if (!std::isfinite(result.loss) || !std::isfinite(result.grad_norm))
    throw Error(cat("step ", result.step, ": loss is ", result.loss, " and the gradient norm ", result.grad_norm,
                    ", expected finite numbers; no weight was changed"));
}

void Trainer::collect_loads(StepResult& result) {
  const double sequences = double(options_.microbatches * options_.micro_batch_size);
  for (size_t l = 0; l < stage_->moe().size(); ++l) {
    Moe* moe = stage_->moe()[l];
    if (!moe) continue;
    result.loads.push_back({int64_t(l), moe->load()});
    for (double loss : moe->balance_loss()) result.balance_loss += loss / sequences;
    if (options_.bias_update_speed > 0) moe->update_bias(moe->load(), options_.bias_update_speed);
  }
}

double Trainer::validate() {
  const int64_t n = std::min(options_.val_sequences, batches_.val_sequences());
  std::vector<int32_t> tokens(size_t(options_.seq_len) + 1);
  double sum = 0;
  stage_->keep_logits(false);
  for (int64_t first = 0; first < n; first += options_.micro_batch_size) {
    Microbatch batch;
    for (int64_t j = 0; j < options_.micro_batch_size; ++j) {  // the last microbatch is filled up with sequences that do not count
      batches_.val_sequence((first + j) % n, tokens);
      batch.inputs.insert(batch.inputs.end(), tokens.begin(), tokens.end() - 1);
      batch.targets.insert(batch.targets.end(), tokens.begin() + 1, tokens.end());
    }
    stage_->forward(0, Buf(), batch);
    context_.stream().synchronize();
    const std::vector<double> losses = stage_->losses(0);
    for (int64_t j = 0; j < std::min(options_.micro_batch_size, n - first); ++j) sum += losses[size_t(j)];
    stage_->drop(0);
  }
  return sum / double(n * options_.seq_len);
}

std::vector<float> Trainer::next_token_logits(std::span<const int32_t> context) {
  const size_t used = std::min(context.size(), size_t(options_.seq_len));
  DUET_CHECK(used > 0, "expected at least one token of context, found none");
  Microbatch batch;
  batch.inputs.assign(size_t(context_.tokens()), 0);  // what follows the context does not reach back: attention is causal
  batch.targets = batch.inputs;
  std::copy(context.end() - ptrdiff_t(used), context.end(), batch.inputs.begin());
  stage_->keep_logits(true);
  stage_->forward(0, Buf(), batch);
  std::vector<float> logits = to_host(context_.stream(), stage_->logits().row_slice(int64_t(used) - 1, 1));
  stage_->drop(0);
  return logits;
}

void Trainer::save(const std::string& dir, int64_t step) {
  std::map<std::string, const Param*> by_name;
  CheckpointContents contents;
  for (const Param& p : stage_->params().all()) {
    by_name[p.name] = &p;
    contents.tensors.push_back(logical_tensor(p));
  }
  contents.config = config_.to_json(options_.seq_len, "float32");
  contents.trainer = Json::object({{"step", step}, {"seed", int64_t(options_.seed)}, {"data", options_.data},
                                   {"seq_len", options_.seq_len}, {"micro_batch_size", options_.micro_batch_size},
                                   {"microbatches", options_.microbatches}, {"dtype", options_.dtype}});
  contents.fetch = [&](const std::string& name, State state) {
    const Param& p = *by_name.at(name);
    return download(context_.stream(), p, state == State::weight ? p.master : state == State::m ? p.m : p.v);
  };
  write_checkpoint(dir, contents);
}

int64_t Trainer::load(const std::string& dir) {
  const Json trainer = read_checkpoint(dir, context_.stream(), config_, stage_->params());
  return trainer.is_null() ? 0 : trainer.at("step").integer(0);
}

}  // namespace duet
