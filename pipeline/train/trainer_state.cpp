// What lasts of a trainer, and whether it is the same elsewhere. See trainer.h.
#include "comm/gather_named.h"
#include "model/base/hash.h"
#include "pipeline/train/same_run.h"
#include "pipeline/train/trainer.h"

namespace duet {

// A checkpoint's tensors that this rank knows of: shape, then whether they are trained.
static std::map<std::string, std::vector<int64_t>> stored_shapes(Trainer& t) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (Params* set : t.param_sets())
    for (const Param& p : set->all()) {
      shapes[p.name] = logical_shape(p);
      shapes[p.name].push_back(p.trained);
    }
  if (t.job.config.n_shared > 0) return shapes;
  // without shared experts transformers has them, with a width of zero
  const int64_t d = t.job.config.d_model;
  t.for_each_moe([&](int64_t layer, Moe&, int) {
    const std::string prefix = cat("model.layers.", layer, ".mlp.shared_experts.");
    shapes[prefix + "gate_proj.weight"] = shapes[prefix + "up_proj.weight"] = {0, d, false};
    shapes[prefix + "down_proj.weight"] = {d, 0, false};
  });
  return shapes;
}

void save_checkpoint(Trainer& t, const std::string& dir, int64_t step) {
  const Guard while_it_is_written = t.world.patience();
  const TrainOptions& o = t.job.options;
  const int me = t.world.rank();
  std::map<std::string, const Param*> params;
  for (Params* set : t.param_sets())
    for (const Param& p : set->all()) params[p.name] = &p;
  CheckpointContents contents;
  std::map<std::string, int> owner;  // hands the tensor out: the lowest rank that has it
  const auto all = gather_named(t.world, stored_shapes(t));
  for (State state : kStates)
    for (const auto& [name, of_ranks] : all) {
      auto [rank, shape] = of_ranks[0];
      owner[name] = rank;
      const bool trained = shape.back();
      shape.pop_back();
      if (state == State::weight)
        contents.weights.emplace_back(name, state, shape);
      else if (trained)
        contents.moments.emplace_back(name, state, shape);
    }
  contents.config = t.job.config.to_json(o.seq_len, "float32");
  contents.trainer = run_definition(t.job);
  contents.trainer.set("step", step)
      .set("data", o.data)
      .set("tokenizer", t.job.dataset.tokenizer_path)
      .set("options", run_options(t.job))
      .set("balancer", t.monitor.state());
  // on rank 0 the tensor; on other ranks nothing, but its owner sends it
  contents.fetch = [&](const StoredTensor& tensor) {
    const int from = owner.at(tensor.param);
    std::vector<float> values;
    if (tensor.elements() == 0) return values;
    if (from == me) {
      const Param& p = *params.at(tensor.param);
      values = download(t.context.stream(), p, state_of(p, tensor.state));
      if (me != 0) t.world.send(std::as_bytes(std::span(values)), 0, {Tag::W, 0, 0});
    } else if (me == 0) {
      values.resize(size_t(tensor.elements()));
      t.world.recv(std::as_writable_bytes(std::span(values)), from, {Tag::W, 0, 0});
    }
    return values;
  };
  if (me == 0)
    write_checkpoint(dir, contents);
  else
    for (const auto* file : {&contents.weights, &contents.moments})
      for (const StoredTensor& tensor : *file) contents.fetch(tensor);
  t.world.barrier();
}

int64_t load_checkpoint(Trainer& t, const std::string& dir, Restore what) {
  const Guard while_others_read = t.world.patience();
  const Json trainer = what == Restore::everything ? checkpoint_trainer(dir) : Json();
  const int64_t step = trainer.is_null() ? 0 : trainer.at("step").integer(0, kMostSteps);
  if (const auto balancer = trainer.is_null() ? std::nullopt : trainer.find("balancer");
      balancer && t.monitor.restore(*balancer))
    t.for_each_moe(
        [&](int64_t layer, Moe& moe, int) { moe.set_placement(t.monitor.placement(layer)); });
  check_same_plans(t.world, step, t.monitor.hash());  // each rank has read for itself
  for (Params* set : t.param_sets()) read_checkpoint(dir, t.context.stream(), *set, what);
  t.world.barrier();
  return step;
}

// --- bits ----------------------------------------------------------------------------------------

TensorHashes tensor_hashes(Trainer& t, Hashed what) {
  std::map<std::string, std::vector<uint64_t>> mine;
  for (Params* set : t.param_sets())
    for (const Param& p : set->all()) {
      std::string bytes;
      const auto add = [&](const Tensor& x) {
        const std::vector<float> values = to_host(t.context.stream(), x);
        bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
      };
      if (what == Hashed::gradient)
        add(p.grad);
      else
        for (State state : kStates) add(state_of(p, state));
      mine[p.name].push_back(checksum(bytes));
    }
  TensorHashes all;
  for (const auto& [name, copies] : gather_named(t.world, mine))
    for (const auto& [rank, of_rank] : copies)
      for (uint64_t hash : of_rank)
        DUET_CHECK(all.emplace(name, hash).first->second == hash, name, ": expected the bits of ",
            hash_text(all[name]), " in all copies, found ", hash_text(hash), " on rank ", rank);
  return all;
}

uint64_t fingerprint(const TensorHashes& hashes) {
  std::string text;
  for (const auto& [name, hash] : hashes) text += cat(name, ' ', hash, '\n');
  return checksum(text);
}

uint64_t fingerprint(Trainer& t) { return fingerprint(tensor_hashes(t, Hashed::state)); }

}  // namespace duet
