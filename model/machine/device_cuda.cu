// The CUDA device: streams are CUDA streams, events CUDA events, host buffers pinned memory. Work
// is enqueued and goes on by itself; whatever fails is found by CUDA_CHECK at a later call.
//
// Waits for a whole GPU, as cudaMalloc, cudaFree and pinned memory may ask for, could be for ever:
// among its streams are those in which NCCL waits for other ranks, and these for this one. So
// memory comes from CUDA's pool and goes in the order of compute(), host buffers from a reserve
// that is pinned at the start, no kernel is loaded late, and cuBLAS is made with the device
// (find_devices, below). Streams are made when more messages are under way than ever before.
//
// Not here: row kernels (compile_cuda.cuh) and products (gemm_cuda.cu). Nothing of CUDA is
// touched before cuda_device_count, so that the binary starts where there is no driver. The
// contract is in device.h.
// Read next: device_nocuda.cpp.
#include <cuda_bf16.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <utility>

#include "model/base/clock.h"
#include "model/machine/cuda_check.h"
#include "model/machine/cuda_peaks.h"
#include "model/machine/gemm_cuda.h"
#include "model/machine/limits.h"
#include "model/machine/recorder.h"

namespace duet {
namespace {

static_assert(sizeof(bf16) == sizeof(__nv_bfloat16) && alignof(bf16) == alignof(__nv_bfloat16),
    "cuBLAS reads duet's bf16");

constexpr double kEraSeconds = 4;
constexpr int64_t kPinnedBytes = 64 << 20;  // the reserve; what does not fit is pinned apart

// --- events --------------------------------------------------------------------------------------

// A thread that has chosen no GPU and asks about an event would be given half a GB on the first
// one: it takes the event's. All else is asked for by ranks' threads, which have chosen.
thread_local bool has_gpu = false;
void use_gpu(int gpu) {
  if (!has_gpu) CUDA_CHECK(cudaSetDevice(gpu));
  has_gpu = true;
}

// Its time is counted from its era's. CUDA gives times between two events, as a float that loses
// the microsecond after some seconds; so the device begins a new era every few seconds, an event
// that is itself counted from the one before.
struct CudaEvent final : Event {
  CudaEvent(int gpu, bool timed) : gpu(gpu), timed(timed) {
    CUDA_CHECK(cudaEventCreateWithFlags(&raw, timed ? 0 : cudaEventDisableTiming));
  }
  CudaEvent(const CudaEvent&) = delete;
  ~CudaEvent() override { cudaEventDestroy(raw); }
  const int gpu;
  const bool timed;
  cudaEvent_t raw;
  std::shared_ptr<const CudaEvent> era;  // null: never recorded, not timed, or an era itself
  double began = 0;                      // an era, on the host's steady clock
  bool done() const override {
    use_gpu(gpu);
    const cudaError_t status = cudaEventQuery(raw);
    if (status == cudaErrorNotReady) return false;
    CUDA_CHECK(status);
    return true;
  }
  void synchronize() override { CUDA_CHECK(cudaEventSynchronize(raw)); }
  double seconds() const override {
    if (!era) return began;
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, era->raw, raw));
    return era->began + double(milliseconds) * 1e-3;
  }
};

class Clock {
 public:
  std::shared_ptr<const CudaEvent> era(int gpu) {
    if (era_ && seconds_now() - era_->began < kEraSeconds) return era_;
    const auto next = std::make_shared<CudaEvent>(gpu, true);
    // in the default stream, which the device's streams do not wait for
    CUDA_CHECK(cudaEventRecord(next->raw));
    next->synchronize();
    next->era = era_;
    next->began = era_ ? next->seconds() : seconds_now();
    next->era.reset();  // or it would keep all eras before it
    return era_ = next;
  }

 private:
  std::shared_ptr<const CudaEvent> era_;
};

// --- streams -------------------------------------------------------------------------------------

// What the first failing host function of a stream threw; shared by the stream and its host
// functions.
struct Failure {
  std::mutex mutex;
  std::exception_ptr error;
};

