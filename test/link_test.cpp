// The emulated interconnect: arrival times against a naive model in slots of time, messages that
// come when they should and not before, waiting that costs no processor time, traffic counted by
// hand, and training whose bits do not notice.
#include "comm/link_times.h"

#include <algorithm>
#include <functional>
#include <random>
#include <sstream>
#include <thread>

#include "comm/comm.h"
#include "model/base/json.h"
#include "pipeline/train/train_command.h"
#include "test/processor_clock.h"
#include "test/testing.h"

namespace duet {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kMB = 1000000;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

Tensor view(std::vector<int32_t>& v) {
  return {v.data(), Dtype::i32, 1, int64_t(v.size()), int64_t(v.size())};
}

// --- the model, on a clock of the test's own -----------------------------------------------------

// Slots of a microsecond: a message takes the first that its sender's outgoing side has free, and
// the first of its receiver's incoming side, and arrives when it has had enough of both.
struct NaiveLinks {
  LinkModel model;
  std::vector<std::vector<char>> out, in;  // [ranks][slots]: taken
  NaiveLinks(const LinkModel& m, int ranks)
      : model(m), out(size_t(ranks), std::vector<char>(20000)), in(out) {}
  int64_t send(int from, int to, int64_t bytes, int64_t now) {
    const bool same =
        model.ranks_per_node == 0 || from / model.ranks_per_node == to / model.ranks_per_node;
    const auto through = [&](std::vector<char>& side) {
      int64_t left = bytes / int64_t((same ? model.intra : model.inter) / 1e6), slot = now;
      for (; left > 0; slot++)
        if (!side[size_t(slot)]) {
          side[size_t(slot)] = 1;
          left--;
        }
      return slot;
    };
    const int64_t sent = through(out[size_t(from)]), received = through(in[size_t(to)]);
    return std::max(sent, received) + std::llround(model.latency * 1e6);
  }
};

// In microseconds; at 1 MB/s a byte takes one.
int64_t arrival(Links& links, int from, int to, int64_t bytes, int64_t now) {
  return int64_t(links.send(from, to, bytes, uint64_t(now) * 1000) / 1000);
}

TEST(Links, ArrivalsAreTheNaiveModels) {
  std::mt19937 random(1);
  for (int round = 0; round < 60; round++) {
    const int ranks = 2 + round % 5;
    LinkModel model{
        .intra = 4e6, .inter = 1e6, .latency = 7e-6 * (round % 3), .ranks_per_node = round % 4};
    Links links(model, ranks);
    NaiveLinks naive(model, ranks);
    int64_t now = 0;
    for (int i = 0; i < 200; i++) {
      if (random() % 3 == 0) now += random() % 40;
      const int from = int(random() % uint32_t(ranks)),
                to = (from + 1 + int(random() % uint32_t(ranks - 1))) % ranks;
      const int64_t bytes = random() % 20 * 4;
      ASSERT_EQ(arrival(links, from, to, bytes, now), naive.send(from, to, bytes, now))
          << "message " << i << ", round " << round;
    }
  }
}

TEST(Links, AreSerialPerDirection) {
  Links links({.intra = 1e6, .inter = 1e6, .latency = 5e-6}, 4);
  EXPECT_EQ(arrival(links, 0, 1, 100, 1000), 1105);
  EXPECT_EQ(arrival(links, 1, 0, 100, 1000), 1105) << "the other way at the same time";
  EXPECT_EQ(arrival(links, 0, 2, 100, 1000), 1205) << "out of rank 0, behind its first";
  EXPECT_EQ(arrival(links, 3, 1, 100, 1000), 1205) << "into rank 1, behind its first";
  EXPECT_EQ(arrival(links, 3, 2, 150, 1000), 1255) << "into rank 2, behind rank 0's";
}

TEST(Links, AnIdleLinkStartsAtOnce) {
  Links links({.intra = 1e6, .inter = 1e6}, 2);
  EXPECT_EQ(arrival(links, 0, 1, 100, 0), 100);
  EXPECT_EQ(arrival(links, 0, 1, 100, 40), 200);
  EXPECT_EQ(arrival(links, 0, 1, 100, 5000), 5100);
  EXPECT_EQ(arrival(links, 0, 1, 0, 5000), 5000);
}

TEST(Links, AnAllToAllTakesNoLongerThanItsBusiestLink) {
  for (int ranks : {2, 4, 8}) {
    Links links({.intra = 1e6, .inter = 1e6}, ranks);
    int64_t last = 0;
    for (int shift = 1; shift < ranks; shift++)
      for (int from = 0; from < ranks; from++)
        last = std::max(last, arrival(links, from, (from + shift) % ranks, 100, 0));
    EXPECT_EQ(last, 100 * (ranks - 1));
  }
}

// --- on the real clock ---------------------------------------------------------------------------

RunOptions linked(int ranks, double bandwidth, double latency = 0) {
  return {.ranks = ranks,
      .timeout = 20,
      .link = {.intra = bandwidth, .inter = bandwidth, .latency = latency}};
}

// Never early; the best of a few on time, whatever else the machine is doing.
TEST(LinkClock, MessagesArriveWhenTheyShould) {
  run_ranks(linked(2, 100e6, 1e-3), [](Comm& world) {
    auto device = make_cpu_device(1);
    std::vector<int32_t> mine(kMB / 4, world.rank()), theirs(kMB / 4);
    double best = 1;
    for (int i = 0; i < 8; i++) {
      world.barrier();
      const auto begin = Clock::now();  // both directions at once: 10 ms each, not 20
      const Request out =
          world.isend(device->compute(), view(mine), 1 - world.rank(), {Tag::F, 0, i});
      const Request in =
          world.irecv(device->compute(), view(theirs), 1 - world.rank(), {Tag::F, 0, i});
      const bool early = in.done() && seconds_since(begin) < 0.011;
      EXPECT_FALSE(early);
      in.wait();
      const double took = seconds_since(begin);
      EXPECT_TRUE(in.done());
      EXPECT_GE(took, 0.011);
      best = std::min(best, took - 0.011);
      out.wait();
      EXPECT_EQ(theirs.back(), 1 - world.rank());
    }
    EXPECT_LT(best, 0.002);
    if (world.rank() == 0) RecordProperty("latest_by_us_at_best", int(best * 1e6));
  });
}

TEST(LinkClock, WaitingCostsNoProcessorTime) {
  run_ranks(linked(2, 5e6), [](Comm& world) {
    auto device = make_cpu_device(1);
    std::vector<int32_t> data(kMB / 4);
    const auto begin = Clock::now();
    const double processor = processor_seconds();
    if (world.rank() == 0) world.isend(device->compute(), view(data), 1, {Tag::F, 0, 0}).wait();
    if (world.rank() == 1) world.irecv(device->compute(), view(data), 0, {Tag::F, 0, 0}).wait();
    EXPECT_GE(seconds_since(begin), 0.2);
    EXPECT_LT(processor_seconds() - processor, 0.02);
  });
}

TEST(LinkClock, AMessageUnderWayDelaysNobodyElse) {
  run_ranks(linked(4, 5e6), [](Comm& world) {
    auto device = make_cpu_device(1);
    CommStream stream(world, *device);
    Comm group = world.group(world.rank() < 2 ? std::vector{0, 1} : std::vector{2, 3});
    std::vector<int32_t> large(2 * kMB / 4), small(2);
    const int peer = 1 - group.rank();
    world.barrier();
    const auto begin = Clock::now();
    const bool first = group.rank() == 0;
    const Request slow = world.rank() >= 2 ? Request()
        : first                            ? group.isend(stream, view(large), peer, {Tag::F, 0, 0})
                                           : group.irecv(stream, view(large), peer, {Tag::F, 0, 0});
    if (slow) group.wait(stream, slow);  // on the stream's thread: 0.4 s
    EXPECT_LT(seconds_since(begin), 0.3) << "computation goes on";
    // The other way, and between other ranks, the links are free.
    const Request quick = first ? group.irecv(device->compute(), view(small), peer, {Tag::B, 0, 0})
                                : group.isend(device->compute(), view(small), peer, {Tag::B, 0, 0});
    quick.wait();
    EXPECT_LT(seconds_since(begin), 0.3);
    stream->synchronize();
    EXPECT_GE(seconds_since(begin), slow ? 0.4 : 0);
  });
}

TEST(LinkClock, AFailureIsNotWaitedFor) {
  const auto begin = Clock::now();
  EXPECT_THROW(run_ranks(linked(2, 1e4),
                   [](Comm& world) {
                     auto device = make_cpu_device(1);
                     std::vector<int32_t> data(kMB / 4);  // 100 s
                     const Request r = world.rank()
                         ? world.irecv(device->compute(), view(data), 0, {Tag::F, 0, 0})
                         : world.isend(device->compute(), view(data), 1, {Tag::F, 0, 0});
                     std::this_thread::sleep_for(std::chrono::milliseconds(20));
                     if (world.rank()) throw Error("out of tokens");
                     r.wait();
                   }),
      Error);
  EXPECT_LT(seconds_since(begin), 5);
}

TEST(LinkClock, AnAllToAllTakesItsBusiestLinksTime) {
  run_ranks(linked(4, 20e6), [](Comm& world) {
    auto device = make_cpu_device(1);
    constexpr int64_t kRows = 50000;  // of 4 bytes: 10 ms to each of three
    std::vector<int32_t> mine(4 * kRows, world.rank()), theirs(4 * kRows);
    const std::vector<int64_t> offsets = {0, kRows, 2 * kRows, 3 * kRows, 4 * kRows};
    double best = 1;
    for (int i = 0; i < 4; i++) {
      world.barrier();
      const auto begin = Clock::now();
      world.all_to_all_v(device->compute(), view(mine).reshape(4 * kRows, 1), offsets,
          view(theirs).reshape(4 * kRows, 1), offsets);
      const double took = seconds_since(begin);
      EXPECT_GE(took, 0.030);
      best = std::min(best, took);
    }
    for (int r = 0; r < 4; r++) EXPECT_EQ(theirs[size_t(r * kRows)], r);
    EXPECT_LT(best, 0.045);
  });
}

// --- traffic -------------------------------------------------------------------------------------

TEST(Traffic, IsCountedWithinAndBetweenNodes) {
  run_ranks({.ranks = 4, .timeout = 20, .link = {.ranks_per_node = 2}}, [](Comm& world) {
    auto device = make_cpu_device(1);
    std::vector<int32_t> mine(100), all(400), got(400);
    world.traffic() = {};
    const auto expect_sent = [&](int64_t intra, int64_t inter, const char* what) {
      const Traffic sent = std::exchange(world.traffic(), {});
      EXPECT_EQ(sent.intra, intra) << what;
      EXPECT_EQ(sent.inter, inter) << what;
    };
    const std::vector<int64_t> each = {0, 100, 200, 300, 400};
    world.all_to_all_v(
        device->compute(), view(all).reshape(400, 1), each, view(got).reshape(400, 1), each);
    expect_sent(400, 800, "a part to one neighbour and to two ranks of the other node");
    if (world.rank() == 1) world.isend(device->compute(), view(mine), 2, {Tag::F, 0, 0}).wait();
    if (world.rank() == 2) world.irecv(device->compute(), view(mine), 1, {Tag::F, 0, 0}).wait();
    expect_sent(0, world.rank() == 1 ? 400 : 0, "a message");
    Comm across = world.group({world.rank() % 2, world.rank() % 2 + 2});
    std::vector<double> sums(100), scratch(128);
    const auto row = [](std::vector<double>& v) {
      return Tensor{v.data(), Dtype::f64, 1, int64_t(v.size()), int64_t(v.size())};
    };
    across.all_reduce(device->compute(), row(sums), row(scratch));
    const int64_t mine_of_sums = across.rank() == 0 ? 64 : 36;
    expect_sent(0, (100 - mine_of_sums) * 8 + mine_of_sums * 4,
        "an all-reduce with the other node: my part of its slice, and the rounded sum of mine");
    world.gather("12345");
    expect_sent(8 + 5, 2 * (8 + 5), "host values and their lengths");
  });
}

// --- training ------------------------------------------------------------------------------------

TrainOptions tiny() {
  TrainOptions o;
  o.preset = "tiny";
  o.model = parse_sizes("n_layers=4");
  o.seq_len = 16;
  o.microbatches = 4;
  o.steps = 2;
  o.device = DeviceKind::cpu;
  o.threads = 1;
  o.val_sequences = 2;
  o.sample = 0;
  o.dp = o.ep = o.pp = 2;
  o.schedule = "dualpipe";
  return o;
}

std::vector<Json> metrics_of(TrainOptions o) {
  const TemporaryFolder folder;
  o.out = folder.path + "/run";
  std::ostringstream text;
  train_command(o, text);
  EXPECT_NE(text.str().find("sent "), std::string::npos) << text.str();
  std::vector<Json> lines;
  std::ifstream in(o.out + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line, "metrics"));
  return lines;
}

