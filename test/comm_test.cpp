// comm/: one conformance suite for every transport, then what happens when something goes wrong.
//
// CommConformance runs on threads as part of `make test`, also over NCCL (a stand-in; the real one where there are four GPUs),
// and again on four MPI processes, started by CommMpi with mpirun. What is NCCL's own is in nccl_test.cpp.
// Payloads are functions of (rank, index), so every rank knows what all others sent; sums are compared with a naive loop in
// rank order, bit for bit. CommChild are the processes of CommMpi that are meant to fail: disabled, and started by name.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <numeric>
#include <random>
#include <thread>

#include "comm/comm.h"
#include "test/fake_gpu.h"
#include "test/fake_nccl.h"
#include "test/processes.h"

namespace duet {
namespace {

RunOptions here(int threads = 4) {
  const int processes = find_launch().ranks;
  if (processes > 1) return {.transport = Wire::mpi, .ranks = processes, .timeout = 30};
  return {.transport = Wire::local, .ranks = threads, .timeout = 30};
}

template <class T>
Tensor view(std::vector<T>& v, int64_t rows, int64_t cols) {
  return {v.data(), DtypeOf<T>::value, rows, cols, cols};
}

// Integers below 2^11, so that sums over a few ranks are exact in every dtype.
template <class T>
std::vector<T> exact(int rank, int64_t n, int salt = 0) {
  std::vector<T> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) v[size_t(i)] = T((rank * 7919 + i * 104729 + salt * 31) % 2048 - 1024);
  return v;
}

// Values of very different magnitudes: their sum depends on the order.
template <class T>
std::vector<T> rounding(int rank, int64_t n) {
  std::mt19937 random(uint32_t(rank + 1));
  std::vector<T> v(static_cast<size_t>(n));
  for (T& x : v) x = T(std::ldexp(double(random()) / 4e9 - 0.5, int(random() % 60)));
  return v;
}

template <class T>
std::vector<T> sum_in_order(const std::vector<std::vector<T>>& by_rank) {
  std::vector<T> sum = by_rank[0];
  for (size_t r = 1; r < by_rank.size(); r++)
    for (size_t i = 0; i < sum.size(); i++) sum[i] = sum[i] + by_rank[r][i];
  return sum;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// What the ranks' tensors lie in, and how those in GPU memory travel.
enum class Machine { cpu, fake_gpu, cuda, fake_nccl, nccl };

RunOptions here(Machine machine) {
  RunOptions options = here();
  if (machine == Machine::fake_nccl || machine == Machine::nccl) options.transport = Wire::nccl;
  if (machine == Machine::fake_nccl) options.nccl = &fake_nccl::api();
  return options;
}

std::unique_ptr<Device> make_device(Machine machine, int rank) {
  if (machine == Machine::cuda) return make_cuda_device(0);
  if (machine == Machine::nccl) return make_cuda_device(rank % cuda_device_count());
  if (machine == Machine::fake_gpu || machine == Machine::fake_nccl) return std::make_unique<FakeGpu>();
  return make_cpu_device(1);
}

std::vector<std::pair<int, int>> all_pairs(int ranks) {
  std::vector<std::pair<int, int>> pairs;
  for (int a = 0; a < ranks; a++)
    for (int b = 0; b < a; b++) pairs.push_back({a, b});
  return pairs;
}

// A rank's device and its channels to all others.
struct Machinery {
  std::unique_ptr<Device> device;
  Channels channels;
  Machinery(Comm& world, Machine machine)
      : device(make_device(machine, world.rank())), channels(world, *device, all_pairs(world.size())) {}
  Device& operator*() { return *device; }
  Device* operator->() { return device.get(); }
};

// A tensor that both the host and the device can read and write.
template <class T>
struct Mem {
  Buf buf;
  Mem(Device& device, int64_t rows, int64_t cols) : buf(device.host_buffer(rows, cols, DtypeOf<T>::value)) {}
  Mem(Device& device, int64_t rows, int64_t cols, const std::vector<T>& values) : Mem(device, rows, cols) { set(values); }
  operator const Tensor&() const { return *buf; }
  void set(const std::vector<T>& values) { std::copy(values.begin(), values.end(), buf->template row<T>(0)); }
  std::vector<T> get() const { return {buf->template row<T>(0), buf->template row<T>(0) + buf->size()}; }
};

class CommConformance : public testing::TestWithParam<Machine> {
  void TearDown() override {
    EXPECT_EQ(fake_nccl::misuse(), std::vector<std::string>());
    EXPECT_EQ(fake_nccl::live_communicators(), 0);
  }
};
INSTANTIATE_TEST_SUITE_P(Cpu, CommConformance, testing::Values(Machine::cpu));
INSTANTIATE_TEST_SUITE_P(FakeGpu, CommConformance, testing::Values(Machine::fake_gpu));
INSTANTIATE_TEST_SUITE_P(Cuda, CommConformance,
                         testing::ValuesIn(std::vector<Machine>(cuda_device_count() > 0 ? 1 : 0, Machine::cuda)));
INSTANTIATE_TEST_SUITE_P(FakeNccl, CommConformance, testing::Values(Machine::fake_nccl));
INSTANTIATE_TEST_SUITE_P(Nccl, CommConformance, testing::ValuesIn(std::vector<Machine>(
                                                    have_nccl() && cuda_device_count() >= 4 ? 1 : 0, Machine::nccl)));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommConformance);

// Runs the body on every rank, on its compute stream and on a CommStream.
void on_both_streams(Machine machine, const std::function<void(Comm&, Stream&)>& body) {
  run_ranks(here(machine), [&](Comm& world) {
    Machinery device(world, machine);
    CommStream stream(world, *device);
    body(world, device->compute());
    body(world, stream);
  });
}

template <class T>
void check_all_reduce(Comm& world, Stream& stream, const std::function<std::vector<T>(int, int64_t)>& payload, int64_t n) {
  std::vector<std::vector<T>> all;
  for (int r = 0; r < world.size(); r++) all.push_back(payload(r, n));
  Mem<T> mine(stream.device(), 1, n, all[size_t(world.rank())]), scratch(stream.device(), 1, world.scratch_size(n));
  world.all_reduce(stream, mine, scratch);
  stream.synchronize();
  EXPECT_TRUE(same_bits(mine.get(), sum_in_order(all))) << n << " elements on rank " << world.rank();
}

TEST_P(CommConformance, AllReduce) {
  on_both_streams(GetParam(), [](Comm& world, Stream& stream) {
    for (int64_t n : {0, 1, 2, 63, 64, 65, 255, 256, 257, 1000, 4099, 100003}) {
      check_all_reduce<float>(world, stream, [](int r, int64_t m) { return exact<float>(r, m); }, n);
      check_all_reduce<double>(world, stream, [](int r, int64_t m) { return exact<double>(r, m); }, n);
      check_all_reduce<int32_t>(world, stream, [](int r, int64_t m) { return exact<int32_t>(r, m); }, n);
      check_all_reduce<float>(world, stream, rounding<float>, n);
      check_all_reduce<double>(world, stream, rounding<double>, n);
    }
  });
}

TEST(CommPayloads, NoticeAnotherOrder) {
  std::vector<std::vector<float>> all;
  for (int r = 0; r < 4; r++) all.push_back(rounding<float>(r, 1000));
  const std::vector<float> forward = sum_in_order(all);
  std::swap(all[0], all[3]);
  EXPECT_FALSE(same_bits(forward, sum_in_order(all)));
}

TEST_P(CommConformance, ReduceScatter) {
  on_both_streams(GetParam(), [](Comm& world, Stream& stream) {
    for (int64_t rows : {0, 1, 5, 129}) {
      const int64_t part = rows * 3, n = world.size() * part;
      std::vector<std::vector<float>> all;
      for (int r = 0; r < world.size(); r++) all.push_back(rounding<float>(r, n));
      Mem<float> in(stream.device(), world.size() * rows, 3, all[size_t(world.rank())]), out(stream.device(), rows, 3);
      Mem<float> scratch(stream.device(), 1, n);
      world.reduce_scatter(stream, in, out, scratch);
      stream.synchronize();
      const std::vector<float> sum = sum_in_order(all);
      const auto mine = sum.begin() + world.rank() * part;
      EXPECT_TRUE(same_bits(out.get(), std::vector<float>(mine, mine + part)));
    }
  });
}

TEST_P(CommConformance, AllGatherAlsoInPlace) {
  on_both_streams(GetParam(), [](Comm& world, Stream& stream) {
    for (int64_t rows : {0, 1, 7, 1000}) {
      std::vector<int32_t> expected;
      for (int r = 0; r < world.size(); r++)
        for (int32_t x : exact<int32_t>(r, rows * 2)) expected.push_back(x);
      Mem<int32_t> mine(stream.device(), rows, 2, exact<int32_t>(world.rank(), rows * 2));
      Mem<int32_t> all(stream.device(), world.size() * rows, 2);
      world.all_gather(stream, mine, all);
      stream.synchronize();
      EXPECT_EQ(all.get(), expected);

      all.set(std::vector<int32_t>(expected.size(), -1));
      const Tensor part = all.buf->row_slice(world.rank() * rows, rows);
      stream.copy(part.data, mine.buf->data, size_t(part.bytes()));
      world.all_gather(stream, part, all);
      stream.synchronize();
      EXPECT_EQ(all.get(), expected);
    }
  });
}

TEST_P(CommConformance, BroadcastFromEachRoot) {
  on_both_streams(GetParam(), [](Comm& world, Stream& stream) {
    for (int root = 0; root < world.size(); root++) {
      Mem<double> v(stream.device(), 3, 111, exact<double>(world.rank(), 333, root));
      world.broadcast(stream, v, root);
      stream.synchronize();
      EXPECT_EQ(v.get(), exact<double>(root, 333, root));
    }
  });
}

TEST_P(CommConformance, AllToAllV) {
  on_both_streams(GetParam(), [](Comm& world, Stream& stream) {
    std::mt19937 random(1);  // the same on all ranks, so that all know the counts
    const int n = world.size(), me = world.rank();
    for (int round = 0; round < 20; round++) {
      std::vector<std::vector<int64_t>> count(size_t(n), std::vector<int64_t>(size_t(n), 0));  // [source][target] rows
      for (auto& row : count)
        for (int64_t& c : row) c = random() % 3 == 0 ? 0 : int64_t(random() % 50);
      std::vector<int64_t> send_offsets{0}, recv_offsets{0};
      std::vector<float> payload, expected;
      for (int r = 0; r < n; r++) {
        const int64_t to = count[size_t(me)][size_t(r)], from = count[size_t(r)][size_t(me)];
        send_offsets.push_back(send_offsets.back() + to);
        recv_offsets.push_back(recv_offsets.back() + from);
        for (float x : exact<float>(me, to * 5, r)) payload.push_back(x);
        for (float x : exact<float>(r, from * 5, me)) expected.push_back(x);
      }
      Mem<float> send(stream.device(), send_offsets.back(), 5, payload), recv(stream.device(), recv_offsets.back(), 5);
      world.all_to_all_v(stream, send, send_offsets, recv, recv_offsets);
      stream.synchronize();
      EXPECT_EQ(recv.get(), expected);
    }
  });
}

TEST_P(CommConformance, MessagesPostedInReversedOrder) {
  run_ranks(here(GetParam()), [&](Comm& world) {
    Machinery device(world, GetParam());
    Stream& stream = device->compute();
    const int next = (world.rank() + 1) % world.size(), previous = (world.rank() + world.size() - 1) % world.size();
    const int n = GetParam() == Machine::cpu ? 1000 : 50;  // half of them forward, half backward
    std::vector<Mem<int32_t>> out, in;
    for (int i = 0; i < n; i++) {
      out.emplace_back(*device, 1, 17, exact<int32_t>(world.rank(), 17, i));
      in.emplace_back(*device, 1, 17);
    }
    const auto tag = [&](int i) { return Tag{i < n / 2 ? Tag::F : Tag::B, i % 3, i % (n / 2)}; };
    std::vector<Request> requests;
    for (int i = 0; i < n; i++) requests.push_back(world.isend(stream, out[size_t(i)], next, tag(i)));
    for (int i = n - 1; i >= 0; i--) requests.push_back(world.irecv(stream, in[size_t(i)], previous, tag(i)));
    for (int i = n - 1; i >= 0; i--) world.wait(stream, requests[size_t(i)]);
    for (const Request& r : requests) r.wait();
    for (const Request& r : requests) EXPECT_TRUE(r.done());
    for (int i = 0; i < n; i++) EXPECT_EQ(in[size_t(i)].get(), exact<int32_t>(previous, 17, i)) << i;
  });
}

TEST_P(CommConformance, EqualTagsKeepTheirOrder) {
  run_ranks(here(GetParam()), [&](Comm& world) {
    Machinery device(world, GetParam());
    std::vector<Mem<int32_t>> v;
    std::vector<Request> requests;
    for (int i = 0; i < 100 && world.rank() < 2; i++) {  // microbatches 2048 apart share a tag
      const Tag tag{Tag::W, 511, 2048 * i + 5};
      v.emplace_back(*device, 1, 3, exact<int32_t>(world.rank(), 3, i));
      requests.push_back(world.rank() == 0 ? world.isend(device->compute(), v.back(), 1, tag)
                                           : world.irecv(device->compute(), v.back(), 0, tag));
    }
    for (const Request& r : requests) r.wait();
    for (size_t i = 0; i < v.size(); i++) EXPECT_EQ(v[i].get(), exact<int32_t>(0, 3, int(i)));
  });
}

// Everyone knows the whole list of messages; each rank posts its own in an order of its own.
TEST_P(CommConformance, RandomTraffic) {
  struct Item {
    int source, target, stage, length;
    bool backward;
  };
  run_ranks(here(GetParam()), [&](Comm& world) {
    Machinery device(world, GetParam());
    CommStream further(world, *device);
    std::mt19937 random(7), mine(uint32_t(world.rank()));
    std::vector<Item> items;
    const int n = GetParam() == Machine::cpu ? 400 : 60;
    for (int i = 0; i < n; i++) {
      const int source = int(random() % uint32_t(world.size()));
      const int target = (source + 1 + int(random() % uint32_t(world.size() - 1))) % world.size();
      const int length = int(random() % 5 == 0 ? random() % 100000 : random() % 40), stage = int(random() % 4);
      items.push_back({source, target, stage, length, i % 2 == 0});
    }
    std::vector<int> order;
    for (int i = 0; i < n; i++)
      if (items[size_t(i)].source == world.rank() || items[size_t(i)].target == world.rank()) order.push_back(i);
    std::shuffle(order.begin(), order.end(), mine);
    std::vector<Mem<int32_t>> v;
    std::vector<Request> requests;
    for (int i : order) {
      const Item& item = items[size_t(i)];
      const bool send = item.source == world.rank();
      v.emplace_back(*device, 1, item.length, exact<int32_t>(send ? item.source : 99, item.length, i));
      Stream& stream = mine() % 2 ? device->compute() : further;
      const Tag tag{item.backward ? Tag::B : Tag::F, item.stage, i};
      requests.push_back(send ? world.isend(stream, v.back(), item.target, tag)
                              : world.irecv(stream, v.back(), item.source, tag));
    }
    std::shuffle(requests.begin(), requests.end(), mine);
    for (const Request& r : requests) r.wait();
    for (size_t k = 0; k < order.size(); k++) {
      const Item& item = items[size_t(order[k])];
      EXPECT_EQ(v[k].get(), exact<int32_t>(item.source, item.length, order[k]));
    }
  });
}

TEST_P(CommConformance, GroupsInParallel) {
  run_ranks(here(GetParam()), [&](Comm& world) {
    ASSERT_EQ(world.size(), 4);
    Machinery device(world, GetParam());
    CommStream stream(world, *device);
    const int r = world.rank();
    Comm row = world.group({r / 2 * 2, r / 2 * 2 + 1});
    Comm column = world.group({r % 2 + 2, r % 2});  // numbered downwards
    Comm alone = world.group({r});
    EXPECT_EQ(row.rank(), r % 2);
    EXPECT_EQ(column.rank(), 1 - r / 2);
    EXPECT_EQ(column.world_rank(0), r % 2 + 2);
    EXPECT_EQ(alone.size(), 1);
    const std::vector<float> mine = rounding<float>(r, 100);
    Mem<float> scratch_a(*device, 1, 4096), scratch_b(*device, 1, 4096);
    for (int round = 0; round < 30; round++) {
      Mem<float> a(*device, 1, 100, mine), b(*device, 1, 100, mine), c(*device, 1, 100, mine);
      row.all_reduce(stream, a, scratch_a);
      column.all_reduce(device->compute(), b, scratch_b);
      alone.all_reduce(stream, c, Tensor());
      stream->synchronize();
      device->compute().synchronize();
      const auto sum = [](int q, int s) { return sum_in_order<float>({rounding<float>(q, 100), rounding<float>(s, 100)}); };
      EXPECT_TRUE(same_bits(a.get(), sum(r / 2 * 2, r / 2 * 2 + 1)));
      EXPECT_TRUE(same_bits(b.get(), sum(r % 2 + 2, r % 2)));
      EXPECT_TRUE(same_bits(c.get(), mine));
    }
  });
}

// Rank 1 joins the collective only once it has a message that rank 0 sends after it has called the collective.
TEST(CommOverlap, ACollectiveOnACommStreamDoesNotBlockTheRank) {
  run_ranks(here(), [](Comm& world) {
    auto device = make_cpu_device(1);
    CommStream stream(world, *device);
    std::vector<int32_t> go{1}, mine = exact<int32_t>(world.rank(), 10), all(static_cast<size_t>(10 * world.size()));
    if (world.rank() == 1) world.irecv(device->compute(), view(go, 1, 1), 0, {Tag::F, 0, 0}).wait();
    world.all_gather(stream, view(mine, 1, 10), view(all, world.size(), 10));
    if (world.rank() == 0) world.isend(device->compute(), view(go, 1, 1), 1, {Tag::F, 0, 0}).wait();
    auto gathered = device->make_event();
    stream->record(*gathered);
    device->compute().wait(*gathered);
    for (int r = 0; r < world.size(); r++)
      EXPECT_TRUE(std::equal(all.begin() + r * 10, all.begin() + (r + 1) * 10, exact<int32_t>(r, 10).begin()));
  });
}

// A receive that comes late holds up nobody but its own message: the work between is done before the sender has computed it.
TEST(CommOverlap, OnAGpuAMessageWaitsForItsSenderNotTheStreamThatPostedIt) {
  run_ranks({.ranks = 2, .timeout = 10}, [](Comm& world) {
    FakeGpu device;
    const Buf v = device.buffer(1, 1, Dtype::i32, Use::scratch), back = device.buffer(1, 1, Dtype::i32, Use::scratch);
    int32_t &value = *v->row<int32_t>(0), &answer = *back->row<int32_t>(0);
    value = answer = world.rank();
    if (world.rank() == 0) {  // computes its message only once it has the other one
      const Request received = world.irecv(device.compute(), back, 1, {Tag::B, 0, 0});
      device.compute().host([&] { received.wait(); value = answer + 41; });
      const Request sent = world.isend(device.compute(), v, 1, {Tag::F, 0, 0});
      sent.wait();
      device.compute().synchronize();
    } else {
      const Request received = world.irecv(device.compute(), v, 0, {Tag::F, 0, 0});
      device.compute().synchronize();
      const Request sent = world.isend(device.compute(), back, 0, {Tag::B, 0, 0});
      received.wait();
      world.wait(device.compute(), received);
      device.compute().synchronize();
      EXPECT_EQ(value, 42);
      sent.wait();
    }
  });
}

TEST(CommHost, Messages) {
  run_ranks(here(), [](Comm& world) {
    const int next = (world.rank() + 1) % world.size(), previous = (world.rank() + world.size() - 1) % world.size();
    const std::vector<int32_t> mine = exact<int32_t>(world.rank(), 1000);
    std::vector<int32_t> got(1000);
    if (world.rank() % 2 == 0) world.send(std::as_bytes(std::span(mine)), next, {Tag::W, 1, 2});
    world.recv(std::as_writable_bytes(std::span(got)), previous, {Tag::W, 1, 2});
    if (world.rank() % 2 == 1) world.send(std::as_bytes(std::span(mine)), next, {Tag::W, 1, 2});
    EXPECT_EQ(got, exact<int32_t>(previous, 1000));
  });
}

TEST(CommHost, Values) {
  run_ranks(here(), [](Comm& world) {
    const std::vector<std::string> all = world.gather(std::string(size_t(world.rank() * 1000), char('a' + world.rank())));
    for (int r = 0; r < world.size(); r++) EXPECT_EQ(all[size_t(r)], std::string(size_t(r * 1000), char('a' + r)));
    const std::vector<double> values = world.gather_values(1.5 * world.rank());
    for (int r = 0; r < world.size(); r++) EXPECT_EQ(values[size_t(r)], 1.5 * r);
    world.require_same("plan", "0F0");
    EXPECT_THROW(world.require_same("plan", world.rank() == 2 ? "x" : "y"), UsageError);
    world.barrier();
  });
}

// --- local: what goes wrong --------------------------------------------------------------------------------------------------

std::string error_of(const RunOptions& options, const std::function<void(Comm&)>& rank) {
  const auto begin = std::chrono::steady_clock::now();
  std::string text = "no error";
  try {
    run_ranks(options, rank);
  } catch (const UsageError& e) {
    text = std::string("usage: ") + e.what();
  } catch (const std::exception& e) {
    text = e.what();
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  return text;
}

TEST(CommLocal, AFailingRankStopsTheOthersWhereverTheyWait) {
  for (const bool further : {false, true}) {
    const std::string error = error_of({.ranks = 5, .timeout = 60}, [&](Comm& world) {
      auto device = make_cpu_device(1);
      std::vector<int32_t> mine(100), scratch(1000);
      CommStream stream(world, *device);
      Comm pair = world.group(world.rank() == 0 || world.rank() == 2 ? std::vector{0, 2} : std::vector{world.rank()});
      Stream& used = further ? static_cast<Stream&>(stream) : device->compute();
      if (world.rank() == 4) return;  // ended already
      if (world.rank() == 3) {        // fails while its own stream waits, too
        world.wait(stream, world.irecv(stream, view(mine, 1, 100), 4, {Tag::F, 0, 0}));
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        throw Error("out of tokens");
      }
      if (world.rank() == 2) pair.all_reduce(used, view(mine, 1, 100), view(scratch, 1, 1000));
      if (world.rank() == 1) world.gather("x");
      if (world.rank() == 0) world.irecv(used, view(mine, 1, 100), 1, {Tag::F, 0, 0}).wait();
      used.synchronize();
      ADD_FAILURE() << "rank " << world.rank() << " went on";
    });
    EXPECT_EQ(error, "rank 3: out of tokens");
  }
}

TEST(CommLocal, AUsageErrorStaysOne) {
  EXPECT_EQ(error_of({.ranks = 3}, [](Comm&) { throw UsageError("--data: nothing there"); }), "usage: --data: nothing there");
}

TEST(CommLocal, ATimeoutSaysWhoWaitsForWhomAndForWhat) {
  const auto receive = [](Comm& world) {
    auto device = make_cpu_device(1);
    std::vector<float> v(8);
    if (world.rank() == 1) world.irecv(device->compute(), view(v, 1, 8), 0, {Tag::F, 3, 7}).wait();
  };
  EXPECT_EQ(error_of({.ranks = 2, .timeout = 0.1}, receive),
            "rank 1: waited 0.1 s for 3F7 from rank 0; it did not come (--comm-timeout)");
  const auto send = [](Comm& world) {
    auto device = make_cpu_device(1);
    std::vector<float> v(8);
    CommStream stream(world, *device);
    if (world.rank() == 0) world.wait(stream, world.isend(stream, view(v, 1, 8), 1, {Tag::B, 12, 2049}));
    stream->synchronize();
  };
  EXPECT_EQ(error_of({.ranks = 2, .timeout = 0.1}, send),
            "rank 0: waited 0.1 s for 12B1 to be taken by rank 1; it did not come (--comm-timeout)");
  const auto collective = [](Comm& world) {
    Comm group = world.group({1 - world.rank(), world.rank()});
    if (world.rank() == 1) group.barrier();
  };
  EXPECT_EQ(error_of({.ranks = 2, .timeout = 0.1}, collective),
            "rank 1: waited 0.1 s for gather 0 of group 1 from rank 0; it did not come (--comm-timeout)");
}

TEST(CommLocal, SidesThatDisagreeAreRefused) {
  const std::string error = error_of({.ranks = 2}, [](Comm& world) {
    auto device = make_cpu_device(1);
    std::vector<float> v(8);
    const Tensor t = view(v, 1, 4 + world.rank());
    if (world.rank() == 0) world.isend(device->compute(), t, 1, {Tag::F, 0, 1}).wait();
    if (world.rank() == 1) world.irecv(device->compute(), t, 0, {Tag::F, 0, 1}).wait();
  });
  EXPECT_NE(error.find("0F1"), std::string::npos) << error;
  EXPECT_NE(error.find("16"), std::string::npos) << error;
  EXPECT_NE(error.find("20"), std::string::npos) << error;
}

TEST(CommLocal, ADroppedRequestIsTakenBack) {
  run_ranks({.ranks = 2, .timeout = 10}, [](Comm& world) {
    auto device = make_cpu_device(1);
    const Tag tag{Tag::F, 0, 0};
    if (world.rank() == 0) {
      std::vector<float> gone(8, 1.f);
      world.isend(device->compute(), view(gone, 1, 8), 1, tag);  // dropped at once
    }
    world.barrier();
    std::vector<float> v(8, world.rank() ? 0.f : 2.f);
    const Request r = world.rank() ? world.irecv(device->compute(), view(v, 1, 8), 0, tag)
                                   : world.isend(device->compute(), view(v, 1, 8), 1, tag);
    r.wait();
    EXPECT_EQ(v[7], 2.f);
  });
}

TEST(CommLocal, BadCallsAreRefused) {
  run_ranks({.ranks = 2}, [](Comm& world) {
    auto device = make_cpu_device(1);
    Stream& s = device->compute();
    std::vector<float> v(100);
    Tensor strided = view(v, 10, 10).col_slice(0, 5);
    EXPECT_THROW(world.isend(s, view(v, 1, 100), 2, {Tag::F, 0, 0}), Error);
    EXPECT_THROW(world.isend(s, strided, 1 - world.rank(), {Tag::F, 0, 0}), Error);
    EXPECT_THROW(world.isend(s, view(v, 1, 100), 1 - world.rank(), {Tag::F, 512, 0}), Error);
    EXPECT_THROW(world.all_reduce(s, view(v, 1, 50), view(v, 1, 50)), Error);
    EXPECT_THROW(world.all_gather(s, view(v, 1, 50), view(v, 1, 99)), Error);
    EXPECT_THROW(world.group({1 - world.rank()}), Error);
  });
  EXPECT_THROW(run_ranks({.ranks = 0}, [](Comm&) {}), UsageError);
  EXPECT_THROW(run_ranks({.timeout = 0}, [](Comm&) {}), UsageError);
}

TEST(CommLaunch, FindsTheInnermostLauncher) {
  std::vector<std::pair<std::string, const char*>> environment;
  const auto lookup = [&](const char* name) -> const char* {
    for (const auto& [key, value] : environment)
      if (key == name) return value;
    return nullptr;
  };
  EXPECT_EQ(find_launch(lookup).ranks, 1);
  environment = {{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}};  // a batch script
  EXPECT_EQ(find_launch(lookup).ranks, 1);
  environment.push_back({"SLURM_STEP_NUM_TASKS", "8"});
  EXPECT_EQ(find_launch(lookup).ranks, 8);
  EXPECT_EQ(find_launch(lookup).by, "srun");
  environment.push_back({"OMPI_COMM_WORLD_SIZE", "4"});
  EXPECT_EQ(find_launch(lookup).ranks, 4);
  EXPECT_EQ(find_launch(lookup).by, "mpirun");
}

// --- MPI: processes of this test program -------------------------------------------------------------------------------------

class CommMpi : public testing::Test {
  void SetUp() override {
    if (const std::string why = why_no_mpirun(); !why.empty()) GTEST_SKIP() << why;
  }
};

TEST_F(CommMpi, Conformance) {
  const Ended e = under_mpirun(4, "*/CommConformance.*:CommOverlap.ACollective*:CommHost.*:-FakeNccl/*");
  EXPECT_EQ(e.status, 0) << e.output;
  EXPECT_NE(e.output.find("[  PASSED  ]"), std::string::npos) << e.output;
}

TEST(CommChild, DISABLED_Throws) {
  run_ranks(here(), [](Comm& world) {
    if (world.rank() == 2) throw Error("out of tokens");
    world.gather("x");
  });
}
TEST_F(CommMpi, AFailingRankStopsTheOthers) {
  const Ended e = under_mpirun(4, "CommChild.DISABLED_Throws");
  EXPECT_EQ(e.status, 1);
  EXPECT_NE(e.output.find("duet: rank 2: out of tokens"), std::string::npos) << e.output;
  EXPECT_LT(e.seconds, 10);
}

TEST(CommChild, DISABLED_IsKilled) {
  run_ranks(here(), [](Comm& world) {
    world.barrier();
    if (world.rank() == 1) raise(SIGKILL);
    world.barrier();
  });
}
TEST_F(CommMpi, AKilledRankStopsTheOthers) {
  const Ended e = under_mpirun(4, "CommChild.DISABLED_IsKilled");
  EXPECT_NE(e.status, 0);
  EXPECT_NE(e.output.find("rank 1"), std::string::npos) << e.output;
  EXPECT_LT(e.seconds, 10);
}

TEST(CommChild, DISABLED_TimesOut) {
  RunOptions options = here();
  options.timeout = 0.3;
  run_ranks(options, [](Comm& world) {
    auto device = make_cpu_device(1);
    std::vector<float> v(8);
    if (world.rank() == 1) world.irecv(device->compute(), view(v, 1, 8), 0, {Tag::F, 3, 7}).wait();
    std::this_thread::sleep_for(std::chrono::seconds(8));
  });
}
TEST_F(CommMpi, ATimeoutSaysWhoWaitsForWhomAndForWhat) {
  const Ended e = under_mpirun(2, "CommChild.DISABLED_TimesOut");
  EXPECT_EQ(e.status, 1);
  EXPECT_NE(e.output.find("duet: rank 1: waited 0.3 s for 3F7 from rank 0"), std::string::npos) << e.output;
  EXPECT_LT(e.seconds, 7);
}

TEST(CommChild, DISABLED_WantsMoreRanks) { run_ranks({.transport = Wire::mpi, .ranks = 3}, [](Comm&) {}); }
TEST_F(CommMpi, AnotherNumberOfProcessesIsRefused) {
  const Ended e = under_mpirun(2, "CommChild.DISABLED_WantsMoreRanks");
  EXPECT_EQ(e.status, 2);
  EXPECT_NE(e.output.find("expected one process for each of 3 ranks, found 2"), std::string::npos) << e.output;
}

// srun whose Slurm lacks PMI starts every task as an MPI world of its own.
TEST(CommChild, DISABLED_RunsHere) { run_ranks(here(), [](Comm&) {}); }
TEST_F(CommMpi, TasksThatMpiDoesNotSeeAreRefused) {
  const Ended e = run_command("SLURM_STEP_NUM_TASKS=4 " + this_program("CommChild.DISABLED_RunsHere"));
  EXPECT_EQ(e.status, 2);
  EXPECT_NE(e.output.find("srun started 4 tasks, but MPI sees 1"), std::string::npos) << e.output;
  EXPECT_NE(e.output.find("srun --mpi=pmix"), std::string::npos) << e.output;
}

TEST(CommChild, DISABLED_RunsThreads) {
  EXPECT_THROW(run_ranks({.transport = Wire::local, .ranks = 4}, [](Comm&) {}), UsageError);
}
TEST_F(CommMpi, ThreadsUnderALauncherAreRefused) {
  EXPECT_EQ(run_command("OMPI_COMM_WORLD_SIZE=4 " + this_program("CommChild.DISABLED_RunsThreads")).status, 0);
}

}  // namespace
}  // namespace duet