struct HostTask {
  std::function<void()> work;
  std::shared_ptr<Failure> failure;
};

void CUDART_CB run_host_task(void* p) {
  const std::unique_ptr<HostTask> task(static_cast<HostTask*>(p));
  std::lock_guard lock(task->failure->mutex);
  if (task->failure->error) return;
  try {
    task->work();
  } catch (...) {
    task->failure->error = std::current_exception();
  }
}

class CudaStream final : public Stream {
 public:
  CudaStream(Device& device, Clock& clock, int gpu, bool first)
      : device_(device), clock_(clock), gpu_(gpu) {
    int last_priority = 0, first_priority = 0;
    CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&last_priority, &first_priority));
    CUDA_CHECK(cudaStreamCreateWithPriority(
        &stream_, cudaStreamNonBlocking, first ? first_priority : last_priority));
  }
  ~CudaStream() override {
    if (keeps_host_) cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);  // does not wait: its work goes on
  }
  Device& device() override { return device_; }
  cudaStream_t raw() const { return stream_; }

  void record(Event& event) override {
    CudaEvent& e = static_cast<CudaEvent&>(event);
    if (e.timed) e.era = clock_.era(gpu_);
    CUDA_CHECK(cudaEventRecord(e.raw, stream_));
  }
  void wait(Event& event) override {
    CUDA_CHECK(cudaStreamWaitEvent(stream_, static_cast<CudaEvent&>(event).raw, 0));
  }
  void synchronize() override {
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    staged_.clear();
    keeps_host_ = false;
    std::lock_guard lock(failure_->mutex);
    if (failure_->error) std::rethrow_exception(std::exchange(failure_->error, nullptr));
  }

  void launch(const RowKernel& kernel, int64_t rows, const void* args, size_t, int64_t) override {
    DUET_CHECK(kernel.cuda != nullptr, kernel.name,
        ": this row operation is not built for CUDA and this dtype");
    if (rows == 0) return;
    const Scope scope = timed(kernel.name, nullptr, kernel.bytes ? kernel.bytes(args) : 0);
    kernel.cuda(stream_, rows, args);
    const cudaError_t status = cudaGetLastError();
    DUET_CHECK(status == cudaSuccess, "launch of ", kernel.name, ": found ",
        cudaGetErrorName(status), ", ", cudaGetErrorString(status));
  }
  // Before the device's memory goes.
  void finish() {
    cudaStreamSynchronize(stream_);
    staged_.clear();
    keeps_host_ = false;
  }

  void copy(void* dst, const void* src, size_t bytes) override {
    if (bytes == 0) return;
    cudaPointerAttributes source;
    CUDA_CHECK(cudaPointerGetAttributes(&source, src));
    if (source.type == cudaMemoryTypeUnregistered) return copy_staged(dst, src, bytes);
    cudaPointerAttributes target = source;
    if (source.type == cudaMemoryTypeDevice) CUDA_CHECK(cudaPointerGetAttributes(&target, dst));
    if (target.type == cudaMemoryTypeDevice && target.device != source.device)
      CUDA_CHECK(cudaMemcpyPeerAsync(dst, target.device, src, source.device, bytes, stream_));
    else
      CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, stream_));
  }
  void zero(void* dst, size_t bytes) override {
    if (bytes == 0) return;
    const Scope scope = timed("zero", nullptr, int64_t(bytes));
    CUDA_CHECK(cudaMemsetAsync(dst, 0, bytes, stream_));
  }
  void host(std::function<void()> work) override {
    auto task = std::make_unique<HostTask>(HostTask{std::move(work), failure_});
    CUDA_CHECK(cudaLaunchHostFunc(stream_, run_host_task, task.get()));
    task.release();  // run_host_task owns it now
    keeps_host_ = true;
  }

  // For the device's record of kernels. FLOPs counted since the last one are this one's; a row
  // operation that has some is attention's.
  Scope timed(const char* name, const char* kind, int64_t bytes) {
    if (counted_ > device_.flops) counted_ = 0;  // they are counted anew
    const int64_t flops = device_.flops - std::exchange(counted_, device_.flops);
    if (!kind && flops) kind = "attention", bytes = 0;
    return Scope(device_.kernels, *this,
        {.name = name, .track = kind ? kind : "rows", .bytes = bytes, .flops = flops});
  }

 private:
  struct Staged {
    Buf bytes;
    std::unique_ptr<CudaEvent> copied;
  };

  // The source is ordinary memory, which its owner may let go at once, and which CUDA would copy in
  // its own time or wait for: a pinned copy of it is made now.
  void copy_staged(void* dst, const void* src, size_t bytes) {
    while (!staged_.empty() && staged_.front().copied->done()) staged_.pop_front();
    Staged s{device_.host_buffer(1, int64_t(bytes + 3) / 4, Dtype::i32),
        std::make_unique<CudaEvent>(gpu_, false)};
    memcpy(s.bytes->data, src, bytes);
    CUDA_CHECK(cudaMemcpyAsync(dst, s.bytes->data, bytes, cudaMemcpyDefault, stream_));
    keeps_host_ = true;
    staged_.push_back(std::move(s));
    record(*staged_.back().copied);
  }

  Device& device_;
  Clock& clock_;
  const int gpu_;
  cudaStream_t stream_ = nullptr;
  int64_t counted_ = 0;        // of the device's FLOPs
  std::deque<Staged> staged_;  // whose copies may still be under way
  std::shared_ptr<Failure> failure_ = std::make_shared<Failure>();
  // staged copies or host functions may be under way: the destructor waits for them
  bool keeps_host_ = false;
};