TEST(LinkTraining, ChangesNotOneBit) {
  TrainOptions o = tiny();
  const std::vector<Json> plain = metrics_of(o);
  o.link = parse_link("intra=200MB/s,inter=50MB/s,latency=20us");
  o.ranks_per_node = 2;
  const std::vector<Json> linked = metrics_of(o);
  ASSERT_EQ(plain.size(), 2u);
  ASSERT_EQ(linked.size(), 2u);
  for (size_t i = 0; i < 2; i++) {
    for (const char* key : {"loss_hex", "grad_norm_hex"})
      EXPECT_EQ(plain[i].at(key).string(), linked[i].at(key).string());
    EXPECT_EQ(plain[i].at("bytes_inter").integer(), 0) << "one node";
    EXPECT_GT(linked[i].at("bytes_intra").integer(), 0);
    EXPECT_GT(linked[i].at("bytes_inter").integer(), 0);
    EXPECT_EQ(plain[i].at("bytes_intra").integer(),
        linked[i].at("bytes_intra").integer() + linked[i].at("bytes_inter").integer());
  }
}

// The first stage of rank 0 sends a microbatch's activations to the other node, the gradients come
// back; nothing else crosses.
TEST(LinkTraining, PipelineBytesAreThoseOfTheActivations) {
  TrainOptions o = tiny();
  o.schedule = "1f1b";
  o.ranks_per_node = 2;  // the data-parallel ranks of one stage
  const std::vector<Json> lines = metrics_of(o);
  const int64_t d_model = o.resolve().d_model;
  for (const Json& line : lines)
    EXPECT_EQ(line.at("bytes_inter").integer(),
        2 * o.dp * o.microbatches * o.micro_batch_size * o.seq_len * d_model * 4);
}

