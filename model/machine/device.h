// Device, Stream, Event: what the model runs on. The seam between the mathematics and the machine.
//
// A Device owns memory and makes streams. A Stream is a queue of work done in order: row kernels
// (launch.h), copies, and on a device's compute stream products (GEMM). Two streams know of each
// other only through events. On the CPU the compute stream works at once, on the calling
// thread and the rank's thread pool, and any further stream is a thread of its own; on CUDA they
// are CUDA streams. One rank uses one Device; a Device and its streams are used by one thread (the
// rank's), the work itself runs wherever the backend puts it.
//
// Exactness (README, "The exactness ladder"): on the CPU, and on CUDA in fp32, an element of a GEMM
// is one chain of fused multiply-adds in ascending k, cut at fixed places, so that its bits depend
// neither on the number of rows nor on threads; no operation uses float atomics.
//
// Where CUDA differs. Every method of the compute stream only enqueues: its failures (a GPU's
// errors, what a host function threw) come out at a later call, at the latest at synchronize(). A
// device is made by the rank's thread and makes its GPU that thread's current one; a thread that
// has made a device of one GPU makes none of another. Taking memory waits for nothing, while there
// is some: other ranks' messages may be under way on the GPU, which a wait for all of it would wait
// for.
//
// Backends: device_cpu.cpp, gemm_cpu.cpp; device_cuda.cu, gemm_cuda.cu (a build without nvcc links
// device_nocuda.cpp instead).
// Read next: launch.h.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/base/check.h"
#include "model/machine/grid.h"
#include "model/machine/tensor.h"

namespace duet {

class Device;
class Recorder;

// C[i] = alpha * op(A[i]) op(B[i]), or C[i] += ... where `accumulate`, for each matrix i of a
// batch. dtypes of A and B are equal; C has the same or, from bf16, fp32, or fp64 for an exact sum.
// Products are formed and summed in fp32 (fp64 for doubles). Shapes, with C [m, n]:
//   NN: A [m, k], B [k, n]     forward, y = x W
//   NT: A [m, k], B [n, k]     gradient for inputs (I), dx = dy W^T
//   TN: A [k, m], B [k, n]     gradient for weights (W), dW = x^T dy
enum class Form { NN, NT, TN };
constexpr const char* form_name(Form f) {
  return f == Form::NN ? "NN" : f == Form::NT ? "NT" : "TN";
}

struct Gemm {
  Form form = Form::NN;
  Tensor a = {}, b = {}, c = {};
  bool accumulate = false;
  double alpha = 1;
  // Batch: matrix i starts i * stride elements further; a stride of 0 shares the matrix.
  int batch = 1;
  int64_t stride_a = 0, stride_b = 0, stride_c = 0;
  // Attention's [query, key] matrix (C in NT; A in NN and TN) is lower triangular. In NT elements
  // above the diagonal of C may be left unwritten, in NN and TN those of A are zero and may be
  // skipped: same bits either way.
  bool causal = false;
  // Not empty: an exact sum (grid.h). Form TN, C fp64, accumulate, alpha 1; row numbers of A and B
  // at which pieces begin and end, ascending, each at most kMaxPiece rows, the offsets of groups
  // among them. A piece's product is summed from zero and added to C on the grid. B may have more
  // columns than C, which do not count.
  std::span<const int64_t> pieces = {};
  // Groups of contiguous rows, empty: one, of all of A's. Group e owns rows groups[e] ..
  // groups[e+1]-1 (one more entry than groups, ascending; empty groups allowed). NN and NT: those
  // rows of A and C, with B matrix e at e * stride_b. TN: those rows of A and B, with C matrix e at
  // e * stride_c; an empty group writes zeros, or adds nothing where `accumulate`. Product i of a
  // batch has the same groups, and those matrices from i * groups on.
  std::span<const int64_t> groups = {};

  int64_t flops() const;  // 2 per multiply-add, half of it where causal; of stated groups
};

// A point in a stream's order of work. Recorded again, it forgets its earlier one.
class Event {
 public:
  virtual ~Event() = default;
  virtual bool done() const = 0;   // never recorded counts as done
  virtual void synchronize() = 0;  // the calling thread waits
  // when it happened, on the host's steady clock; of one that was made timed, after done()
  virtual double seconds() const = 0;
};

// One row operation compiled for each backend and dtype; made by launch.h, called by
// Stream::launch.
struct RowKernel {
  const char* name;
  void (*cpu)(int64_t row_begin, int64_t row_end, const void* args);
  void (*cuda)(void* cuda_stream, int64_t rows, const void* args);
  int64_t (*bytes)(const void* args) = nullptr;  // that it reads and writes
};

class Stream {
 public:
  virtual ~Stream() = default;
  virtual Device& device() = 0;

  virtual void record(Event& event) = 0;
  virtual void wait(Event& event) = 0;  // work enqueued from now on starts after the event
  virtual void synchronize() = 0;       // the calling thread waits until all work is done

  // Rows 0 .. rows-1 of a row kernel; args (args_bytes of them) are copied. row_cost: about how
  // many elements a row touches.
  virtual void launch(const RowKernel& kernel, int64_t rows, const void* args, size_t args_bytes,
      int64_t row_cost) = 0;

