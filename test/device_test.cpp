// The CPU device: memory comes back and is counted; streams keep their order, meet at events, and
// give up their failures.
#include "model/machine/device.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>
#include <vector>

namespace duet {
namespace {

TEST(Memory, IsAlignedCountedAndReused) {
  auto device = make_cpu_device(1);
  void* first;
  int64_t capacity;
  {
    Buf a = device->buffer(100, 30, Dtype::f32, Use::activations);
    Buf b = device->buffer(0, 30, Dtype::f32, Use::weights);
    EXPECT_EQ(a->rows, 100);
    EXPECT_EQ(a->cols, 30);
    EXPECT_EQ(a->ld, 30);
    EXPECT_EQ(uintptr_t(a->data) % 256, 0u);
    EXPECT_TRUE(b);  // an expert without tokens has memory all the same
    first = a->data;
    capacity = device->memory(Use::activations).now;
    EXPECT_GE(capacity, 12000);
    EXPECT_LE(capacity, 12000 * 9 / 8);
    EXPECT_GT(device->memory(Use::weights).now, 0);
    EXPECT_EQ(device->memory(Use::scratch).now, 0);
  }
  EXPECT_EQ(device->memory(Use::activations).now, 0);
  EXPECT_EQ(device->memory(Use::activations).peak, capacity);
  const int64_t taken = device->pool_bytes();
  Buf c = device->buffer(30, 100, Dtype::f32, Use::gradients);
  EXPECT_EQ(c->data, first);
  EXPECT_EQ(device->pool_bytes(), taken);
  Buf d = device->buffer(30, 100, Dtype::f32, Use::gradients);
  EXPECT_NE(d->data, first);
  EXPECT_GT(device->pool_bytes(), taken);
}

TEST(Memory, SizesThatVaryALittleDoNotGrowThePool) {
  auto device = make_cpu_device(1);
  for (int rows = 1024; rows > 512; rows -= 8)
    device->buffer(rows, 256, Dtype::f32, Use::activations);
  EXPECT_LE(device->pool_bytes(), 1024 * 256 * 4 * 9 / 8);
  // But a small buffer does not take a large one's memory.
  Buf small = device->buffer(1, 1, Dtype::f32, Use::activations);
  Buf large = device->buffer(1024, 256, Dtype::f32, Use::activations);
  EXPECT_LE(device->pool_bytes(), 1024 * 256 * 4 * 9 / 8 + 256);
}

// Else a step would miss what smaller tensors took that are made before.
TEST(Memory, SmallBuffersLeaveOtherSizesAlone) {
  auto device = make_cpu_device(1);
  { Buf larger = device->buffer(1, 256, Dtype::f32, Use::activations); }
  const Buf small = device->buffer(1, 128, Dtype::f32, Use::activations);
  const int64_t taken = device->pool_bytes();
  const Buf larger = device->buffer(1, 256, Dtype::f32, Use::activations);
  EXPECT_EQ(device->pool_bytes(), taken);
}

TEST(Memory, HostBuffersAreApart) {
  auto device = make_cpu_device(1);
  { Buf h = device->host_buffer(10, 10, Dtype::i32); }
  EXPECT_EQ(device->pool_bytes(), 0);
  Buf moved;
  {
    Buf h = device->host_buffer(10, 10, Dtype::i32);
    moved = std::move(h);
    EXPECT_FALSE(h);  // NOLINT: what a moved-from Buf is, is part of the test
  }
  EXPECT_TRUE(moved);
  moved = Buf();
  EXPECT_FALSE(moved);
}

struct Scale {
  const float* x;
  float* y;
  int64_t cols;
  float factor;
};
RowKernel scale_kernel() {
  return {"scale",
      [](int64_t begin, int64_t end, const void* args) {
        const Scale& s = *static_cast<const Scale*>(args);
        for (int64_t i = begin * s.cols; i < end * s.cols; i++) s.y[i] = s.factor * s.x[i];
      },
      nullptr};
}

TEST(Streams, LaunchDoesEveryRowOnce) {
  auto device = make_cpu_device(3);
  auto other = device->make_stream();
  for (int64_t rows : {1, 7, 5000})
    for (int64_t cols : {1, 100}) {
      std::vector<float> x(rows * cols), y(rows * cols), expected(rows * cols);
      std::iota(x.begin(), x.end(), 1.f);
      for (size_t i = 0; i < x.size(); i++) expected[i] = 3 * x[i];
      for (Stream* stream : {&device->compute(), other.get()}) {
        std::fill(y.begin(), y.end(), 0.f);
        Scale args = {x.data(), y.data(), cols, 3};
        stream->launch(scale_kernel(), rows, &args, sizeof args, cols);
        args = {};  // a launch copies its arguments
        stream->synchronize();
        EXPECT_EQ(y, expected);
      }
    }
}

TEST(Streams, WorkInOrder) {
  auto device = make_cpu_device(2);
  auto stream = device->make_stream();
  std::vector<int> order;
  for (int i = 0; i < 100; i++) stream->host([&order, i] { order.push_back(i); });
  stream->synchronize();
  std::vector<int> expected(100);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(order, expected);
}

TEST(Streams, CopyAndZeroOnBothKindsAndGemm) {
  auto device = make_cpu_device(2);
  auto other = device->make_stream();
  for (Stream* stream : {&device->compute(), other.get()}) {
    Buf a = device->buffer(2, 2, Dtype::f64, Use::scratch),
        b = device->buffer(2, 2, Dtype::f64, Use::scratch);
    Buf c = device->buffer(2, 2, Dtype::f64, Use::scratch);
    const double values[] = {1, 2, 3, 4};
    device->flops = 0;
    stream->copy(a->data, values, sizeof values);
    stream->copy(b->data, a->data, sizeof values);
    stream->synchronize();
    device->gemm({.a = a, .b = b, .c = c});
    const std::vector<int64_t> offsets = {0, 1, 2};
    // both groups with the same B
    device->gemm({.a = a, .b = b, .c = c, .accumulate = true, .groups = offsets});
    stream->zero(a->data, sizeof values);
    stream->synchronize();
    const double* p = c->row<double>(0);
    EXPECT_EQ(std::vector<double>(p, p + 4), (std::vector<double>{14, 20, 30, 44}));
    EXPECT_EQ(a->row<double>(0)[3], 0);
    EXPECT_EQ(device->flops, 2 * 2 * 2 * 2 * 2);
  }
}

TEST(Events, MakeOneStreamWaitForAnother) {
  auto device = make_cpu_device(1);
  auto a = device->make_stream(), b = device->make_stream();
  auto event = device->make_event();
  EXPECT_TRUE(event->done());  // never recorded
  for (int round = 0; round < 50; round++) {
    std::atomic<bool> go = false;
    int x = 0, y = 0;
    a->host([&] {
      while (!go) std::this_thread::yield();
      x = 1;
    });
    a->record(*event);
    b->wait(*event);
    b->host([&] { y = x + 1; });
    EXPECT_FALSE(event->done());
    go = true;
    b->synchronize();
    EXPECT_TRUE(event->done());
    EXPECT_EQ(y, 2);
  }
}

TEST(Events, AWaitMeansTheMarkOfItsTime) {
  auto device = make_cpu_device(1);
  auto a = device->make_stream(), b = device->make_stream();
  auto event = device->make_event();
  std::atomic<bool> go = false;
  a->record(*event);
  b->wait(*event);
  a->host([&] {
    while (!go) std::this_thread::yield();
  });
  a->record(*event);
  b->synchronize();  // does not wait for the second recording
  EXPECT_FALSE(event->done());
  go = true;
  event->synchronize();
  EXPECT_TRUE(event->done());
}

TEST(Events, TellTheTime) {
  auto device = make_cpu_device(1);
  auto first = device->make_event(true), second = device->make_event(true);
  device->compute().record(*first);
  auto stream = device->make_stream();
  stream->host([] { std::this_thread::sleep_for(std::chrono::milliseconds(3)); });
  stream->record(*second);
  device->compute().wait(*second);
  EXPECT_GE(second->seconds() - first->seconds(), 0.003);
}

TEST(Failures, SurfaceAtSynchronizeAndSkipTheRest) {
  auto device = make_cpu_device(1);
  auto stream = device->make_stream();
  bool reached = false;
  stream->host([] { throw Error("the link is down"); });
  stream->host([&] { reached = true; });
  EXPECT_THROW(stream->synchronize(), Error);
  EXPECT_FALSE(reached);
  stream->host([&] { reached = true; });
  stream->synchronize();  // reported once
  EXPECT_TRUE(reached);
}

TEST(Failures, TravelAlongEvents) {
  auto device = make_cpu_device(1);
  auto a = device->make_stream(), b = device->make_stream();
  auto event = device->make_event();
  a->host([] { throw Error("the link is down"); });
  a->record(*event);
  b->wait(*event);
  EXPECT_THROW(b->synchronize(), Error);
  EXPECT_THROW(device->compute().wait(*event), Error);
  EXPECT_THROW(event->synchronize(), Error);
}

TEST(Failures, AKernelThatIsNotBuiltIsNamed) {
  auto device = make_cpu_device(1);
  int args = 0;
  try {
    device->compute().launch({"rms_norm", nullptr, nullptr}, 4, &args, sizeof args, 1);
    FAIL() << "launched nothing";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("rms_norm"), std::string::npos);
  }
}

TEST(CpuDevice, SaysWhatItIs) {
  EXPECT_EQ(make_cpu_device(2)->name().rfind("cpu, 2 threads, ", 0), 0u);
  EXPECT_EQ(make_cpu_device(1)->name().rfind("cpu, 1 thread, ", 0), 0u);
  EXPECT_THROW(make_cpu_device(0), Error);
}

}  // namespace
}  // namespace duet