// --- the device ----------------------------------------------------------------------------------

class CudaDevice final : public Device {
 public:
  CudaDevice(int index, int threads, int peers) : index_(index), threads_(threads) {
    has_gpu = false;
    use_gpu(index);
    CUDA_CHECK(cudaGetDeviceProperties(&properties_, index));
    CUDA_CHECK(cudaDeviceGetDefaultMemPool(&pool_, index));
    uint64_t all = UINT64_MAX;  // what is free stays, until the device is dropped
    CUDA_CHECK(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &all));
    for (int peer = 0; peer < peers; peer++) let_in(peer);
    CUDA_CHECK(cudaMallocHost(&pinned_, size_t(kPinnedBytes)));
    CUDA_CHECK(cudaStreamCreateWithFlags(&memory_, cudaStreamNonBlocking));
    compute_ = std::make_unique<CudaStream>(*this, clock_, index_, false);
    gemm_ = std::make_unique<CudaGemm>(*this, compute_->raw());
  }
  ~CudaDevice() override {
    returned_.clear();
    compute_->finish();
    gemm_.reset();
    for (bool host : {false, true}) drain_pool(host);
    cudaStreamSynchronize(compute_->raw());
    cudaMemPoolTrimTo(pool_, 0);
    cudaStreamDestroy(memory_);
    cudaFreeHost(pinned_);
  }
  bool is_cuda() const override { return true; }
  std::string name() const override { return cat("cuda:", index_, " ", properties_.name); }
  double peak_flops(Dtype dtype) const override {
    int kilohertz = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, index_));
    return cuda_peak_flops(properties_, kilohertz, dtype);
  }
  double peak_bytes() const override { return cuda_peak_bytes(properties_, index_); }

  Stream& compute() override { return *compute_; }
  std::unique_ptr<Stream> make_stream() override {
    return std::make_unique<CudaStream>(*this, clock_, index_, true);
  }
  std::unique_ptr<Event> make_event(bool timed) override {
    return std::make_unique<CudaEvent>(index_, timed);
  }
  int threads() const override { return threads_; }

 protected:
  void multiply(const Gemm& g) override {
    const bool experts = g.groups.size() > 2;  // one group is a plain product
    const Scope scope = compute_->timed(
        form_name(g.form), experts ? "experts" : "products", CudaGemm::sum_bytes(g));
    gemm_->multiply(g);
  }
  void* allocate(int64_t bytes, bool host) override {
    if (host && bytes <= kPinnedBytes - pinned_used_)
      return pinned_ + std::exchange(pinned_used_, pinned_used_ + bytes);
    void* p = nullptr;
    const auto take = [&] {
      if (host) return cudaMallocHost(&p, size_t(bytes));
      const cudaError_t status = cudaMallocAsync(&p, size_t(bytes), memory_);
      // all streams may use it then; nothing else is done in this one
      return status == cudaSuccess ? cudaStreamSynchronize(memory_) : status;
    };
    cudaError_t status = take();
    if (!host && status == cudaErrorMemoryAllocation) {  // what is freed may not have come back yet
      cudaGetLastError();
      cudaStreamSynchronize(compute_->raw());
      cudaMemPoolTrimTo(pool_, 0);
      status = take();
    }
    if (status == cudaSuccess) return p;
    cudaGetLastError();  // or the next row kernel would find it
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    throw Error(cat(name(), ": no memory: asked for ", bytes, " bytes ",
        host ? "of pinned host memory" : "on the GPU", ", found ", cudaGetErrorString(status),
        "; free on the GPU: ", free >> 20, " of ", total >> 20, " MiB"));
  }
  // Nothing can be thrown here; a GPU that has failed says so at the next call.
  bool release(void* p, int64_t, bool host) override {
    const bool reserve = p >= pinned_ && p < pinned_ + kPinnedBytes;
    if (!reserve) host ? cudaFreeHost(p) : cudaFreeAsync(p, compute_->raw());
    return !reserve;
  }

 private:
  // Where GPUs do not reach one another a copy between them goes by way of the host.
  void let_in(int peer) {
    int reaches = 0;
    if (peer != index_) CUDA_CHECK(cudaDeviceCanAccessPeer(&reaches, peer, index_));
    const cudaMemAccessDesc peers{
        {cudaMemLocationTypeDevice, peer}, cudaMemAccessFlagsProtReadWrite};
    if (reaches) CUDA_CHECK(cudaMemPoolSetAccess(pool_, &peers, 1));
  }

  const int index_, threads_;
  cudaDeviceProp properties_;
  cudaMemPool_t pool_ = nullptr;
  cudaStream_t memory_ = nullptr;
  char* pinned_ = nullptr;   // [kPinnedBytes]
  int64_t pinned_used_ = 0;  // of it, for good
  Clock clock_;
  std::unique_ptr<CudaStream> compute_;
  std::unique_ptr<CudaGemm> gemm_;
};

