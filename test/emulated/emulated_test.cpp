// The emulated GPU itself: that it finds what it is there to find.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "model/machine/device.h"
#include "test/emulated/cublas_v2.h"
#include "test/emulated/nccl.h"
#include "test/emulated/ptx.h"
#include "test/emulated/testing.h"

namespace duet {
namespace {

using emulated::Order;

template <class T> struct OnGpu {
  T* p = nullptr;
  explicit OnGpu(size_t n) { EXPECT_EQ(cudaMalloc(&p, n * sizeof(T)), cudaSuccess); }
  ~OnGpu() { cudaFree(p); }
};
struct OwnStream {
  cudaStream_t s = nullptr;
  OwnStream() { cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking); }
  ~OwnStream() {
    cudaStreamSynchronize(s);
    cudaStreamDestroy(s);
  }
  operator cudaStream_t() const { return s; }
};

template <class... P, class... A>
cudaError_t launch(cudaStream_t s, unsigned blocks, unsigned threads, void (*k)(P...), A... args) {
  const cudaLaunchConfig_t config{.gridDim = dim3(blocks), .blockDim = dim3(threads), .stream = s};
  return cudaLaunchKernelEx(&config, k, args...);
}

void expect_complaint(const std::string& part) {
  const auto all = emulated::complaints();
  ASSERT_EQ(all.size(), 1u) << testing::PrintToString(all);
  EXPECT_NE(all[0].find(part), std::string::npos) << all[0];
}

// --- order ---------------------------------------------------------------------------------------

__global__ void write(int* p, int value) { *p = value; }
__global__ void add(int* to, const int* from) { *to += *from; }

// One stream makes 1 of 0, another adds it to what it has: 1, if it waits.
int made_and_added(bool waits, bool records, const emulated::Options& options) {
  const Behaviour behaviour(options);
  OnGpu<int> made(1), sum(1);
  OwnStream a, b;
  cudaEvent_t event;
  cudaEventCreate(&event);
  cudaMemsetAsync(made.p, 0, 4, a);
  cudaMemsetAsync(sum.p, 0, 4, b);
  if (!records) cudaEventRecord(event, a);
  launch(a, 1, 1, write, made.p, 1);
  if (records) cudaEventRecord(event, a);
  if (waits) cudaStreamWaitEvent(b, event);
  launch(b, 1, 1, add, sum.p, static_cast<const int*>(made.p));
  int* host;
  cudaMallocHost(&host, 4);
  cudaMemcpyAsync(host, sum.p, 4, cudaMemcpyDefault, b);
  cudaStreamSynchronize(b);
  const int result = *host;
  cudaFreeHost(host);
  cudaEventDestroy(event);
  return result;
}

TEST(EmulatedOrder, AMissingWaitIsSeenInSomeSeedAndRepeatably) {
  const auto all = [](bool waits, bool records) {
    std::vector<int> results;
    for (uint64_t seed = 0; seed < 20; seed++)
      results.push_back(made_and_added(waits, records, {.seed = seed}));
    return results;
  };
  EXPECT_EQ(all(true, true), std::vector<int>(20, 1));
  for (const auto& [waits, records] : {std::pair(false, true), {true, false}}) {
    const std::vector<int> wrong = all(waits, records);
    EXPECT_EQ(all(waits, records), wrong) << "the same seeds";
    EXPECT_GT(std::count_if(wrong.begin(), wrong.end(), [](int x) { return x != 1; }), 3);
    EXPECT_NE(made_and_added(waits, records, {.order = Order::lazy}), 1);
    EXPECT_EQ(made_and_added(waits, records, {.order = Order::eager}), 1) << "a lucky GPU";
  }
}

TEST(EmulatedOrder, NothingRunsBeforeSomebodyWaits) {
  const Behaviour lazy({.order = Order::lazy});
  OwnStream s;
  int* host;
  cudaMallocHost(&host, 4);
  *host = 5;
  launch(s, 1, 1, write, host, 6);
  EXPECT_EQ(*host, 5);
  cudaStreamSynchronize(s);
  EXPECT_EQ(*host, 6);
  cudaFreeHost(host);
}

TEST(EmulatedOrder, ADestroyedStreamIsNoLongerOne) {
  cudaStream_t s;
  cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
  cudaStreamDestroy(s);
  EXPECT_EQ(cudaStreamSynchronize(s), cudaErrorInvalidResourceHandle);
  expect_complaint("cudaStreamSynchronize: invalid resource handle");
}

// --- kernels -------------------------------------------------------------------------------------

// Sums what the threads of a block bring, in two steps and with several warps.
__global__ void sum_of_block(const float* x, float* y) {
  __shared__ float of_warp[32];
  float sum = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < blockDim.x / 32; w++) sum += of_warp[w];
    y[blockIdx.x] = sum;
  }
}

