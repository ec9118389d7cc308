// The functions of the CUDA runtime. See cuda_runtime.h for their list; they behave as NVIDIA's
// documentation says, and where it leaves the choice (a copy from pageable memory may be taken at
// the call or later) a coin decides. What is an error there is one here, and also a complaint.
#include <chrono>
#include <cstdio>

#include "test/emulated/machine.h"

using namespace emulated;

namespace {

thread_local cudaError_t last_error = cudaSuccess;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// An error of the caller's: kept for cudaGetLastError, and held against it.
cudaError_t wrong(Call& c, cudaError_t code, const std::string& why) {
  c.machine.complain(why);
  return last_error = code;
}

// A call that works on the calling thread's GPU, or a stream's.
template <class Body> cudaError_t with_gpu(const char* name, Body body) {
  Call c;
  try {
    if (size_t(current_device) >= c.machine.gpus.size()) throw cudaErrorInvalidDevice;
    const char* loading = getenv("CUDA_MODULE_LOADING");
    if (!c.machine.eager) c.machine.eager = loading && strcmp(loading, "EAGER") == 0;
    const cudaError_t code = body(c);
    if (code != cudaSuccess) return code;
    const bool failed = !c.machine.gpus[size_t(current_device)].failure.empty();
    return failed ? last_error = cudaErrorLaunchFailure : cudaSuccess;
  } catch (cudaError_t code) {
    return wrong(c, code, text(name, ": ", cudaGetErrorString(code)));
  }
}

// One that only enqueues.
template <class Work> cudaError_t with_stream(const char* name, cudaStream_t stream, Work work) {
  return with_gpu(name, [&](Call& c) {
    const Queue q = c.machine.find(stream);
    work(c, q);
    return cudaSuccess;
  });
}

void need(bool condition, cudaError_t code = cudaErrorInvalidValue) {
  if (!condition) throw code;
}

}  // namespace

const char* cudaGetErrorName(cudaError_t e) {
  switch (e) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
  }
  return "an unknown error";
}

const char* cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return cudaGetErrorName(e);
  }
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

// --- devices -------------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
  *count = int(Call().machine.gpus.size());
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  Call c;
  if (device < 0 || size_t(device) >= c.machine.gpus.size())
    return wrong(c, cudaErrorInvalidDevice, text("cudaSetDevice(", device, ")"));
  current_device = device;
  chose_device = true;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {"Emulated H100", options().memory, 132, 9, 0};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  *value = what == cudaDevAttrClockRate         ? 1'980'000
      : what == cudaDevAttrMemoryClockRate      ? 2'619'000
      : what == cudaDevAttrGlobalMemoryBusWidth ? 5120
                                                : 9;  // cudaDevAttrComputeCapabilityMajor
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  *can = device != peer;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* bus, int length, int device) {
  snprintf(bus, size_t(length), "0000:%02x:00.0", unsigned(device));
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  return with_gpu("cudaDeviceSynchronize", [](Call& c) {
    c.machine.whole_gpu("cudaDeviceSynchronize", current_device);
    c.machine.counts.synchronisations++;
    const std::vector<Point> all = c.machine.all_of(current_device);
    for (const Point& p : all) c.machine.wait(c.lock, p);
    return cudaSuccess;
  });
}

// --- memory --------------------------------------------------------------------------------------

static cudaError_t allocate(void** p, size_t bytes, bool device) {
  return with_gpu("cudaMalloc", [&](Call& c) {
    c.machine.whole_gpu("cudaMalloc", current_device);
    *p = c.machine.allocate(bytes, device ? current_device : -1);
    return *p ? cudaSuccess : last_error = cudaErrorMemoryAllocation;
  });
}
static cudaError_t release(void* p, bool device) {
  return with_gpu("cudaFree", [&](Call& c) {
    c.machine.whole_gpu("cudaFree", current_device);
    need(!p || c.machine.release(p, device));
    return cudaSuccess;
  });
}
cudaError_t cudaMalloc(void** p, size_t bytes) { return allocate(p, bytes, true); }
cudaError_t cudaMallocHost(void** p, size_t bytes) { return allocate(p, bytes, false); }
cudaError_t cudaFree(void* p) { return release(p, true); }
cudaError_t cudaFreeHost(void* p) { return release(p, false); }

