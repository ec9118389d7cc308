// What a trainer does between steps: validation, sampling, checkpoints, fingerprints. See
// trainer.h.
#include <algorithm>
#include <sstream>

#include "pipeline/checkpoint/durable.h"
#include "pipeline/train/trainer.h"

namespace duet {

// --- forward only --------------------------------------------------------------------------------

double Trainer::validate() {
  const int64_t n = std::min(o_.val_sequences, job_.batches->val_sequences());
  const size_t length = size_t(o_.seq_len) + 1;
  const int64_t at_once = job_.forward_microbatches * o_.micro_batch_size * job_.layout.dp;
  double sum = 0;
  for (auto& [s, stage] : stages_) stage->on_logits({});
  for (int64_t begin = 0; begin < n; begin += at_once) {
    const auto index = [&](int m, int64_t j) {
      return begin + sequence_index(m, dp_rank_, job_.layout.dp, o_.micro_batch_size, j);
    };
    executor_->run(job_.forward_only.ranks[size_t(pp_rank_)], [&](int m) {
      std::vector<int32_t> tokens(length * size_t(o_.micro_batch_size));
      // the last round is filled up with sequences that do not count
      for (int64_t j = 0; j < o_.micro_batch_size; ++j)
        job_.batches->val_sequence(
            index(m, j) % n, std::span(tokens).subspan(size_t(j) * length, length));
      return pack(tokens);
    });
    context_.stream().synchronize();
    // by sequence of this round; those of other ranks zero
    std::vector<double> losses(size_t(at_once), 0.0);
    for (int m = 0; m < job_.forward_microbatches; ++m) {
      if (Stage* head = head_stage(m)) {
        const std::vector<double> of_microbatch = head->losses(m);
        for (int64_t j = 0; j < o_.micro_batch_size; ++j)
          losses[size_t(index(m, j) - begin)] = of_microbatch[size_t(j)];
      }
      for (auto& [s, stage] : stages_) stage->drop(m);
    }
    const std::vector<std::vector<double>> all = world_.gather_vectors(losses);
    for (size_t i = 0; i < size_t(std::min(at_once, n - begin)); ++i)
      for (const std::vector<double>& of_rank : all) sum += of_rank[i];
  }
  return sum / double(n * o_.seq_len);
}

std::vector<float> Trainer::next_token_logits(std::span<const int32_t> context) {
  const size_t used = std::min(context.size(), size_t(o_.seq_len));
  DUET_CHECK(used > 0, "expected at least one token of context, found none");
  Microbatch batch;
  // what follows the context does not reach back: attention is causal
  batch.inputs.assign(size_t(context_.tokens()), 0);
  batch.targets = batch.inputs;
  std::copy(context.end() - ptrdiff_t(used), context.end(), batch.inputs.begin());
  std::vector<float> mine;
  for (auto& [s, stage] : stages_)
    stage->on_logits([&](int, const Tensor& all) {
      mine = to_host(context_.stream(), all.row_slice(int64_t(used) - 1, 1));
    });
  std::vector<Action> one;  // microbatch 0 alone
  for (const Action& a : job_.forward_only.ranks[size_t(pp_rank_)])
    if (a.microbatch == 0) one.push_back(a);
  executor_->run(one, [&](int) { return batch; });
  context_.stream().synchronize();
  for (auto& [s, stage] : stages_) stage->drop(0);
  for (const std::vector<float>& logits : world_.gather_vectors(mine))
    if (!logits.empty()) return logits;
  throw Error("sampling: expected a rank with logits, found none");
}

// --- checkpoints ---------------------------------------------------------------------------------

// Which rank hands out each logical tensor: the lowest that has it.
struct Trainer::Owned {
  std::vector<LogicalTensor> tensors;  // by name
  std::map<std::string, int> rank;     // by name
  std::map<std::string, const Param*> mine;

