// What is NCCL's own: its order, and what happens when something goes wrong. On the emulated
// library; that messages and collectives arrive is in comm_test.cpp.
#include <algorithm>
#include <set>
#include <thread>

#include "model/machine/launch.h"
#include "model/rows/list.h"
#include "pipeline/train/trainer.h"
#include "test/comm_testing.h"
#include "test/emulated/testing.h"
#include "test/layouts.h"
#include "test/run_testing.h"

namespace duet {
namespace {

using namespace std::chrono_literals;

RunOptions over_nccl(int ranks, double timeout = 20) {
  return {.transport = Wire::nccl, .ranks = ranks, .timeout = timeout};
}

// A rank's GPU, its channels to all others, and a few words in its memory.
struct Rank {
  std::unique_ptr<Device> gpu;
  Channels channels;
  Stream& stream;
  Buf words, numbers;
  Rank(Comm& world, std::vector<std::pair<int, int>> pairs = {{0, 1}}, int index = -1)
      : gpu(make_cuda_device(index < 0 ? world.rank() : index)), channels(world, *gpu, pairs),
        stream(gpu->compute()), words(gpu->host_buffer(8, 4, Dtype::i32)),
        numbers(gpu->host_buffer(128, 4, Dtype::f64)) {
    std::fill_n(numbers->row<double>(0), numbers->size(), 1.);
  }
  Tensor row(int64_t r) { return words->row_slice(r, 1); }
  void all_reduce(Comm& world, int64_t rows) {
    const Tensor t = numbers->row_slice(0, rows);
    world.all_reduce(stream, t, numbers->row_slice(8, world.scratch_size(t.size()) / 4));
  }
  int32_t& at(int64_t r) { return *words->row<int32_t>(r); }
};

Tag forward(int stage, int microbatch) { return {Tag::F, stage, microbatch}; }

class Nccl : public testing::Test {
  void TearDown() override {
    EXPECT_EQ(emulated::complaints(), std::vector<std::string>());
    EXPECT_EQ(emulated::live_communicators(), 0);
  }
  Behaviour gpus{{.gpus = 4}};
};

#define EXPECT_SAYS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

// The receiver posts in another order than the sender, and all come; the data too is that of the
// tag.
TEST_F(Nccl, ReceivesAreLaunchedInTheSendersOrder) {
  run_ranks(over_nccl(2), [](Comm& world) {
    Rank me(world);
    std::vector<Request> requests;
    for (int i = 0; i < 8; i++) {
      const int m = world.rank() == 0 ? i : (i * 3 + 5) % 8;
      me.at(m) = world.rank() == 0 ? 100 + m : 0;
      requests.push_back(world.rank() == 0 ? world.isend(me.stream, me.row(m), 1, forward(0, m))
                                           : world.irecv(me.stream, me.row(m), 0, forward(0, m)));
    }
    for (const Request& r : requests) r.wait();
    for (int m = 0; m < 8; m++) EXPECT_EQ(me.at(m), 100 + m);
  });
}

TEST_F(Nccl, AMessageNobodyAskedForIsNamedBesideTheOneThatIsAwaited) {
  const std::string error = error_of(over_nccl(2), [](Comm& world) {
    Rank me(world);
    if (world.rank() == 0) world.isend(me.stream, me.row(0), 1, forward(3, 8)).wait();
    if (world.rank() == 1) world.irecv(me.stream, me.row(0), 0, forward(3, 7)).wait();
  });
  EXPECT_SAYS(error, "rank 1: ");
  EXPECT_SAYS(error,
      "3F7 from rank 0: the next message from there is 3F8, which this rank has not asked for");
}

// Forward and backward messages do not queue behind one another: rank 1 sends before it takes what
// was sent first.
TEST_F(Nccl, DirectionsAreIndependent) {
  run_ranks(over_nccl(2), [](Comm& world) {
    Rank me(world);
    const Request out =
        world.isend(me.stream, me.row(world.rank()), 1 - world.rank(), forward(world.rank(), 0));
    const Request in = world.irecv(
        me.stream, me.row(1 - world.rank()), 1 - world.rank(), forward(1 - world.rank(), 0));
    out.wait();
    in.wait();
  });
}

TEST_F(Nccl, SidesThatDisagreeAboutTheSizeAreRefused) {
  const std::string error = error_of(over_nccl(2), [](Comm& world) {
    Rank me(world);
    if (world.rank() == 0) world.isend(me.stream, me.words, 1, forward(0, 1)).wait();
    if (world.rank() == 1) world.irecv(me.stream, me.row(0), 0, forward(0, 1)).wait();
  });
  EXPECT_SAYS(error, "0F1 from rank 0: this side expects 16 bytes, the other 128");
}

TEST_F(Nccl, DifferentCollectivesAreRefused) {
  const std::string error = error_of(over_nccl(2), [](Comm& world) {
    Rank me(world);
    const std::vector<int64_t> offsets{0, 1, 2};
    if (world.rank() == 0) me.all_reduce(world, 1);
    if (world.rank() == 1)
      world.all_to_all_v(me.stream, me.words, offsets, me.words->row_slice(4, 4), offsets);
    me.stream.synchronize();
  });
  EXPECT_SAYS(error, "all-to-all");
  EXPECT_SAYS(error, "all-reduce");
  EXPECT_SAYS(error, ", which sends ");
}

TEST_F(Nccl, CollectivesOfDifferentSizesAreRefused) {
  const std::string error = error_of(over_nccl(2), [](Comm& world) {
    Rank me(world);
    me.all_reduce(world, 1 + world.rank());
    me.stream.synchronize();
  });
  EXPECT_SAYS(error, "this side expects 32 bytes from rank 1, which sends 64 in its all-reduce");
}

TEST_F(Nccl, ATimeoutSaysWhoWaitsForWhomAndForWhat) {
  const std::string receive = error_of(over_nccl(2, 0.2), [](Comm& world) {
    Rank me(world);
    if (world.rank() == 1) world.irecv(me.stream, me.row(0), 0, forward(3, 7)).wait();
    world.barrier();
  });
  EXPECT_SAYS(receive, "waited 0.2 s for ");  // rank 1 for 3F7, or rank 0 for rank 1
  // The GPU waits, and the host for the GPU: the thread that watches ends it.
  const std::string send = error_of(over_nccl(2, 0.2), [](Comm& world) {
    Rank me(world);
    if (world.rank() == 0) {
      world.wait(me.stream, world.isend(me.stream, me.row(0), 1, {Tag::B, 12, 1}));
      me.stream.synchronize();
      world.barrier();
    }
    if (world.rank() == 1) std::this_thread::sleep_for(1s);
  });
  EXPECT_EQ(send,
      "rank 0: waited 0.2 s for 12B1 to be taken by rank 1; it did not come (--comm-timeout)");
}

TEST_F(Nccl, AFailingRankWakesThoseThatWaitForTheirGpu) {
  const std::string error = error_of(over_nccl(3), [](Comm& world) {
    Rank me(world, {{0, 1}, {0, 2}});
    if (world.rank() == 0) {
      std::this_thread::sleep_for(100ms);
      throw Error("out of tokens");
    }
    world.wait(me.stream, world.isend(me.stream, me.row(0), 0, forward(0, world.rank())));
    me.stream.synchronize();
    world.isend(me.stream, me.row(1), 0, forward(1, 0));
    ADD_FAILURE() << "rank " << world.rank() << " went on";
  });
  EXPECT_EQ(error, "rank 0: out of tokens");
}

TEST_F(Nccl, AnErrorThatNcclReportsLateIsFound) {
  const std::string error = error_of(over_nccl(2), [](Comm& world) {
    Rank me(world);
    world.barrier();
    if (world.rank() == 0) emulated::break_next_operation();
    world.barrier();
    me.all_reduce(world, 1);
    me.stream.synchronize();
    world.barrier();
  });
  EXPECT_SAYS(error, "NCCL says: internal error");
}

TEST_F(Nccl, TwoRanksOnOneGpuAreRefused) {
  const std::string error = error_of(over_nccl(2), [](Comm& world) {
    Rank me(world, {{0, 1}}, 0);
  });
  EXPECT_SAYS(error, "usage: --transport: found nccl with ranks 0 and 1 on one GPU (");
  EXPECT_SAYS(error,
      ", GPU 0000:00:00.0), allowed: nccl with at most one rank on each GPU; local, whose ranks "
      "share GPUs");
}

TEST_F(Nccl, MessagesNeedTheirChannels) {
  const auto none = [](Comm& world) {
    const auto gpu = make_cuda_device(world.rank());
    const Buf word = gpu->host_buffer(1, 1, Dtype::i32);
    world.isend(gpu->compute(), word, 1 - world.rank(), forward(0, 0));
  };
  EXPECT_SAYS(error_of(over_nccl(2), none), "expected Channels, made before");
  const auto another = [](Comm& world) {
    Rank me(world);
    if (world.rank() == 2) world.isend(me.stream, me.row(0), 0, forward(0, 0)).wait();
    world.barrier();
  };
  EXPECT_SAYS(error_of(over_nccl(3), another),
      "0F0 to be taken by rank 0: expected its pair of ranks among those of Channels");
}

TEST_F(Nccl, ChannelsCanBeMadeAgain) {
  run_ranks(over_nccl(2), [](Comm& world) {
    for (int i = 0; i < 3; i++) {
      Rank me(world);
      me.at(0) = world.rank() == 0 ? i : -1;
      me.all_reduce(world, 1);
      const Request r = world.rank() == 0 ? world.isend(me.stream, me.row(0), 1, forward(0, i))
                                          : world.irecv(me.stream, me.row(1), 0, forward(0, i));
      r.wait();
      EXPECT_EQ(me.at(world.rank()), i);
      me.stream.synchronize();
      EXPECT_EQ(*me.numbers->row<double>(0), 2);
    }
  });
}

// What NCCL's kernels wait for may be this rank: nothing that it does meanwhile may wait for its
// GPU.
TEST_F(Nccl, MemoryGrowsAndIsGivenBackWhileMessagesAreUnderWay) {
  const Behaviour small({.gpus = 2, .memory = 300 << 20});
  run_ranks(over_nccl(2), [](Comm& world) {
    Rank me(world);
    Request sent;
    if (world.rank() == 0) {
      sent = world.isend(me.stream, me.row(0), 1, forward(0, 0));
      for (int64_t n : {30 << 20, 60 << 20}) {  // the second fits when the first is given back
        const Buf x = me.gpu->buffer(1, n, Dtype::f32, Use::scratch);
        me.stream.zero(x->data, size_t(x->bytes()));
      }
      me.gpu->host_buffer(1, 1 << 20, Dtype::f32);
    }
    world.barrier();
    if (world.rank() == 1) world.irecv(me.stream, me.row(0), 0, forward(0, 0)).wait();
    if (sent) sent.wait();
  });
}

TEST_F(Nccl, EveryKernelIsLoadedBeforeAMessageIsUnderWay) {
  setenv("CUDA_MODULE_LOADING", "LAZY", 1);  // as people export them for other programs
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1", 1);
  testing::internal::CaptureStderr();
  EXPECT_GT(cuda_device_count(), 0);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(said.find("duet: CUDA_MODULE_LOADING: found 'LAZY', set to EAGER: "), 0u) << said;
  EXPECT_NE(said.find("\nduet: CUDA_DEVICE_MAX_CONNECTIONS: found '1', set to 32: "), said.npos)
      << said;
  const Behaviour anew({.gpus = 2, .order = emulated::Order::lazy});
  run_ranks(over_nccl(2), [](Comm& world) {
    Rank me(world);
    if (world.rank() == 0) {
      const Request sent = world.isend(me.stream, me.row(0), 1, forward(0, 0));
      launch<Add>(
          me.stream, 1, {.x = me.numbers->row_slice(0, 1), .y = me.numbers->row_slice(1, 1)});
      world.barrier();
      sent.wait();
    } else {
      world.barrier();
      world.irecv(me.stream, me.row(0), 0, forward(0, 0)).wait();
    }
  });
  EXPECT_STREQ(getenv("CUDA_DEVICE_MAX_CONNECTIONS"), "32");
}

// Training steps, with every kind of traffic that there is: neighbours both ways, copies of stages,
// tokens to experts, replicas, and experts that move after the second step.
class NcclTrainer : public RunTest {};

int communicators_of(const Job& job) {
  std::set<std::pair<int, int>> pairs;
  for (const auto& [a, b] : message_pairs(job)) pairs.insert(std::minmax(a, b));
  int all = 4 * int(pairs.size());
  std::set<std::vector<int>> parts;  // by the pipeline's ranks that have them
  for (int part = 0; part < job.schedule.model_stages(); part++)
    parts.insert(job.schedule.ranks_of(part));
  for (int r = 0; r < job.layout.world(); r++) {
    all += job.layout.expert_parallel_of(r).size() > 1;
    for (const std::vector<int>& pp_ranks : parts)
      for (const std::vector<int>& group :
          {job.layout.copies_of(pp_ranks), job.layout.expert_copies_of(r, pp_ranks)})
        all += group.size() > 1 && std::ranges::count(group, r);
  }
  return all;
}

bool moves_experts(const Job& job) {
  return job.layout.ep > 1 && job.options.balancer.interval > 0;
}

std::vector<std::string> train(const Job& job, const RunOptions& options, int gpus) {
  std::vector<std::string> bits;
  const Behaviour behaviour({.gpus = gpus});
  run_ranks(options, [&](Comm& world) {
    const std::unique_ptr<Device> device = make_cuda_device(world.rank() % gpus, 1, gpus);
    Trainer trainer(job, world, *device);
    for (int64_t step = 1; step <= 3; step++) {
      const StepResult r = train_step(trainer, step);
      if (world.rank() == 0) bits.push_back(cat(std::hexfloat, r.loss, " ", r.grad_norm));
      // for edges, of two ranks each, and for the groups that exchange and that add tensors
      world.barrier();
      if (options.transport == Wire::nccl) {
        EXPECT_EQ(emulated::live_communicators(), communicators_of(job));
      }
      world.barrier();
      for (const LayerLoad& l : r.loads)
        EXPECT_TRUE(!moves_experts(job) || step != 2 || (l.replan && l.replan->moves > 0))
            << "layer " << l.layer;
      EXPECT_NO_THROW(fingerprint(trainer)) << "copies differ after step " << step;
    }
    const uint64_t hash = fingerprint(trainer);
    const double loss = validation_loss(trainer);
    if (world.rank() == 0) bits.push_back(cat(hash, " ", std::hexfloat, loss));
  });
  return bits;
}

TEST_F(NcclTrainer, EveryScheduleInSomeLayoutHasTheBitsOfOneRank) {
  TrainOptions o;
  o.preset = "tiny";
  o.data = words_;
  o.model = parse_sizes("n_layers=4,vocab_size=257");
  o.seq_len = 8;
  o.segment_tokens = 3;
  o.micro_batch_size = 1;
  o.microbatches = 8;
  o.device = DeviceKind::cuda;
  o.dtype = Dtype::f32;
  o.threads = 1;
  o.val_sequences = 2;
  const Job one = make_job(o);
  const std::vector<std::string> bits = train(one, one.run, 1);
  int move = 0;
  for (uint32_t n = 0; n < schedule_kinds().size(); ++n) {
    const Job job = make_job(nth_layout(o, n));
    move += moves_experts(job);
    const int ranks = job.run.ranks;
    EXPECT_EQ(train(job, over_nccl(ranks), ranks), bits) << text_of(job.options);
    EXPECT_EQ(emulated::complaints(), std::vector<std::string>());
    EXPECT_EQ(emulated::live_communicators(), 0);
  }
  EXPECT_GT(move, 1);
}

// CPU tensors need no NCCL: they go by the transport underneath.
TEST_F(Nccl, HostMemoryGoesByTheTransportUnderneath) {
  run_ranks(over_nccl(2), [](Comm& world) {
    auto cpu = make_cpu_device(1);
    const Channels channels(world, *cpu, {{0, 1}});
    std::vector<double> mine{double(world.rank() + 1)}, scratch(128);
    world.all_reduce(cpu->compute(), view(mine, 1, 1), view(scratch, 1, 128));
    EXPECT_EQ(mine[0], 3);
  });
}

}  // namespace
}  // namespace duet
