// The emulated link of ranks whose messages lie in GPU memory, on an emulated GPU that does its
// work as it is waited for: what its two kernels compute, messages that come when they should and
// not before, and training whose bits do not notice. Parsing, traffic and the CPU's model are in
// link_test.cpp.
#include "comm/link_times.h"

#include <algorithm>

#include "pipeline/train/trainer.h"
#include "test/comm_testing.h"
#include "test/emulated/testing.h"
#include "test/run_testing.h"
#include "test/sim_warp.h"

namespace duet {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kRow = 100000;  // bytes

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// --- the kernels ---------------------------------------------------------------------------------

constexpr uint64_t kHour = 3600'000'000'000;

struct Times {
  double bytes[4];  // out, in, and the arrival for either side
  Tensor at(int i) { return {&bytes[i], Dtype::f64, 1, 1, 1}; }
  uint64_t& operator[](int i) { return time_in(at(i)); }
  uint64_t book(Stream& stream, uint64_t duration, uint64_t latency = 0) {
    launch<LinkBook>(stream, 1, {at(0), at(1), at(2), at(3), duration, latency});
    stream.synchronize();
    EXPECT_EQ((*this)[2], (*this)[3]);
    return (*this)[2];
  }
};

TEST(GpuLinkKernels, AMessageTakesBothDirectionsFromWhenTheyAreFree) {
  auto device = make_cpu_device(1);
  const uint64_t begin = clock_ns();
  Times times{};
  EXPECT_GE(times.book(device->compute(), 100, 7), begin + 107) << "both are free now";
  EXPECT_EQ(times[0], times[1]);
  EXPECT_LE(times[0], clock_ns() + 100);
  times[0] = begin + kHour;
  times[1] = begin + kHour + 50;
  EXPECT_EQ(times.book(device->compute(), 100, 7), begin + kHour + 157);
  EXPECT_EQ(times[0], begin + kHour + 100);
  EXPECT_EQ(times[1], begin + kHour + 150);
  EXPECT_EQ(times.book(device->compute(), 1000), begin + kHour + 1150);
}

TEST(GpuLinkKernels, AWarpDoesTheWorkOfOneThread) {
  Times times{};
  times[0] = times[1] = clock_ns() + 5'000'000;
  const uint64_t begin = times[0];
  EXPECT_EQ(SimWarp::run([&](SimWarp g) {
    LinkBook::row<double>(g, 0, {times.at(0), times.at(1), times.at(2), times.at(3), 1'000'000, 0});
  }),
      "");
  EXPECT_EQ(times[2], begin + 1'000'000);
  EXPECT_EQ(SimWarp::run([&](SimWarp g) { LinkWait::row<double>(g, 0, {times.at(2)}); }), "");
  EXPECT_GE(clock_ns(), begin + 1'000'000);
}

// Several streams book one direction at once, and no message's time is lost.
TEST(GpuLinkKernels, BookingsFromSeveralStreamsAddUp) {
  auto device = make_cpu_device(1);
  const uint64_t begin = clock_ns() + kHour;
  Times shared{};
  shared[0] = shared[1] = begin;
  constexpr int kStreams = 4, kEach = 5000;
  std::vector<double> arrivals(kStreams * kEach);
  std::vector<std::unique_ptr<Stream>> streams;
  for (int s = 0; s < kStreams; s++) streams.push_back(device->make_stream());
  for (int i = 0; i < kEach; i++)
    for (int s = 0; s < kStreams; s++) {
      const Tensor arrival{&arrivals[size_t(s * kEach + i)], Dtype::f64, 1, 1, 1};
      launch<LinkBook>(
          *streams[size_t(s)], 1, {shared.at(0), shared.at(1), arrival, arrival, 3, 0});
    }
  for (const auto& s : streams) s->synchronize();
  EXPECT_EQ(shared[0], begin + 3 * kStreams * kEach);
  EXPECT_EQ(shared[1], begin + 3 * kStreams * kEach);
}

// --- messages ------------------------------------------------------------------------------------

RunOptions linked(int ranks, double bandwidth, double latency = 0) {
  return {.ranks = ranks,
      .timeout = 20,
      .link = {.intra = bandwidth, .inter = bandwidth, .latency = latency}};
}

// A rank's GPU, and eight rows of 100 kB in its memory.
struct Rank {
  std::unique_ptr<Device> gpu = make_cuda_device(0);
  Channels channels;
  Stream& stream;
  CommStream comm;
  Buf data;
  explicit Rank(Comm& world)
      : channels(world, *gpu, {}), stream(gpu->compute()), comm(world, *gpu),
        data(gpu->host_buffer(8, kRow / 4, Dtype::i32)) {
    std::fill_n(data->row<int32_t>(0), data->size(), world.rank());
  }
  Tensor row(int64_t r) const { return data->row_slice(r, 1); }
  int32_t at(int64_t r) const { return data->row<int32_t>(r)[kRow / 4 - 1]; }
};

struct GpuLinkClock : testing::Test {
  Behaviour lazy{{.order = emulated::Order::lazy}};
};

Tag tag(int i) { return {Tag::F, 0, i}; }

// Never early; the best of a few on time, whatever else the machine is doing.
TEST_F(GpuLinkClock, MessagesArriveWhenTheyShould) {
  run_ranks(linked(2, 10e6, 2e-3), [](Comm& world) {
    Rank me(world);
    const int peer = 1 - world.rank();
    double best[2] = {1, 1};
    for (int i = 0; i < 10; i++) {
      world.barrier();
      const auto begin = Clock::now();  // both directions at once: 10 ms each, not 20
      const Request out = world.isend(me.stream, me.row(0), peer, tag(i)),
                    in = world.irecv(me.stream, me.row(1), peer, tag(i));
      if (i % 2) {
        world.wait(me.stream, in);
        me.stream.synchronize();
      } else {
        EXPECT_FALSE(in.done());
        in.wait();
        EXPECT_TRUE(in.done());
      }
      const double took = seconds_since(begin);
      EXPECT_GE(took, 0.012);
      best[i % 2] = std::min(best[i % 2], took);
      EXPECT_EQ(me.at(1), peer);
      out.wait();
    }
    EXPECT_LT(best[0], 0.017) << "the host waits";
    EXPECT_LT(best[1], 0.017) << "a stream waits";
  });
}

TEST_F(GpuLinkClock, MessagesOfOneSenderQueue) {
  run_ranks(linked(3, 2e6), [](Comm& world) {
    Rank me(world);
    world.barrier();
    const auto begin = Clock::now();
    std::vector<Request> requests;
    for (int r = 1; r < 3; r++) {
      if (world.rank() == 0) requests.push_back(world.isend(me.stream, me.row(0), r, tag(r)));
      if (world.rank() == r) requests.push_back(world.irecv(me.stream, me.row(1), 0, tag(r)));
    }
    for (const Request& r : requests) world.wait(me.stream, r);
    me.stream.synchronize();
    EXPECT_GE(seconds_since(begin), world.rank() == 0 ? 0.100 : 0.050)
        << "out of rank 0 one after the other";
  });
}

TEST_F(GpuLinkClock, AMessageUnderWayDelaysNobodyElse) {
  run_ranks(linked(2, 250e3), [](Comm& world) {
    Rank me(world);
    const bool first = world.rank() == 0;
    world.barrier();
    const auto begin = Clock::now();
    const Request slow = first ? world.isend(me.stream, me.row(0), 1, tag(0))
                               : world.irecv(me.stream, me.row(1), 0, tag(0));
    world.wait(me.comm, slow);  // 0.4 s
    const Tensor small = me.row(2).col_slice(0, 1);
    const Request quick =
        first ? world.irecv(me.stream, small, 1, tag(1)) : world.isend(me.stream, small, 0, tag(1));
    world.wait(me.stream, quick);
    me.stream.synchronize();
    EXPECT_LT(seconds_since(begin), 0.3) << "computation goes on, and the other direction is free";
    me.comm->synchronize();
    EXPECT_GE(seconds_since(begin), 0.4);
  });
}

TEST_F(GpuLinkClock, AnAllToAllTakesItsBusiestLinksTime) {
  run_ranks(linked(4, 10e6), [](Comm& world) {
    Rank me(world);
    const std::vector<int64_t> offsets = {0, 1, 2, 3, 4};  // 10 ms to each of three
    double best = 1;
    for (int i = 0; i < 5; i++) {
      world.barrier();
      const auto begin = Clock::now();
      world.all_to_all_v(
          me.comm, me.data->row_slice(0, 4), offsets, me.data->row_slice(4, 4), offsets);
      EXPECT_LT(seconds_since(begin), 0.025) << "the host goes on";
      me.comm->synchronize();
      const double took = seconds_since(begin);
      EXPECT_GE(took, 0.030);
      best = std::min(best, took);
    }
    for (int r = 0; r < 4; r++) EXPECT_EQ(me.at(4 + r), r);
    EXPECT_LT(best, 0.045);
  });
}

TEST_F(GpuLinkClock, AFailingRankStopsTheOthers) {
  EXPECT_EQ(error_of(linked(2, 200e3),
                [](Comm& world) {
                  Rank me(world);
                  const Request r = world.rank() ? world.irecv(me.stream, me.row(0), 0, tag(0))
                                                 : world.isend(me.stream, me.row(0), 1, tag(0));
                  world.wait(me.stream, r);
                  if (world.rank()) throw Error("out of tokens");
                  me.stream.synchronize();
                  world.barrier();
                }),
      "rank 1: out of tokens");
}

TEST_F(GpuLinkClock, MessagesNeedTheirChannels) {
  const std::string error = error_of(linked(2, 1e9), [](Comm& world) {
    const auto gpu = make_cuda_device(0);
    const Buf word = gpu->host_buffer(1, 1, Dtype::i32);
    world.isend(gpu->compute(), word, 1 - world.rank(), tag(0));
  });
  EXPECT_NE(error.find("over an emulated link: expected Channels, made before"), std::string::npos)
      << error;
}

// --- training ------------------------------------------------------------------------------------

class GpuLinkTraining : public RunTest {
 protected:
  Behaviour lazy_{{.order = emulated::Order::lazy}};
  static std::vector<std::string> train(const Job& job) {
    std::vector<std::string> bits;
    run_ranks(job.run, [&](Comm& world) {
      const auto gpu = make_cuda_device(0);
      Trainer trainer(job, world, *gpu);
      for (int64_t step = 1; step <= 2; step++) {
        const StepResult r = train_step(trainer, step);
        if (world.rank() == 0) bits.push_back(cat(std::hexfloat, r.loss, " ", r.grad_norm));
      }
      const uint64_t hash = fingerprint(trainer);
      if (world.rank() == 0) bits.push_back(cat(hash));
    });
    return bits;
  }
};

TEST_F(GpuLinkTraining, ChangesNotOneBit) {
  TrainOptions o = options("");
  o.model = parse_sizes("n_layers=4");
  o.device = DeviceKind::cuda;
  o.dp = o.ep = o.pp = 2;
  o.schedule = "dualpipe";
  const std::vector<std::string> plain = train(make_job(o));
  o.link = parse_link("intra=200MB/s,inter=50MB/s,latency=20us");
  o.ranks_per_node = 2;
  EXPECT_EQ(train(make_job(o)), plain);
  EXPECT_EQ(plain.size(), 3u);
}

}  // namespace
}  // namespace duet