  Owned(Comm& world, const Executor::Stages& stages) {
    Json list = Json::array();
    for (auto& [s, stage] : stages)
      for (Params* set : stage->param_sets())
        for (const Param& p : set->all()) {
          mine[p.name] = &p;
          const LogicalTensor t = logical_tensor(p);
          list.push(
              Json::object({{"name", t.name}, {"shape", Json(t.shape)}, {"trained", t.trained}}));
        }
    const std::vector<std::string> all = world.gather(list.dump());
    for (size_t r = 0; r < all.size(); ++r)
      for (const Json& j : Json::parse(all[r], cat("rank ", r)).items()) {
        LogicalTensor t{{j.at("name").string(), "F32", {}}, j.at("trained").boolean()};
        for (const Json& n : j.at("shape").items()) t.shape.push_back(n.integer(0));
        if (rank.emplace(t.name, int(r)).second) tensors.push_back(t);
      }
    std::sort(tensors.begin(), tensors.end(),
        [](const auto& a, const auto& b) { return a.name < b.name; });
  }
};

void Trainer::save(const std::string& dir, int64_t step) {
  Stream& stream = context_.stream();
  const Owned owned(world_, stages_);
  const Tag tag{Tag::W, 0, 0};
  if (world_.rank() != 0) {  // in the order in which rank 0 asks
    for (State state : {State::weight, State::m, State::v})
      for (const LogicalTensor& t : owned.tensors) {
        if (owned.rank.at(t.name) != world_.rank() || (state != State::weight && !t.trained))
          continue;
        const Param& p = *owned.mine.at(t.name);
        const std::vector<float> values = download(stream, p, state_of(p, state));
        world_.send(std::as_bytes(std::span(values)), 0, tag);
      }
    return world_.barrier();
  }
  CheckpointContents contents;
  contents.tensors = owned.tensors;
  contents.config = job_.config.to_json(o_.seq_len, "float32");
  contents.trainer = Json::object({{"step", step}, {"seed", int64_t(o_.seed)}, {"data", o_.data},
      {"tokenizer", job_.dataset.tokenizer_path}, {"seq_len", o_.seq_len},
      {"global_sequences", job_.global_sequences()}, {"dtype", dtype_name(o_.dtype)},
      {"balancer", monitor_->state()}});
  contents.fetch = [&](const LogicalTensor& t, State state) {
    if (owned.rank.at(t.name) == 0) {
      const Param& p = *owned.mine.at(t.name);
      return download(stream, p, state_of(p, state));
    }
    std::vector<float> values(size_t(t.elements()));
    world_.recv(std::as_writable_bytes(std::span(values)), owned.rank.at(t.name), tag);
    return values;
  };
  write_checkpoint(dir, contents);
  world_.barrier();
}

int64_t Trainer::load(const std::string& dir) {
  const Json trainer = checkpoint_trainer(dir);
  if (const Json* balancer = trainer.is_null() ? nullptr : trainer.find("balancer");
      balancer && monitor_->restore(*balancer)) {
    for (auto& [s, stage] : stages_)
      for (size_t l = 0; l < stage->moe().size(); ++l)
        if (Moe* moe = stage->moe()[l])
          moe->set_placement(monitor_->placement(stage->options().layer_begin + int64_t(l)));
  }
  const int64_t step = trainer.is_null() ? 0 : trainer.at("step").integer(0);
  check_same_plans(world_, step, monitor_->hash());  // each rank has read for itself
  make_report();
  for (auto& [s, stage] : stages_)
    for (Params* set : stage->param_sets()) read_checkpoint(dir, context_.stream(), *set);
  world_.barrier();
  return step;
}

// --- bits ----------------------------------------------------------------------------------------

std::vector<std::pair<std::string, uint64_t>> Trainer::tensor_hashes() {
  std::ostringstream text;
  for (auto& [s, stage] : stages_)
    for (Params* set : stage->param_sets())
      for (const Param& p : set->all()) {
        std::string bytes;
        for (State state : {State::weight, State::m, State::v}) {
          const std::vector<float> values = to_host(context_.stream(), state_of(p, state));
          bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
        }
        text << p.name << ' ' << checksum(bytes) << '\n';
      }
  std::vector<std::pair<std::string, uint64_t>> hashes;
  for (const std::string& of_rank : world_.gather(text.str())) {
    std::istringstream lines(of_rank);
    std::string name;
    for (uint64_t hash; lines >> name >> hash;) hashes.emplace_back(name, hash);
  }
  std::sort(hashes.begin(), hashes.end());
  return hashes;
}

uint64_t Trainer::fingerprint() {
  std::map<std::string, uint64_t> by_name;
  for (const auto& [name, hash] : tensor_hashes()) by_name.emplace(name, hash);
  std::string text;
  for (const auto& [name, hash] : by_name) text += cat(name, ' ', hash, '\n');
  return checksum(text);
}

bool Trainer::copies_agree() {
  const auto hashes = tensor_hashes();
  for (size_t i = 1; i < hashes.size(); ++i)
    if (hashes[i].first == hashes[i - 1].first && hashes[i].second != hashes[i - 1].second)
      return false;
  return true;
}

}  // namespace duet
