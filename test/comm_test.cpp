// comm/: one conformance suite for every transport. What happens when something goes wrong is in
// comm_failure_test.cpp.
//
// CommConformance runs on threads as part of `make test`, on a GPU where there is one and over NCCL
// where there are four, emulated ones among them, and again on four MPI processes, started by
// CommMpi with mpirun. What is NCCL's own is in emulated/nccl_test.cpp. Payloads are functions of
// (rank, index), so every rank knows what all others sent; sums are compared with a naive loop,
// bit for bit.
#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "test/comm_testing.h"

namespace duet {
namespace {

// Multiples of 2^-48 below 4, as exact sums are (model/machine/grid.h): added in fp64 in whatever
// order they have the same bits, which fp32 cannot hold.
std::vector<double> on_grid(int rank, int64_t n) {
  std::mt19937_64 random(uint64_t(rank + 1));
  std::vector<double> v(static_cast<size_t>(n));
  for (double& x : v) x = std::ldexp(double(int64_t(random()) >> 13), -48);
  return v;
}

std::vector<double> sum_of(const std::vector<std::vector<double>>& by_rank) {
  std::vector<double> sum = by_rank[0];
  for (size_t r = 1; r < by_rank.size(); r++)
    for (size_t i = 0; i < sum.size(); i++) sum[i] = sum[i] + by_rank[r][i];
  for (double& x : sum) x = double(float(x));
  return sum;
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() &&
      (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

// What the ranks' tensors lie in, and how those in GPU memory travel.
enum class Machine { cpu, cuda, nccl };

RunOptions options_of(Machine machine) {
  RunOptions options = here();
  if (machine == Machine::nccl) options.transport = Wire::nccl;
  return options;
}

std::unique_ptr<Device> make_device(Machine machine, int rank) {
  if (machine == Machine::cuda) return make_cuda_device(0);
  if (machine == Machine::nccl) return make_cuda_device(rank % cuda_device_count());
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
      : device(make_device(machine, world.rank())),
        channels(world, *device, all_pairs(world.size())) {}
  Device& operator*() { return *device; }
  Device* operator->() { return device.get(); }
};

// A tensor that both the host and the device can read and write.
template <class T> struct Mem {
  Buf buf;
  Mem(Device& device, int64_t rows, int64_t cols)
      : buf(device.host_buffer(rows, cols, DtypeOf<T>::value)) {}
  Mem(Device& device, int64_t rows, int64_t cols, const std::vector<T>& values)
      : Mem(device, rows, cols) {
    set(values);
  }
  operator const Tensor&() const { return *buf; }
  void set(const std::vector<T>& values) {
    std::copy(values.begin(), values.end(), buf->template row<T>(0));
  }
  std::vector<T> get() const {
    return {buf->template row<T>(0), buf->template row<T>(0) + buf->size()};
  }
};

class CommConformance : public testing::TestWithParam<Machine> {};
INSTANTIATE_TEST_SUITE_P(Cpu, CommConformance, testing::Values(Machine::cpu));
INSTANTIATE_TEST_SUITE_P(Cuda, CommConformance,
    testing::ValuesIn(std::vector<Machine>(cuda_device_count() > 0 ? 1 : 0, Machine::cuda)));
INSTANTIATE_TEST_SUITE_P(Nccl, CommConformance,
    testing::ValuesIn(
        std::vector<Machine>(have_nccl() && cuda_device_count() >= 4 ? 1 : 0, Machine::nccl)));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommConformance);

// Runs the body on every rank, on its compute stream and on a CommStream.
void on_both_streams(Machine machine, const std::function<void(Comm&, Stream&)>& body) {
  run_ranks(options_of(machine), [&](Comm& world) {
    Machinery device(world, machine);
    CommStream stream(world, *device);
    body(world, device->compute());
    body(world, stream);
  });
}

void check_all_reduce(Comm& world, Stream& stream,
    const std::function<std::vector<double>(int, int64_t)>& payload, int64_t n) {
  std::vector<std::vector<double>> all;
  for (int r = 0; r < world.size(); r++) all.push_back(payload(r, n));
  Mem<double> mine(stream.device(), 1, n, all[size_t(world.rank())]),
      scratch(stream.device(), 1, world.scratch_size(n));
  world.all_reduce(stream, mine, scratch);
  stream.synchronize();
  EXPECT_TRUE(same_bits(mine.get(), sum_of(all))) << n << " elements on rank " << world.rank();
}

TEST_P(CommConformance, AllReduce) {
  on_both_streams(GetParam(), [](Comm& world, Stream& stream) {
    for (int64_t n : {0, 1, 2, 63, 64, 65, 255, 256, 257, 1000, 4099, 100003}) {
      check_all_reduce(
          world, stream, [](int r, int64_t m) { return exact<double>(r, m); }, n);
      check_all_reduce(world, stream, on_grid, n);
    }
  });
}

TEST(CommPayloads, NoticeASecondRounding) {
  std::vector<std::vector<double>> all;
  for (int r = 0; r < 4; r++) all.push_back(on_grid(r, 1000));
  const std::vector<double> once = sum_of(all);
  std::swap(all[0], all[3]);
  EXPECT_TRUE(same_bits(once, sum_of(all)));
  for (double& x : all[0]) x = double(float(x));
  EXPECT_FALSE(same_bits(once, sum_of(all)));
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

TEST_P(CommConformance, AllToAllV) {
  on_both_streams(GetParam(), [](Comm& world, Stream& stream) {
    std::mt19937 random(1);  // the same on all ranks, so that all know the counts
    const int n = world.size(), me = world.rank();
    for (int round = 0; round < 20; round++) {
      // [source][target] rows
      std::vector<std::vector<int64_t>> count(size_t(n), std::vector<int64_t>(size_t(n), 0));
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
      Mem<float> send(stream.device(), send_offsets.back(), 5, payload),
          recv(stream.device(), recv_offsets.back(), 5);
      world.all_to_all_v(stream, send, send_offsets, recv, recv_offsets);
      stream.synchronize();
      EXPECT_EQ(recv.get(), expected);
    }
  });
}

TEST_P(CommConformance, MessagesPostedInReversedOrder) {
  run_ranks(options_of(GetParam()), [&](Comm& world) {
    Machinery device(world, GetParam());
    Stream& stream = device->compute();
    const int next = (world.rank() + 1) % world.size(),
              previous = (world.rank() + world.size() - 1) % world.size();
    const int n = GetParam() == Machine::cpu ? 1000 : 50;  // half of them forward, half backward
    std::vector<Mem<int32_t>> out, in;
    for (int i = 0; i < n; i++) {
      out.emplace_back(*device, 1, 17, exact<int32_t>(world.rank(), 17, i));
      in.emplace_back(*device, 1, 17);
    }
    const auto tag = [&](int i) { return Tag{i < n / 2 ? Tag::F : Tag::B, i % 3, i % (n / 2)}; };
    std::vector<Request> requests;
    for (int i = 0; i < n; i++)
      requests.push_back(world.isend(stream, out[size_t(i)], next, tag(i)));
    for (int i = n - 1; i >= 0; i--)
      requests.push_back(world.irecv(stream, in[size_t(i)], previous, tag(i)));
    for (int i = n - 1; i >= 0; i--) world.wait(stream, requests[size_t(i)]);
    for (const Request& r : requests) r.wait();
    for (const Request& r : requests) EXPECT_TRUE(r.done());
    for (int i = 0; i < n; i++)
      EXPECT_EQ(in[size_t(i)].get(), exact<int32_t>(previous, 17, i)) << i;
  });
}

TEST_P(CommConformance, EqualTagsKeepTheirOrder) {
  run_ranks(options_of(GetParam()), [&](Comm& world) {
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
  run_ranks(options_of(GetParam()), [&](Comm& world) {
    Machinery device(world, GetParam());
    CommStream further(world, *device);
    std::mt19937 random(7), mine(uint32_t(world.rank()));
    std::vector<Item> items;
    const int n = GetParam() == Machine::cpu ? 400 : 60;
    for (int i = 0; i < n; i++) {
      const int source = int(random() % uint32_t(world.size()));
      const int target = (source + 1 + int(random() % uint32_t(world.size() - 1))) % world.size();
      const int length = int(random() % 5 == 0 ? random() % 100000 : random() % 40),
                stage = int(random() % 4);
      items.push_back({source, target, stage, length, i % 2 == 0});
    }
    std::vector<int> order;
    for (int i = 0; i < n; i++)
      if (items[size_t(i)].source == world.rank() || items[size_t(i)].target == world.rank())
        order.push_back(i);
    std::shuffle(order.begin(), order.end(), mine);
    std::vector<Mem<int32_t>> v;
    std::vector<Request> requests;
    for (int i : order) {
      const Item& item = items[size_t(i)];
      const bool send = item.source == world.rank();
      v.emplace_back(
          *device, 1, item.length, exact<int32_t>(send ? item.source : 99, item.length, i));
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
  run_ranks(options_of(GetParam()), [&](Comm& world) {
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
    const std::vector<double> mine = on_grid(r, 100);
    Mem<double> scratch_a(*device, 1, 4096), scratch_b(*device, 1, 4096);
    for (int round = 0; round < 30; round++) {
      Mem<double> a(*device, 1, 100, mine), b(*device, 1, 100, mine), c(*device, 1, 100, mine);
      row.all_reduce(stream, a, scratch_a);
      column.all_reduce(device->compute(), b, scratch_b);
      alone.all_reduce(stream, c, Tensor());
      stream->synchronize();
      device->compute().synchronize();
      const auto sum = [](int q, int s) { return sum_of({on_grid(q, 100), on_grid(s, 100)}); };
      EXPECT_TRUE(same_bits(a.get(), sum(r / 2 * 2, r / 2 * 2 + 1)));
      EXPECT_TRUE(same_bits(b.get(), sum(r % 2 + 2, r % 2)));
      EXPECT_TRUE(same_bits(c.get(), mine));
    }
  });
}

// Rank 1 joins the collective only once it has a message that rank 0 sends after it has called the
// collective.
TEST(CommOverlap, ACollectiveOnACommStreamDoesNotBlockTheRank) {
  run_ranks(here(), [](Comm& world) {
    auto device = make_cpu_device(1);
    CommStream stream(world, *device);
    std::vector<int32_t> go{1};
    std::vector<double> mine = exact<double>(world.rank(), 10),
                        scratch(size_t(world.scratch_size(10)));
    if (world.rank() == 1) world.irecv(device->compute(), view(go, 1, 1), 0, {Tag::F, 0, 0}).wait();
    world.all_reduce(stream, view(mine, 1, 10), view(scratch, 1, world.scratch_size(10)));
    if (world.rank() == 0) world.isend(device->compute(), view(go, 1, 1), 1, {Tag::F, 0, 0}).wait();
    auto reduced = device->make_event();
    stream->record(*reduced);
    device->compute().wait(*reduced);
    std::vector<std::vector<double>> all;
    for (int r = 0; r < world.size(); r++) all.push_back(exact<double>(r, 10));
    EXPECT_EQ(mine, sum_of(all));
  });
}

// A receive that comes late holds up nobody but its own message: the work between is done before
// the sender has computed it.
TEST(CommOverlap, OnAGpuAMessageWaitsForItsSenderNotTheStreamThatPostedIt) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU on this machine, or a build without CUDA";
  std::atomic<bool> idle = false;  // rank 1's compute stream, which has posted its receive
  run_ranks({.ranks = 2, .timeout = 10}, [&](Comm& world) {
    const auto device = make_cuda_device(0);
    const Buf v = device->buffer(1, 1, Dtype::i32, Use::scratch),
              on_host = device->host_buffer(1, 1, Dtype::i32);
    int32_t& value = *on_host->row<int32_t>(0);
    value = world.rank();
    if (world.rank() == 0) {
      device->compute().host([&] {
        while (!idle) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        value = 42;
      });
      device->compute().copy(v->data, on_host->data, 4);
      world.isend(device->compute(), v, 1, {Tag::F, 0, 0}).wait();
      device->compute().synchronize();
    } else {
      const Request received = world.irecv(device->compute(), v, 0, {Tag::F, 0, 0});
      device->compute().synchronize();
      idle = true;
      world.wait(device->compute(), received);
      device->compute().copy(on_host->data, v->data, 4);
      device->compute().synchronize();
      EXPECT_EQ(value, 42);
      received.wait();
    }
  });
}

TEST(CommHost, Messages) {
  run_ranks(here(), [](Comm& world) {
    const int next = (world.rank() + 1) % world.size(),
              previous = (world.rank() + world.size() - 1) % world.size();
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
    const std::vector<std::string> all =
        world.gather(std::string(size_t(world.rank() * 1000), char('a' + world.rank())));
    for (int r = 0; r < world.size(); r++)
      EXPECT_EQ(all[size_t(r)], std::string(size_t(r * 1000), char('a' + r)));
    const std::vector<double> values = world.gather_values(1.5 * world.rank());
    for (int r = 0; r < world.size(); r++) EXPECT_EQ(values[size_t(r)], 1.5 * r);
    world.require_same("plan", "0F0");
    EXPECT_THROW(world.require_same("plan", world.rank() == 2 ? "x" : "y"), UsageError);
    world.barrier();
  });
}

}  // namespace
}  // namespace duet
