// What a training step asks of a GPU, counted on the emulated one: launches, copies and waits do
// not depend on the machine's load, so a step that asks for more than it did, or less, is seen.
#include <map>
#include <set>

#include "model/machine/gemm_fragments.cuh"
#include "pipeline/train/trainer.h"
#include "test/emulated/testing.h"
#include "test/run_testing.h"

namespace duet {
namespace {

// `base` with all its layers, experts and heads, but narrow: its widths would take minutes here,
// and change the time of a launch, not the number of launches.
constexpr const char* kNarrow =
    "d_model=48,q_lora_rank=16,kv_lora_rank=16,qk_nope_head_dim=8,qk_rope_head_dim=8,v_head_dim=8,"
    "d_ff=64,d_expert=16,vocab_size=257";

class Counts : public RunTest {
 protected:
  TrainOptions narrow(int64_t microbatches, Dtype dtype) const {
    TrainOptions o = options("", 4);
    o.device = DeviceKind::cuda;
    o.preset = "base";
    o.dtype = dtype;
    o.model = parse_sizes(kNarrow);
    o.seq_len = 8;
    o.micro_batch_size = 1;
    o.force_balanced_routing = true;  // the same experts in every step
    o.microbatches = microbatches;
    return o;
  }
  emulated::Counts of_a_step(int64_t microbatches, Dtype dtype = Dtype::f32) const {
    const Behaviour behaviour({.order = emulated::Order::lazy});
    emulated::Counts step;
    const Job job = make_job(narrow(microbatches, dtype));
    run_ranks(job.run, [&](Comm& world) {
      const std::unique_ptr<Device> device = make_device(job, world);
      Trainer trainer(job, world, *device);
      train_step(trainer, 1);
      const emulated::Counts before = emulated::counts();
      const double seconds = train_step(trainer, 2).seconds;
      step = emulated::counts() - before;
      // The clock begins a new era every four seconds, each with an event and a wait.
      const int64_t eras = std::min<int64_t>(step.timed_events - 2, int64_t(seconds / 4) + 1);
      step.timed_events -= eras;
      step.synchronisations -= eras;
    });
    return step;
  }
};

// A message borrows one; a new one is made only where more are under way than ever before.
TEST_F(Counts, MessagesMakeFewStreams) {
  TrainOptions o = options("", 5);
  o.device = DeviceKind::cuda;
  o.dtype = Dtype::f32;
  o.seq_len = 8;
  o.model = parse_sizes("n_layers=4");
  o.schedule = "zbv";
  o.pp = 2;
  const Behaviour behaviour({.order = emulated::Order::eager});
  const Job job = make_job(o);
  int64_t messages = 0;
  for (const std::vector<Action>& list : job.schedule.ranks)
    for (const Action& a : list) messages += a.kind == Kind::SEND_F || a.kind == Kind::SEND_B;
  run_ranks(job.run, [&](Comm& world) {
    const std::unique_ptr<Device> device = make_device(job, world);
    Trainer trainer(job, world, *device);
    for (int64_t step : {1, 2}) train_step(trainer, step);
    world.barrier();
    const int64_t before = emulated::counts().streams;
    world.barrier();
    for (int64_t step : {3, 4, 5}) {
      const StepResult r = train_step(trainer, step);
      EXPECT_GT(r.idle, 0);
      EXPECT_LT(r.idle, 1);
    }
    world.barrier();
    EXPECT_LT(emulated::counts().streams - before, messages) << "a third of what came by";
  });
}

TEST_F(Counts, AStepAsksForWhatItDid) {
  const emulated::Counts one = of_a_step(1), two = of_a_step(2), more = two - one;
  EXPECT_EQ(one.launches, 800);
  EXPECT_EQ(one.copies, 74);
  EXPECT_EQ(one.copied_bytes, 15016);
  EXPECT_EQ(one.fills, 2);
  EXPECT_EQ(one.synchronisations, 14);
  EXPECT_EQ(one.timed_events, 2);
  EXPECT_EQ(one.allocations, 0) << "the second step finds the memory of the first";
  EXPECT_EQ(more.launches, 795) << "a further microbatch";
  EXPECT_EQ(more.gemms, 0) << "cuBLAS's";
  EXPECT_EQ(more.copies, 50);
  EXPECT_EQ(more.copied_bytes, 2336);
  EXPECT_EQ(more.synchronisations, 11);
}

TEST_F(Counts, InBf16CublasHasTheProductsThatAreNotInGroups) {
  const emulated::Counts one = of_a_step(1, Dtype::bf16), two = of_a_step(2, Dtype::bf16),
                         more = two - one;
  EXPECT_EQ(more.launches, 902);
  EXPECT_EQ(more.gemms, 300);
  EXPECT_EQ(two.unaligned_gemms, 0) << "the vocabulary's 257 columns are padded";
}

// What a microbatch's exact sums read and write: 16 bytes for each parameter of the routed experts,
// whose sums are in registers; in bf16 24 for the other matrices', as cuBLAS's products lie in
// memory in between, and 4 more where they are padded.
int64_t bytes_of_sums(const ModelConfig& c, Dtype dtype) {
  const int64_t sparse = c.n_layers - c.first_k_dense, qk = c.n_heads * c.qk_head_dim(),
                experts = sparse * c.n_routed * 3 * c.d_model * c.d_expert,
                attention = c.d_model * c.q_lora_rank + c.q_lora_rank * qk +
      c.d_model * (c.kv_lora_rank + c.qk_rope_head_dim) +
      c.kv_lora_rank * c.n_heads * (c.qk_nope_head_dim + c.v_head_dim) +
      c.n_heads * c.v_head_dim * c.d_model,
                others = c.n_layers * attention + c.first_k_dense * 3 * c.d_model * c.d_ff +
      sparse * c.d_model * (3 * c.n_shared * c.d_expert + c.n_routed) + c.vocab_size * c.d_model,
                padding = (64 - c.vocab_size % 64) % 64 * c.d_model;
  return dtype == Dtype::f32 ? 16 * (experts + others) : 16 * experts + 24 * others + 4 * padding;
}

TEST_F(Counts, BytesOfExactSums) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    TrainOptions o = narrow(1, dtype);
    o.seq_len = 16;  // so that every expert has tokens
    const Job job = make_job(o);
    int64_t bytes = 0;
    run_ranks(job.run, [&](Comm& world) {
      const std::unique_ptr<Device> device = make_device(job, world);
      Trainer trainer(job, world, *device);
      Recorder recorder(*device);
      device->kernels = &recorder;
      train_step(trainer, 1);
      device->kernels = nullptr;
      for (const Recorder::Entry& e : recorder.entries())
        if (e.activity.flops > 0) bytes += e.activity.bytes;
    });
    EXPECT_EQ(bytes, bytes_of_sums(job.config, dtype)) << dtype_name(dtype);
  }
  EXPECT_NEAR(double(bytes_of_sums(find_preset("base").model, Dtype::bf16)) * 1e-9, 7.1, 0.05);
}