// Any error means that there is no GPU to use: no driver, one too old, none visible.
std::pair<int, cudaError_t> find_devices() {
  // before CUDA's first call, which reads them
  set_environment("CUDA_MODULE_LOADING", "EAGER",
      "a kernel loaded at its first launch waits for the GPU, on which NCCL's wait for it");
  set_environment("CUDA_DEVICE_MAX_CONNECTIONS", "32",
      "streams that share one of the GPU's queues wait for one another");
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) cudaGetLastError();
  return {status == cudaSuccess ? count : 0, status};
}

}  // namespace

int cuda_device_count() { return find_devices().first; }

bool cuda_has_bf16() {
  const int count = cuda_device_count();
  int least = count ? 8 : 0, major = 0;
  for (int gpu = 0; gpu < count; gpu++) {
    CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, gpu));
    least = std::min(least, major);
  }
  return least >= 8;
}

std::unique_ptr<Device> make_cuda_device(int index, int threads, int peers) {
  const auto [count, status] = find_devices();
  require(count > 0, "--device cuda: expected a GPU, found none (", cudaGetErrorString(status),
      "); use --device cpu");
  require(index >= 0 && index < count, "--device cuda: expected a GPU number in 0..", count - 1,
      ", found ", index);
  keep_freed_memory();
  return std::make_unique<CudaDevice>(index, threads, peers);
}

}  // namespace duet