  // Any direction. A host side should come from host_buffer, and be left alone until the copy is
  // done. Other host memory costs another copy or a wait; on compute() it may be let go at once
  // where it is the source (Device::upload lets it).
  virtual void copy(void* dst, const void* src, size_t bytes) = 0;
  virtual void zero(void* dst, size_t bytes) = 0;
  // A host function in the stream's order. It neither calls the device nor owns Bufs or Events; on
  // CUDA it must not wait for other host functions either, which may all share one thread. Where it
  // throws, the stream's later host functions are skipped until synchronize() has rethrown it (on
  // the CPU: all of the stream's work, and events carry the failure on).
  virtual void host(std::function<void()> work) = 0;
};

// What memory is for: the rows of the table a run prints at its start.
enum class Use : int { weights, gradients, moments, activations, messages, scratch };
inline constexpr int kUses = 6;
constexpr const char* use_name(int u) {
  constexpr const char* names[kUses] = {
      "weights", "gradients", "moments", "activations", "messages", "scratch"};
  return names[u];
}

// Owns the memory of one tensor (contiguous, 256-byte aligned, contents undefined) and returns it
// to its device's pool. The pool hands it out again at once, so a device Buf may be dropped while
// work of compute() on it is still queued, but not while work of another stream is; a host_buffer
// not before its copies are done. The device must outlive it.
class Buf {
 public:
  Buf() = default;
  Buf(Buf&& other) noexcept { swap(other); }
  Buf& operator=(Buf&& other) noexcept {
    Buf(std::move(other)).swap(*this);
    return *this;
  }
  ~Buf();
  const Tensor& operator*() const { return tensor_; }
  const Tensor* operator->() const { return &tensor_; }
  operator const Tensor&() const { return tensor_; }
  explicit operator bool() const { return tensor_.data != nullptr; }

 private:
  friend class Device;
  void swap(Buf& other) noexcept;
  Device* device_ = nullptr;
  Tensor tensor_;
  int64_t capacity_ = 0;  // bytes
  Use use_ = Use::scratch;
  bool host_ = false;
};

struct MemoryStats {
  int64_t now = 0, peak = 0;  // bytes handed out
};

class Device {
 public:
  virtual ~Device() = default;
  virtual bool is_cuda() const = 0;
  virtual std::string name() const = 0;                 // e.g. "cpu, 2 threads, AVX-512"
  virtual double peak_flops(Dtype) const { return 0; }  // of the datasheet, FLOP/s; 0: unknown
  virtual double peak_bytes() const { return 0; }       // of its memory, a second; likewise

  virtual Stream& compute() = 0;  // the rank's main stream
  // Work of compute(). Throws where shapes do not fit. Pieces and groups are read before it
  // returns.
  void gemm(Gemm g);
  // a further stream, concurrent with compute(), for messages: its work goes first
  virtual std::unique_ptr<Stream> make_stream() = 0;
  virtual std::unique_ptr<Event> make_event(bool timed = false) = 0;
  // Such a stream on loan: one that was given back and whose work is done since, or a new one.
  std::unique_ptr<Stream> borrow_stream();
  void give_back(std::unique_ptr<Stream> stream);
  virtual int threads() const = 0;  // cores of the host that this rank may use

  // From the pool: it grows when nothing fits, and is reused. Memory that the host can read and
  // write: host_buffer (pinned on CUDA). On the CPU both are the same.
  Buf buffer(int64_t rows, int64_t cols, Dtype dtype, Use use);
  Buf host_buffer(int64_t rows, int64_t cols, Dtype dtype);
  // [n, 1] i32: host integers, which may go at once
  Buf upload(std::span<const int32_t> values, Use use);

  // of buffer(); host buffers are not counted
  MemoryStats memory(Use use) const { return stats_[int(use)]; }
  // device memory taken from the system so far
  int64_t pool_bytes() const { return pool_bytes_; }

  int64_t flops = 0;  // of all products so far
  // Not null, on CUDA: is told when each kernel runs, by its name and, as the track, its kind.
  Recorder* kernels = nullptr;

 protected:
  virtual void multiply(const Gemm& g) = 0;  // which fits, and has groups
  // 256-byte aligned; throws where there is no more
  virtual void* allocate(int64_t bytes, bool host) = 0;
  virtual bool release(
      void* p, int64_t bytes, bool host) = 0;  // false: it stays the backend's reserve
  void drain_pool(bool host);  // releases all that is free; a backend's destructor drains both
  struct Returned {
    std::unique_ptr<Stream> stream;
    std::unique_ptr<Event> idle;
  };
  std::vector<Returned> returned_;  // a backend's destructor drops them

 private:
  friend class Buf;
  Buf take(int64_t rows, int64_t cols, Dtype dtype, Use use, bool host);
  void give(Buf& buf);
  // By capacity: device memory, host memory. What was given back last, which caches may hold, goes
  // out first.
  std::map<int64_t, std::vector<void*>> free_[2];
  MemoryStats stats_[kUses];
  int64_t pool_bytes_ = 0;
};

// threads >= 1: how many cores this rank may use.
std::unique_ptr<Device> make_cpu_device(int threads);

// 0 without CUDA, without a driver, and on any error
int cuda_device_count();
bool cuda_has_bf16();  // whether every GPU computes in it

// Throws UsageError where there is no such GPU. threads: of the host; peers: how many GPUs, from 0
// on, copy from and to its memory.
std::unique_ptr<Device> make_cuda_device(int index, int threads = 1, int peers = 0);

}  // namespace duet