// Attention's scores are never in memory: a head's alone would be this much.
TEST_F(Counts, AttentionTakesNoMemoryForItsScores) {
  TrainOptions o = options("", 2);
  o.device = DeviceKind::cuda;
  o.model = parse_sizes("n_layers=1,d_model=16");
  o.seq_len = 128;
  const Job job = make_job(o);
  run_ranks(job.run, [&](Comm& world) {
    const std::unique_ptr<Device> device = make_device(job, world);
    Trainer trainer(job, world, *device);
    const int64_t before = device->memory(Use::scratch).peak;
    train_step(trainer, 1);
    EXPECT_LT(device->memory(Use::scratch).peak - before, o.seq_len * o.seq_len * 2);
  });
}

// How often shared memory is asked for what the lanes of a warp read at once: 32 banks, a word of
// each at a time.
template <class T> int times_asked(const std::vector<const T*>& lanes) {
  std::map<size_t, std::set<size_t>> words;  // of each bank
  for (const T* p : lanes)
    for (size_t word = size_t(p) / 4; word <= (size_t(p) + sizeof(T) - 1) / 4; ++word)
      words[word % 32].insert(word);
  size_t most = 0;
  for (const auto& [bank, of_bank] : words) most = std::max(most, of_bank.size());
  return int(most);
}

// Of all that a warp's fragments read at once, of a slice of either kind.
template <class T, bool by_k> void expect_no_conflicts() {
  using Side = Slice<T, 128, kSlice<T>, by_k>;
  using Read = Pack<T, by_k ? 1 : 16 / sizeof(T)>;
  const Fragments<T, Side, Side, 1, 1> fragments{};
  const auto slice = std::make_unique<Side>();
  for (int i = 0; i < kOfLane; ++i)
    for (const bool row : {true, false}) {
      std::vector<const Read*> lanes;
      for (threadIdx.x = 0; threadIdx.x < 32; ++threadIdx.x)
        lanes.push_back(reinterpret_cast<const Read*>(
            &slice->at(row ? fragments.row(i) : fragments.col(i), by_k ? 3 : 4)));
      EXPECT_EQ(times_asked(lanes), 1) << sizeof(T) << " bytes, by_k " << by_k << ", row " << row;
    }
}
// A tensor core's operand is read eight rows of 16 bytes at a time.
template <int deep, bool by_k> void expect_no_conflicts_of_operands() {
  using Row = Pack<bf16, 8>;
  const auto slice = std::make_unique<Slice<bf16, 128, deep, by_k>>();
  std::vector<const Row*> lanes;
  for (int r = 0; r < 8; ++r)
    lanes.push_back(reinterpret_cast<const Row*>(by_k ? &slice->at(16, r) : &slice->at(r, 16)));
  EXPECT_EQ(times_asked(lanes), 1) << deep << " deep, by_k " << by_k;
}

TEST(SharedMemory, LanesReadFromUnlikeBanks) {
  expect_no_conflicts<float, true>();
  expect_no_conflicts<float, false>();
  expect_no_conflicts<double, true>();
  expect_no_conflicts<double, false>();
  expect_no_conflicts_of_operands<32, true>();
  expect_no_conflicts_of_operands<64, true>();
  expect_no_conflicts_of_operands<64, false>();
}

}  // namespace
}  // namespace duet