TEST(EmulatedKernels, SeveralWarpsShareMemory) {
  OwnStream s;
  float* memory;
  cudaMallocHost(&memory, (3 * 256 + 3) * sizeof(float));
  std::iota(memory, memory + 768, 0.f);
  launch(s, 3, 256, sum_of_block, static_cast<const float*>(memory), memory + 768);
  cudaStreamSynchronize(s);
  for (int b = 0; b < 3; b++) EXPECT_EQ(memory[768 + b], 256 * (256 * b + 127.5f));
  cudaFreeHost(memory);
}

__global__ void leaves_early() {
  if (threadIdx.x != 5) __syncwarp();
}
__global__ void shuffles_apart() {
  if (threadIdx.x < 16) __shfl_xor_sync(~0u, 1.f, 1);
  if (threadIdx.x >= 16) __shfl_xor_sync(~0u, 1.0, 1);
}
__global__ void a_warp_is_missing() {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void a_lane_loads_no_operand() {
  alignas(16) __shared__ uint16_t numbers[64];
  uint32_t pairs[4];
  if (threadIdx.x != 5) emulated::ldmatrix_x4(pairs, numbers, false);
}
__global__ void an_operand_is_not_aligned() {
  alignas(16) __shared__ uint16_t numbers[68];
  uint32_t pairs[4];
  emulated::ldmatrix_x4(pairs, numbers + 4, false);
}

TEST(EmulatedKernels, WhatDivergesIsAnErrorForGood) {
  const std::tuple<void (*)(), unsigned, const char*> kernels[] = {
      {leaves_early, 32, "lane 0 is at __syncwarp, lane 5 at the end"},
      {a_lane_loads_no_operand, 32, "lane 0 is at a shuffle, lane 5 at the end"},
      {an_operand_is_not_aligned, 32, "a row of eight is not aligned"},
      {shuffles_apart, 32, "lane 0 is at a shuffle, lane 16 at a shuffle of another size"},
      {a_warp_is_missing, 64, "warp 0 is at __syncthreads, warp 1 at the end"}};
  for (const auto& [kernel, threads, says] : kernels) {
    const Behaviour other_gpus({.gpus = 5});
    OwnStream s;
    launch(s, 1, threads, kernel);
    EXPECT_EQ(cudaStreamSynchronize(s), cudaErrorLaunchFailure);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
    expect_complaint(says);
  }
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST(EmulatedKernels, ALaunchThatNoGpuTakesIsRefused) {
  OwnStream s;
  EXPECT_EQ(launch(s, 0, 32, leaves_early), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(emulated::complaints().size(), 1u);
  cudaSetDevice(1);
  EXPECT_EQ(launch(s, 1, 32, leaves_early), cudaErrorInvalidResourceHandle) << "another's stream";
  cudaSetDevice(0);
  EXPECT_EQ(emulated::complaints().size(), 1u);
}

// --- memory --------------------------------------------------------------------------------------

TEST(EmulatedMemoryDeathTest, TheHostCannotTouchAGpus) {
  const Behaviour lazy({.order = Order::lazy});
  OnGpu<int> x(1);
  OwnStream s;
  cudaMemsetAsync(x.p, 0, 4, s);
  cudaStreamSynchronize(s);
  EXPECT_DEATH(*x.p = 1, "emulated GPU: address 0x[0-9a-f]+ touched");
}

// The product's own order of things: what a device still has queued when it goes must be done
// before its memory goes.
TEST(EmulatedMemory, GoesWithADeviceOnlyOnceItsWorkIsDone) {
  const Behaviour lazy({.order = Order::lazy});
  {
    auto device = make_cuda_device(0);
    const Buf x = device->buffer(1, 1000, Dtype::f32, Use::scratch);
    device->compute().zero(x->data, size_t(x->bytes()));
  }
  const Behaviour eager({.order = Order::eager});
  OwnStream s;
  OnGpu<int> y(1);
  cudaMemsetAsync(y.p, 0, 4, s);
}

TEST(EmulatedMemoryDeathTest, NorAnybodyWhatWasFreedOrLiesBehindTheEnd) {
  for (int past : {-1, 64}) {
    EXPECT_DEATH(
        {
          OwnStream s;
          OnGpu<int> x(64);
          if (past < 0) cudaFree(x.p);
          launch(s, 1, 1, write, x.p + (past < 0 ? 0 : past), 1);
          cudaStreamSynchronize(s);
        },
        "touched: .*freed");
  }
}

TEST(EmulatedMemory, IsPoisonedCountedAndRunsOut) {
  const Behaviour small({.memory = 1 << 20});
  size_t free = 0, total = 0;
  OnGpu<float> x(1000);
  float found = 0;
  cudaMemcpyAsync(&found, x.p + 999, 4, cudaMemcpyDefault, nullptr);
  EXPECT_TRUE(std::isnan(found));
  void* much;
  EXPECT_EQ(cudaMalloc(&much, 1 << 20), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  cudaMemGetInfo(&free, &total);
  EXPECT_EQ(total - free, 4096u);
  EXPECT_EQ(cudaMemsetAsync(x.p, 0, 5000), cudaErrorInvalidValue) << "more than there is";
  EXPECT_EQ(cudaFreeHost(x.p), cudaErrorInvalidValue) << "not the host's";
  EXPECT_EQ(emulated::complaints().size(), 2u);
}

TEST(EmulatedMemory, PageableCopiesMayBeReadLateAndAreWrittenAtOnce) {
  std::set<int> seen;
  for (uint64_t seed = 0; seed < 20; seed++) {
    const Behaviour behaviour({.seed = seed, .order = Order::lazy});
    OnGpu<int> x(1);
    OwnStream s;
    int source = 1, back = 0;
    cudaMemcpyAsync(x.p, &source, 4, cudaMemcpyDefault, s);
    source = 2;
    cudaMemcpyAsync(&back, x.p, 4, cudaMemcpyDefault, s);
    seen.insert(back);
  }
  EXPECT_EQ(seen, (std::set<int>{1, 2}));
}

// --- cuBLAS --------------------------------------------------------------------------------------

struct Blas {
  OnGpu<char> workspace{1024};
  OnGpu<float> x{10000};
  OwnStream stream;
  cublasHandle_t handle;
  Blas() {
    cublasCreate(&handle);
    cublasSetStream(handle, stream);
    cublasSetWorkspace(handle, workspace.p, 1024);
    cublasSetAtomicsMode(handle, CUBLAS_ATOMICS_NOT_ALLOWED);
    cublasSetMathMode(handle, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
    std::vector<float> values(10000);
    for (size_t i = 0; i < values.size(); i++) values[i] = std::sin(float(i));
    cudaMemcpyAsync(x.p, values.data(), 40000, cudaMemcpyDefault, stream);
    cudaStreamSynchronize(stream);
  }
  ~Blas() { cublasDestroy(handle); }
  // C of [n, m] rows = B [n, k] A [k, m], to the end of x
  cublasStatus_t multiply(int m, int n, int k, int lda, int offset = 0) {
    const float one = 1, zero = 0;
    return cublasGemmEx_64(handle, CUBLAS_OP_N, CUBLAS_OP_N, m, n, k, &one, x.p + offset,
        CUDA_R_32F, lda, x.p + 4000, CUDA_R_32F, k, &zero, x.p + 8000, CUDA_R_32F, m,
        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  }
  std::vector<float> result(int n) {
    std::vector<float> values(static_cast<size_t>(n));
    cudaMemcpyAsync(values.data(), x.p + 8000, size_t(n) * 4, cudaMemcpyDefault, stream);
    return values;
  }
};

TEST(EmulatedCublas, AnotherNumberOfRowsMayGiveOtherBits) {
  Blas blas;
  ASSERT_EQ(blas.multiply(16, 8, 60, 16), CUBLAS_STATUS_SUCCESS);
  const auto eight = blas.result(16);
  ASSERT_EQ(blas.multiply(16, 8, 60, 16), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(blas.result(16), eight);
  ASSERT_EQ(blas.multiply(16, 9, 60, 16), CUBLAS_STATUS_SUCCESS);
  const auto nine = blas.result(16);
  EXPECT_NE(nine, eight);
  for (size_t i = 0; i < 16; i++) EXPECT_NEAR(nine[i], eight[i], 1e-4);
}

TEST(EmulatedCublas, RefusesWhatDoesNotFitAndCountsWhatIsUnaligned) {
  Blas blas;
  const auto before = emulated::counts();
  EXPECT_EQ(blas.multiply(16, 8, 60, 15), CUBLAS_STATUS_INVALID_VALUE) << "leading dimension";
  expect_complaint("a product of 16 x 8 x 60: A: leading dimension");
  EXPECT_EQ(blas.multiply(16, 8, 700, 16), CUBLAS_STATUS_INVALID_VALUE) << "beyond the end";
  expect_complaint("A: leading dimension too small, or not within its GPU's memory");
  blas.multiply(16, 8, 60, 16);
  blas.multiply(16, 8, 60, 17);
  blas.multiply(16, 8, 60, 16, 1);
  EXPECT_EQ((emulated::counts() - before).gemms, 3);
  EXPECT_EQ((emulated::counts() - before).unaligned_gemms, 2);
  cublasSetStream(blas.handle, blas.stream);
  EXPECT_EQ(blas.multiply(16, 8, 60, 16), CUBLAS_STATUS_INVALID_VALUE);
  expect_complaint("no workspace of one's own");
}

// --- NCCL ----------------------------------------------------------------------------------------

// Two ranks in one thread, each on its GPU.
struct Pair {
  std::vector<ncclComm_t> comm;
  explicit Pair(int blocks = 4, int gpus = 2) {
    ncclUniqueId id;
    ncclGetUniqueId(&id);
    for (int r = 0; r < 2; r++) {
      ncclConfig_t config{0, blocks};
      ncclComm_t made = nullptr;
      cudaSetDevice(r % gpus);
      if (ncclCommInitRankConfig(&made, 2, id, r, &config) == ncclInProgress) comm.push_back(made);
    }
    for (size_t r = 0; r < 2 && comm.size() == 2; r++) settle(r);
    cudaSetDevice(0);
  }
  ~Pair() { abort(); }
  void abort() {
    for (ncclComm_t c : std::exchange(comm, {})) ncclCommAbort(c);
  }
  ncclResult_t settle(size_t r) {
    ncclResult_t state;
    do ncclCommGetAsyncError(comm[r], &state);
    while (state == ncclInProgress);
    return state;
  }
};

TEST(EmulatedNccl, SidesOfUnequalSizeAndTwoRanksOnAGpuAreFound) {
  Pair pair;
  OnGpu<int> x(2);
  OwnStream s;
  ncclSend(x.p, 8, ncclInt8, 1, pair.comm[0], s);
  cudaSetDevice(1);
  OnGpu<int> y(2);
  OwnStream t;
  ncclRecv(y.p, 4, ncclInt8, 0, pair.comm[1], t);
  EXPECT_EQ(pair.settle(1), ncclInvalidUsage);
  expect_complaint("a send of 8 bytes met a receive of 4");
  Pair other;
  ncclRecv(x.p, 4, ncclInt8, 0, other.comm[1], t);
  expect_complaint("memory that its GPU does not reach");
  pair.abort();
  EXPECT_EQ(Pair(4, 1).comm.size(), 1u) << "the other was refused";
  expect_complaint("two ranks of a communicator on one GPU");
}

TEST(EmulatedNccl, WhatDoesNotFitOnAGpuAtOnceMustNotBeUnderWayAtOnce) {
  const Behaviour lazy({.gpus = 4, .order = Order::lazy});
  Pair a(100), b(100);
  OnGpu<int> x(1);
  OwnStream s, t;
  ncclSend(x.p, 4, ncclInt8, 1, a.comm[0], s);
  a.settle(0);
  ncclSend(x.p, 4, ncclInt8, 1, b.comm[0], t);
  b.settle(0);
  expect_complaint("200 blocks of operations under way at once");
  a.abort();
  b.abort();
}

}  // namespace
}  // namespace duet