// --- wrong input ---------------------------------------------------------------------------------

TEST(LinkOptions, Parse) {
  LinkModel all = parse_link("intra=160GB/s,inter=40GB/s,latency=5us");
  all.ranks_per_node = 8;
  EXPECT_EQ(all.intra, 160e9);
  EXPECT_EQ(all.inter, 40e9);
  EXPECT_DOUBLE_EQ(all.latency, 5e-6);
  EXPECT_EQ(all.text(), "160 GB/s within a node, 40 GB/s between nodes, latency 5 us");
  EXPECT_TRUE(all.same_node(0, 7));
  EXPECT_FALSE(all.same_node(7, 8));
  EXPECT_FALSE(parse_link("").emulated());
  EXPECT_TRUE(parse_link("").same_node(0, 1000));
  const LinkModel some = parse_link("inter=2.5MB/s");
  EXPECT_EQ(some.inter, 2.5e6);
  EXPECT_EQ(some.text(), "no limit within a node, 2.5 MB/s between nodes, latency 0 us");
}

TEST(LinkOptions, WrongOnesAreRefused) {
  for (const char* text :
      {"intra", "intra=", "intra=3", "intra=GB/s", "intra=-1GB/s", "intra=0GB/s", "intra=1Gb/s",
          "intra=nanGB/s", "intra=infGB/s", "latency=5", "latency=5GB/s", "latency=-5us",
          "latency=2s", "inter=5us", "bandwidth=1GB/s", "intra=1GB/s,intra=2GB/s",
          "intra=1GB/s,,latency=5us", ",", "intra=1GB/s inter=1GB/s", "=1GB/s"}) {
    const std::string said = error_of([&] { parse_link(text); });
    EXPECT_EQ(said.find("--link: found '"), 0u) << text << ": " << said;
    EXPECT_NE(said.find("allowed: "), std::string::npos) << said;
  }
  RunOptions run = linked(2, 1e9);
  run.transport = Wire::mpi;
  EXPECT_EQ(error_of([&] {
    run_ranks(run, [](Comm&) {});
  }).find("--link: found --transport mpi, allowed: local"),
      0u);
}

}  // namespace
}  // namespace duet