// Memory in a stream's order: what another stream does to it before is undone, and what it does
// after it is freed faults. Where there is none left, what is being freed is waited for.
cudaError_t cudaMallocAsync(void** p, size_t bytes, cudaStream_t stream) {
  return with_gpu("cudaMallocAsync", [&](Call& c) {
    const Queue q = c.machine.find(stream);
    char* made = c.machine.allocate(bytes, q->device);
    if (!made) {
      for (const Point& free : std::exchange(c.machine.gpus[size_t(q->device)].frees, {}))
        c.machine.wait(c.lock, free);
      made = c.machine.allocate(bytes, q->device);
    }
    *p = made;
    if (!made) return last_error = cudaErrorMemoryAllocation;
    c.machine.enqueue(c.lock, q, {[=] { Machine::poison(made, bytes); }});
    return cudaSuccess;
  });
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
  return with_stream("cudaFreeAsync", stream, [&](Call& c, const Queue& q) {
    need(c.machine.find(p));
    std::vector<Point>& frees = c.machine.gpus[size_t(q->device)].frees;
    std::erase_if(frees, [](const Point& p) { return p.reached(); });
    frees.push_back(c.machine.enqueue(c.lock, q, {[p] { Call().machine.release(p, true); }}));
  });
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  *pool = &Call().machine.gpus[size_t(device)].pool;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
cudaError_t cudaMemPoolSetAccess(cudaMemPool_t pool, const cudaMemAccessDesc* peers, size_t n) {
  const Call c;
  for (size_t i = 0; i < n; i++) pool->reached_by.insert(peers[i].location.id);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  Call c;
  *total = c.machine.options.memory;
  *free = *total - c.machine.gpus[size_t(current_device)].allocated;
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  Call c;
  const Allocation* found = c.machine.find(p);
  *a = !found              ? cudaPointerAttributes{cudaMemoryTypeUnregistered, -2}
      : found->device >= 0 ? cudaPointerAttributes{cudaMemoryTypeDevice, found->device}
                           : cudaPointerAttributes{cudaMemoryTypeHost, 0};
  return cudaSuccess;
}

// Between device memory and pinned memory a copy goes its own way. Between two places of the host
// it is done at the call; so is one to pageable memory. One from pageable memory may be done at the
// call, or the source may be read later.
cudaError_t cudaMemcpyAsync(
    void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return with_stream("cudaMemcpyAsync", stream, [&](Call& c, const Queue& q) {
    const auto whole = [&](const void* p) {  // of what it begins in
      need(!c.machine.find(p) || c.machine.find(p, bytes));
      return c.machine.find(p);
    };
    const Allocation *target = whole(to), *source = whole(from);
    const auto apart = [&](const Allocation* a) {  // in the memory of a GPU that it does not reach
      return a && a->device >= 0 && a->device != q->device &&
          !c.machine.gpus[size_t(a->device)].pool.reached_by.count(q->device);
    };
    if (apart(target) || apart(source))
      c.machine.complain("a copy between GPUs that do not reach one another's memory");
    const auto on_host = [](const Allocation* a) { return !a || a->device < 0; };
    c.machine.counts.copies++;
    c.machine.counts.copied_bytes += int64_t(bytes);
    const Point done = c.machine.enqueue(c.lock, q, {[=] { memmove(to, from, bytes); }});
    if ((on_host(target) && on_host(source)) || !target || (!source && c.machine.coin()))
      c.machine.wait(c.lock, done);
  });
}
cudaError_t cudaMemcpyPeerAsync(
    void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
}
cudaError_t cudaMemset2DAsync(
    void* p, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream) {
  return with_stream("cudaMemsetAsync", stream, [&](Call& c, const Queue& q) {
    if (width * height == 0) return;
    need(width <= pitch && c.machine.find(p, (height - 1) * pitch + width));
    c.machine.counts.fills++;
    c.machine.enqueue(c.lock, q, {[=] {
      for (size_t r = 0; r < height; r++) memset(static_cast<char*>(p) + r * pitch, value, width);
    }});
  });
}
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  return cudaMemset2DAsync(p, bytes, value, bytes, 1, stream);
}

// --- streams -------------------------------------------------------------------------------------

