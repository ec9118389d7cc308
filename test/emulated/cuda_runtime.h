// The CUDA runtime as far as duet uses it, for the host's compiler: types, functions (runtime.cpp),
// and what a kernel sees of its place in the grid (fibers.cpp). Files that need nvcc are compiled
// with this header included first, as nvcc includes its own. Read next: machine.h.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#define CUDART_CB

// --- types ---------------------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
};
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
enum cudaMemoryType {
  cudaMemoryTypeUnregistered = 0,
  cudaMemoryTypeHost = 1,
  cudaMemoryTypeDevice = 2
};
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrClockRate = 13,
  cudaDevAttrMemoryClockRate = 36,
  cudaDevAttrGlobalMemoryBusWidth = 37,
  cudaDevAttrComputeCapabilityMajor = 75
};
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
enum cudaMemLocationType { cudaMemLocationTypeDevice = 1 };
enum cudaMemAccessFlags { cudaMemAccessFlagsProtReadWrite = 3 };
struct cudaMemLocation {
  cudaMemLocationType type;
  int id;
};
struct cudaMemAccessDesc {
  cudaMemLocation location;
  cudaMemAccessFlags flags;
};

struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};
struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  int multiProcessorCount, major, minor;
};
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
typedef struct CUmemPool_st* cudaMemPool_t;
typedef void (*cudaHostFn_t)(void*);

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

// --- functions -----------------------------------------------------------------------------------

const char* cudaGetErrorName(cudaError_t);
const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int*);
cudaError_t cudaGetDevice(int*);
cudaError_t cudaSetDevice(int);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int);
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int);
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer);
cudaError_t cudaDeviceGetPCIBusId(char*, int length, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaMalloc(void**, size_t);
cudaError_t cudaMallocHost(void**, size_t);
cudaError_t cudaFree(void*);
cudaError_t cudaFreeHost(void*);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t*, int);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*);
cudaError_t cudaMemPoolSetAccess(cudaMemPool_t, const cudaMemAccessDesc*, size_t);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t);
cudaError_t cudaMallocAsync(void**, size_t, cudaStream_t);
cudaError_t cudaFreeAsync(void*, cudaStream_t);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes*, const void*);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t, cudaMemcpyKind, cudaStream_t = 0);
cudaError_t cudaMemcpyPeerAsync(
    void* to, int to_device, const void* from, int from_device, size_t, cudaStream_t = nullptr);
cudaError_t cudaMemsetAsync(void*, int value, size_t, cudaStream_t = nullptr);
cudaError_t cudaMemset2DAsync(
    void*, size_t pitch, int value, size_t width, size_t height, cudaStream_t = nullptr);
cudaError_t cudaDeviceGetStreamPriorityRange(int* last, int* first);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t*, unsigned flags, int priority);
cudaError_t cudaStreamGetPriority(cudaStream_t, int*);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned flags = 0);
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t, void*);
cudaError_t cudaEventCreate(cudaEvent_t*);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t*, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t = nullptr);
cudaError_t cudaEventQuery(cudaEvent_t);
cudaError_t cudaEventSynchronize(cudaEvent_t);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t);

template <class T> cudaError_t cudaMalloc(T** p, size_t n) {
  return cudaMalloc(reinterpret_cast<void**>(p), n);
}
template <class T> cudaError_t cudaMallocHost(T** p, size_t n) {
  return cudaMallocHost(reinterpret_cast<void**>(p), n);
}

namespace emulated {
struct Kernel {
  const void* address;
  const char* name;
};
cudaError_t launch(const cudaLaunchConfig_t&, Kernel, std::function<void()> thread);
cudaError_t allow_shared(const void* kernel, int bytes);
}  // namespace emulated
template <class... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute, int bytes) {
  return emulated::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
}
// Arguments are taken at the call, as CUDA does.
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  return emulated::launch(*config, {reinterpret_cast<const void*>(kernel), __PRETTY_FUNCTION__},
      [kernel, taken = std::tuple<std::decay_t<Params>...>(std::forward<Args>(args)...)] {
        std::apply(kernel, taken);
      });
}

// --- in a kernel ---------------------------------------------------------------------------------
// A thread is a fiber, and the fibers of a block share one host thread: what is the block's, or the
// running fiber's, is that thread's.

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

char* dynamic_shared();  // as gemm_fragments.cuh declares it for nvcc

inline thread_local constinit uint3 threadIdx{}, blockIdx{};
inline thread_local constinit dim3 blockDim{}, gridDim{};

namespace emulated {
enum class At : uint8_t { running, shuffle, syncwarp, syncthreads, the_end };
constexpr int kWarp = 32;
struct Slot {
  alignas(8) char bytes[8];
};
// Brings a value to where the warp meets; returns a function of the lane: the other lanes' values.
struct Met {
  const Slot* slots;  // [kWarp]
  int lane, lanes;
  template <class T> T of(int other) const {
    T value;
    memcpy(&value, slots[other >= 0 && other < lanes ? other : lane].bytes, sizeof value);
    return value;
  }
};
Met meet(At where, unsigned mask, const void* value, size_t size);
void misuse(const char* what);  // fails the launch
template <class T> Met shuffle(unsigned mask, const T& value) {
  static_assert(std::is_arithmetic_v<T>);
  return meet(At::shuffle, mask, &value, sizeof value);
}
}  // namespace emulated

template <class T> T __shfl_xor_sync(unsigned mask, T value, int with) {
  const emulated::Met met = emulated::shuffle(mask, value);
  return met.of<T>(met.lane ^ with);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const emulated::Met met = emulated::shuffle(mask, value);
  return met.of<T>(met.lane + int(by));
}
template <class T> T __shfl_sync(unsigned mask, T value, int lane) {
  const emulated::Met met = emulated::shuffle(mask, value);
  return met.of<T>(lane & 31);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const emulated::Met met = emulated::shuffle(mask, predicate);
  unsigned votes = 0;
  for (int l = 0; l < met.lanes; ++l) votes |= unsigned(met.of<int>(l) != 0) << l;
  return votes;
}
inline void __syncwarp(unsigned mask = ~0u) {
  emulated::meet(emulated::At::syncwarp, mask, nullptr, 0);
}
inline void __syncthreads() { emulated::meet(emulated::At::syncthreads, ~0u, nullptr, 0); }

#define __CUDACC__ 1
