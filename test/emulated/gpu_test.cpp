// What a device on the emulated GPU asks of CUDA: which GPU and which dtype are a rank's, streams,
// events, a block's memory. Read next: runs_test.cpp.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "comm/transport.h"
#include "model/machine/cuda_peaks.h"
#include "pipeline/train/bench.h"
#include "pipeline/train/run_log.h"
#include "test/emulated/cuda_runtime.h"
#include "test/emulated/testing.h"
#include "test/processes.h"
#include "test/run_testing.h"

namespace duet {
namespace {

TEST(EmulatedGpu, ItsVariablesAreReadInFull) {
  const auto expect_refused = [](const std::string& found, const std::string& words) {
    const Ended e = run_command(found + " " + this_program("None"));
    EXPECT_EQ(e.status, 2) << e.output;
    EXPECT_EQ(e.output, words + "\n");
  };
  expect_refused("DUET_EMULATED_GPUS=2x", "DUET_EMULATED_GPUS: found '2x', allowed: 0 to 64");
  expect_refused("DUET_EMULATED_GPUS=65", "DUET_EMULATED_GPUS: found '65', allowed: 0 to 64");
  expect_refused("DUET_EMULATED_SEED=foo",
      "DUET_EMULATED_SEED: found 'foo', allowed: 0 to 18446744073709551615");
  expect_refused(
      "DUET_EMULATED_ORDER=", "DUET_EMULATED_ORDER: found '', allowed: lazy, eager, random");
  EXPECT_EQ(run_command("DUET_EMULATED_GPUS=2 " + this_program("None")).status, 0);
}

int priority_of(Stream& stream) {
  int priority = 0;
  const auto ask = [](void* cuda_stream, int64_t, const void* p) {
    cudaStreamGetPriority(static_cast<cudaStream_t>(cuda_stream), *static_cast<int* const*>(p));
  };
  cudaGetLastError();  // an earlier test's
  int* out = &priority;
  stream.launch({"ask", nullptr, ask}, 1, &out, sizeof out, 0);
  return priority;
}

TEST(GpuDevice, MessagesGoBeforeComputation) {
  const auto gpu = make_cuda_device(0);
  EXPECT_LT(priority_of(*gpu->make_stream()), priority_of(gpu->compute()));
}

// Adds what it finds in its block's memory to *sum, and leaves a 1 there.
__global__ void finds_and_leaves(int* sum) {
  int* memory = reinterpret_cast<int*>(dynamic_shared());
  *sum += *memory;
  *memory = 1;
}

TEST(EmulatedKernels, ABlocksMemoryIsAskedForAndFreshInEachBlock) {
  int* sum;
  cudaMallocHost(&sum, sizeof(int));
  *sum = 0;
  const auto launch = [=](int kib) {
    const cudaLaunchConfig_t config{
        .gridDim = dim3(2), .blockDim = dim3(1), .dynamicSmemBytes = size_t(kib) << 10};
    return cudaLaunchKernelEx(&config, finds_and_leaves, sum);
  };
  const auto allow = [](int kib) {
    return cudaFuncSetAttribute(
        finds_and_leaves, cudaFuncAttributeMaxDynamicSharedMemorySize, kib << 10);
  };
  EXPECT_EQ(launch(48), cudaSuccess);
  EXPECT_EQ(launch(50), cudaErrorInvalidValue);
  EXPECT_EQ(allow(100), cudaErrorInvalidValue);
  EXPECT_EQ(allow(50), cudaSuccess);
  EXPECT_EQ(launch(50), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(*sum, -4) << "two launches of two blocks, each of which finds -1";
  EXPECT_EQ(emulated::complaints().size(), 2u);
  cudaGetLastError();
  cudaFreeHost(sum);
}

// A message that borrows one does not queue behind what is still to be done in it.
TEST(GpuDevice, StreamsOnLoanAreUsedAgainWhenTheirWorkIsDone) {
  for (const auto order : {emulated::Order::eager, emulated::Order::lazy}) {
    const Behaviour behaviour({.order = order});
    const auto gpu = make_cuda_device(0);
    std::unique_ptr<Stream> stream = gpu->borrow_stream();
    const Stream* first = stream.get();
    const Buf word = gpu->buffer(1, 1, Dtype::i32, Use::scratch);
    stream->zero(word->data, 4);
    gpu->give_back(std::move(stream));
    EXPECT_EQ(gpu->borrow_stream().get() == first, order == emulated::Order::eager);
  }
}

// Complaints would fail it: CUDA would give the thread that asks a context on GPU 0.
TEST(GpuDevice, AnyThreadMayAskAboutAnEvent) {
  const Behaviour lazy({.gpus = 2, .order = emulated::Order::lazy});
  std::thread([] {
    const auto gpu = make_cuda_device(1);
    const auto event = gpu->make_event();
    gpu->compute().record(*event);
    std::thread([&] {
      while (!event->done()) continue;
    }).join();
  }).join();
}

// What the pool gives back goes in the order of compute(), where work on it may be queued.
struct Pool : Device {
  static void drain(Device& device) { (device.*&Pool::drain_pool)(false); }
};

TEST(GpuDevice, MemoryGoesAfterTheWorkThatIsQueuedOnIt) {
  const Behaviour lazy({.order = emulated::Order::lazy});
  const auto gpu = make_cuda_device(0);
  {
    const Buf x = gpu->buffer(1, 1000, Dtype::f32, Use::scratch);
    gpu->compute().zero(x->data, size_t(x->bytes()));
  }
  Pool::drain(*gpu);
  EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  gpu->compute().synchronize();
}

TEST(GpuDevice, TimesOnlyWhatIsAskedTo) {
  const auto gpu = make_cuda_device(0);
  const int64_t before = emulated::counts().timed_events;
  gpu->compute().record(*gpu->make_event());
  EXPECT_EQ(emulated::counts().timed_events, before);
  gpu->compute().record(*gpu->make_event(true));
  EXPECT_GT(emulated::counts().timed_events, before);
}

// As datasheets have them, in TFLOP/s.
TEST(GpuPeaks, FollowFromWhatAGpuSaysOfItself) {
  struct {
    cudaDeviceProp gpu;
    int megahertz;
    double f32, bf16;  // 0: not told
  } const all[] = {
      {{"Tesla V100-SXM2-16GB", 0, 80, 7, 0}, 1530, 15.7, 0},
      {{"NVIDIA A100-SXM4-80GB", 0, 108, 8, 0}, 1410, 19.5, 312},
      {{"NVIDIA A10", 0, 72, 8, 6}, 1695, 31.2, 125},
      {{"NVIDIA GeForce RTX 3090", 0, 82, 8, 6}, 1695, 35.6, 71},
      {{"NVIDIA L4", 0, 58, 8, 9}, 2040, 30.3, 121},
      {{"NVIDIA L40S", 0, 142, 8, 9}, 2520, 91.6, 362},
      {{"NVIDIA GeForce RTX 4090", 0, 128, 8, 9}, 2520, 82.6, 165},
      {{"NVIDIA H100 80GB HBM3", 0, 132, 9, 0}, 1980, 66.9, 989},
      {{"NVIDIA H100 PCIe", 0, 114, 9, 0}, 1755, 51.2, 756},
      {{"NVIDIA B200", 0, 148, 10, 0}, 1965, 75, 2250},
      {{"NVIDIA GeForce RTX 5090", 0, 170, 12, 0}, 2407, 104.8, 210},
      // words of another name
      {{"NVIDIA RTX A1000", 0, 18, 8, 6}, 1462, 6.7, 0},
      {{"NVIDIA GeForce RTX 4090 Laptop GPU", 0, 76, 8, 9}, 1590, 0, 0},
      {{"NVIDIA A100-SXM4-40GB MIG 1g.5gb", 0, 14, 8, 0}, 1410, 0, 0},
  };
  for (const auto& [gpu, megahertz, f32, bf16] : all) {
    EXPECT_EQ(cuda_peak_flops(gpu, megahertz * 1000, Dtype::bf16), bf16 * 1e12) << gpu.name;
    if (f32 > 0) {
      const double found = cuda_peak_flops(gpu, megahertz * 1000, Dtype::f32) * 1e-12;
      EXPECT_NEAR(found, f32, 0.01 * f32) << gpu.name;
    }
  }
}

// scripts/gpu_day_table.py, on losses of two steps; routing is the same, or another in the second.
class GpuDay : public RunTest {
 protected:
  void SetUp() override {
    RunTest::SetUp();
    if (run_command("python3 --version").status != 0) GTEST_SKIP() << "no python3 on this machine";
  }
  std::string judged(double cuda_loss, int cuda_tokens) {
    const auto lines = [](double second, int tokens) {
      const std::string moe = R"(, "moe": [{"tokens_per_expert": [3, )";
      return cat(R"({"loss": 5.0)", moe, "5]}]}\n", R"({"loss": )", second, moe, tokens, "]}]}\n");
    };
    for (const auto& [device, text] :
        {std::pair("cpu", lines(4.5, 5)), {"cuda", lines(cuda_loss, cuda_tokens)}}) {
      std::filesystem::create_directories(cat(folder_, "/loss-", device));
      std::ofstream(cat(folder_, "/loss-", device, "/metrics.jsonl")) << text;
    }
    std::ofstream(folder_ + "/tests.log") << "[  PASSED  ] 3 tests.\n";
    std::ofstream(folder_ + "/compare.log") << R"({"rows": [{"identical": true}]
})"
                                            << "\n";
    const Ended e = run_command("python3 scripts/gpu_day_table.py " + folder_);
    const size_t row = e.output.find("| loss, fp32 | ");
    EXPECT_EQ(e.status, e.output.find("not ok") != e.output.npos) << e.output;
    return row == e.output.npos ? e.output : e.output.substr(row + 15, 6);
  }
};

TEST_F(GpuDay, JudgesTheLoss) {
  EXPECT_EQ(judged(4.5004, 5), "ok | a");
  EXPECT_EQ(judged(4.5006, 5), "not ok");
  EXPECT_EQ(judged(4.504, 6), "ok | a");
  EXPECT_EQ(judged(4.506, 6), "not ok");
}

TEST_F(GpuDay, WithoutAGpuItEndsAtOnce) {
  if (run_command("nvidia-smi -L").status == 0) GTEST_SKIP() << "there is a GPU";
  const Ended e = run_command("scripts/gpu_day.sh " + folder_ + "/day");
  EXPECT_EQ(e.status, 2);
  EXPECT_EQ(e.output.find("gpu_day.sh: expected a GPU, found none"), 0u) << e.output;
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/day"));
}

class GpuJob : public RunTest {
 protected:
  TrainOptions options() const {
    TrainOptions o = RunTest::options("", 1);
    o.device = DeviceKind::cuda;
    return o;
  }
};

// A rank's transport that carries nothing.
struct Silent : Transport {
  using Transport::Transport;
  std::unique_ptr<Message> make(const Side&, Stream*) override { return nullptr; }
  void post(Message&) override {}
  void cancel(Message&) override {}
};

TEST_F(GpuJob, ARanksGpuIsOfItsNumberOnTheMachine) {
  const Behaviour four({.gpus = 4});
  const Job job = make_job(options());
  Silent second_of_its_machine(std::make_shared<RankState>(5, 8, job.run, 1));
  const Comm world(second_of_its_machine);
  std::thread([&] { EXPECT_EQ(make_device(job, world)->name(), "cuda:1 Emulated H100"); }).join();
}

TEST_F(GpuJob, ComputesInBf16UnlessToldOtherwise) {
  TrainOptions o = options();
  o.resolve();
  EXPECT_EQ(o.dtype, Dtype::bf16);
  o.dtype = Dtype::f32;
  o.resolve();
  EXPECT_EQ(o.dtype, Dtype::f32);
  EXPECT_NE(run(options()).find("cuda:0 Emulated H100, bf16, peak 989 TFLOP/s"), std::string::npos);
}

// The products that were made are more than the model's own: attention's scores are made again.
TEST_F(GpuJob, BenchSaysWhatPartOfThePeakTheModelMakesUseOf) {
  TrainOptions b = kBenchOptions;
  b.preset = "tiny";
  b.steps = 1;
  b.micro_batch_size = 1;
  std::ostringstream out;
  bench_command(b, out);
  const Json line = Json::parse(out.str(), "bench");
  EXPECT_EQ(line.at("device").string(), "cuda:0 Emulated H100");
  EXPECT_EQ(line.at("dtype").string(), "bf16");
  const double made = line.at("gflops").number() * 1e9 / 989e12, mfu = line.at("mfu").number();
  EXPECT_LT(mfu, made);
  EXPECT_GT(mfu, 0.7 * made);
  std::set<std::string> kinds;
  for (const Json& kernel : line.at("kernels").items()) {
    kinds.insert(kernel.at("kind").string());
    EXPECT_GT(kernel.at("calls").number(), 0);
    EXPECT_GT(kernel.at("of_peak").number(), 0);
    EXPECT_LT(kernel.at("of_peak").number(), 1);
  }
  for (const char* kind : {"attention", "experts", "products", "rows", "rows AdamW", "experts TN"})
    EXPECT_TRUE(kinds.count(kind)) << kind;
}

}  // namespace
}  // namespace duet