cudaError_t cudaDeviceGetStreamPriorityRange(int* last, int* first) {
  *last = 0;
  *first = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return with_gpu("cudaStreamCreate", [&](Call& c) {
    const Queue made = c.machine.make_stream(current_device, !(flags & cudaStreamNonBlocking));
    made->priority = priority;
    c.machine.counts.streams++;
    *stream = made.get();
    return cudaSuccess;
  });
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  return with_stream(
      "cudaStreamGetPriority", stream, [&](Call&, const Queue& q) { *priority = q->priority; });
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return with_gpu("cudaStreamDestroy", [&](Call& c) {
    need(stream, cudaErrorInvalidResourceHandle);
    c.machine.drop_stream(stream);
    return cudaSuccess;
  });
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return with_stream("cudaStreamSynchronize", stream, [&](Call& c, const Queue& q) {
    c.machine.counts.synchronisations++;
    c.machine.wait(c.lock, c.machine.now(q));
  });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return with_stream("cudaStreamWaitEvent", stream, [&](Call& c, const Queue& q) {
    if (event->last) c.machine.enqueue(c.lock, q, {[] {}, {event->last->point}});
  });
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t work, void* data) {
  return with_stream("cudaLaunchHostFunc", stream, [&](Call& c, const Queue& q) {
    c.machine.counts.host_functions++;
    c.machine.enqueue(c.lock, q, {.work = [=] { work(data); }, .on_host = true});
  });
}

cudaError_t emulated::allow_shared(const void* kernel, int bytes) {
  return with_gpu("cudaFuncSetAttribute", [&](Call& c) {
    need(bytes >= 0 && bytes <= kMostShared, cudaErrorInvalidValue);
    c.machine.shared[{current_device, kernel}] = bytes;
    return cudaSuccess;
  });
}

cudaError_t emulated::launch(
    const cudaLaunchConfig_t& config, Kernel kernel, std::function<void()> thread) {
  return with_stream("a kernel", config.stream, [&](Call& c, const Queue& q) {
    const dim3 grid = config.gridDim, block = config.blockDim;
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    need(threads > 0 && threads <= 1024 && uint64_t(grid.x) * grid.y * grid.z > 0 &&
            grid.y < 65536 && grid.z < 65536,
        cudaErrorInvalidConfiguration);
    const auto allowed = c.machine.shared.find({current_device, kernel.address});
    const int most = allowed == c.machine.shared.end() ? kFreelyShared : allowed->second;
    const int shared = int(config.dynamicSmemBytes);
    need(shared <= most, cudaErrorInvalidValue);
    need(q->device == current_device, cudaErrorInvalidResourceHandle);
    c.machine.counts.launches++;
    c.machine.load(kernel.name, q->device);
    c.machine.enqueue(c.lock, q,
        {[=, device = q->device, descending = c.machine.coin(), thread = std::move(thread)] {
          const std::string error = run_kernel(grid, block, shared, descending, thread);
          if (!error.empty()) Call().machine.fail(device, text(error, ", in ", kernel.name));
        }});
  });
}

// --- events --------------------------------------------------------------------------------------

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return with_gpu("cudaEventCreate", [&](Call& c) {
    c.machine.counts.timed_events += !(flags & cudaEventDisableTiming);
    *event = new CUevent_st{current_device, !(flags & cudaEventDisableTiming)};
    return cudaSuccess;
  });
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Call c;
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return with_stream("cudaEventRecord", stream, [&](Call& c, const Queue& q) {
    need(event->device == q->device, cudaErrorInvalidResourceHandle);
    const auto record = std::make_shared<CUevent_st::Record>();
    record->point = {q, q->issued + 1};
    event->last = record;
    c.machine.enqueue(c.lock, q, {[record] { record->seconds = now_seconds(); }});
  });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return with_gpu("cudaEventQuery", [&](Call& c) {
    c.machine.counts.queries++;
    if (!chose_device && event->device != current_device)
      c.machine.complain("an event asked by a thread without a GPU, which is given the first one");
    const bool done = !event->last || c.machine.query(c.lock, event->last->point);
    return done ? cudaSuccess : cudaErrorNotReady;
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return with_gpu("cudaEventSynchronize", [&](Call& c) {
    c.machine.counts.synchronisations++;
    if (event->last) c.machine.wait(c.lock, Point(event->last->point));
    return cudaSuccess;
  });
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  return with_gpu("cudaEventElapsedTime", [&](Call& c) {
    need(begin->timed && end->timed && begin->last && end->last && begin->device == end->device,
        cudaErrorInvalidResourceHandle);
    if (!begin->last->point.reached() || !end->last->point.reached()) return cudaErrorNotReady;
    *milliseconds = float((end->last->seconds - begin->last->seconds) * 1e3);
    return cudaSuccess;
  });
}
