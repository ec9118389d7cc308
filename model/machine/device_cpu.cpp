// The CPU device. Its compute stream works at once, on the calling thread and the rank's pool; any
// further stream is a thread with a queue, and works on that thread alone, so that it leaves the
// pool to the compute stream.
//
// Failures on a stream's thread: the stream skips its remaining work, events recorded after the
// failure carry it on to whoever waits for them, and it is rethrown at the stream's synchronize().
// Nobody waits for ever. The contract is in device.h.
// Read next: compile_cpu.h.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <future>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "model/base/clock.h"
#include "model/machine/gemm_cpu.h"

namespace duet {
namespace {

// elements; below, a few microseconds, a launch is not worth waking anyone
constexpr int64_t kInlineCost = 16384;
constexpr int64_t kCopyPiece = 256 << 10;  // bytes
// Products walk down matrices whose rows lie a page or more apart. With pages of 2 MiB, where the
// system grants them, a step of `bench` is 2 to 8% shorter.
constexpr int64_t kLargePage = 2 << 20;

struct CpuEvent final : Event {
  std::shared_future<double> happened;  // when, or why not; of none that was never recorded
  bool done() const override {
    return !happened.valid() ||
        happened.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }
  void synchronize() override {
    if (happened.valid()) happened.get();
  }
  double seconds() const override { return happened.valid() ? happened.get() : 0; }
};

// Work that a thread of its own does in order.
class WorkQueue {
 public:
  std::exception_ptr error;  // of work that failed; the thread's own, as long as there is work

  ~WorkQueue() {
    push(nullptr, true);
    thread_.join();
  }
  void push(std::function<void()> work, bool always) {
    {
      std::lock_guard lock(mutex_);
      items_.push_back({std::move(work), always});
    }
    pushed_.notify_one();
  }

 private:
  struct Item {
    std::function<void()> work;  // null: the end
    bool always;                 // done after a failure too
  };
  void run() {
    for (;;) {
      std::unique_lock lock(mutex_);
      pushed_.wait(lock, [&] { return !items_.empty(); });
      const Item item = std::move(items_.front());
      items_.pop_front();
      lock.unlock();
      if (!item.work) return;
      if (error && !item.always) continue;
      try {
        item.work();
      } catch (...) {
        error = std::current_exception();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable pushed_;
  std::deque<Item> items_;
  std::thread thread_{[this] { run(); }};
};

// Works at once, on the calling thread and a pool; or on a thread of its own, and no pool.
class CpuStream final : public Stream {
 public:
  CpuStream(Device& device, ThreadPool& pool) : device_(device), pool_(pool) {}
  explicit CpuStream(Device& device)
      : device_(device), pool_(alone_), queue_(std::make_unique<WorkQueue>()) {}
  Device& device() override { return device_; }

  void record(Event& event) override {
    const auto when = std::make_shared<std::promise<double>>();
    static_cast<CpuEvent&>(event).happened = when->get_future();
    const auto happens = [this, when] {
      if (queue_ && queue_->error)
        when->set_exception(queue_->error);
      else
        when->set_value(seconds_now());
    };
    push(happens, true);
  }
  void wait(Event& event) override {
    push([e = static_cast<CpuEvent&>(event)]() mutable { e.synchronize(); });
  }
  void synchronize() override {
    if (!queue_) return;
    CpuEvent all;
    record(all);
    push([this] { queue_->error = nullptr; }, true);
    all.synchronize();
  }
  void launch(const RowKernel& kernel, int64_t rows, const void* args, size_t args_bytes,
      int64_t row_cost) override {
    DUET_CHECK(kernel.cpu != nullptr, kernel.name,
        ": this row operation is not built for the CPU and this dtype");
    const int64_t cost = std::max<int64_t>(row_cost, 1);
    const int64_t piece = std::max({int64_t(1), kInlineCost / 2 / cost, rows / (4 * pool_.size())});
    const int64_t grain = rows * cost < kInlineCost ? rows : piece;
    const auto work = [=, this](const void* a) {
      pool_.parallel_for(
          rows, grain, [&](int64_t begin, int64_t end) { kernel.cpu(begin, end, a); });
    };
    if (!queue_) return work(args);
    const auto* p = static_cast<const std::byte*>(args);
    push([work, copied = std::vector(p, p + args_bytes)] { work(copied.data()); });
  }
  void copy(void* dst, const void* src, size_t bytes) override {
    in_pieces(bytes, [=](int64_t begin, size_t n) {
      memcpy(static_cast<char*>(dst) + begin, static_cast<const char*>(src) + begin, n);
    });
  }
  void zero(void* dst, size_t bytes) override {
    in_pieces(
        bytes, [=](int64_t begin, size_t n) { memset(static_cast<char*>(dst) + begin, 0, n); });
  }
  void host(std::function<void()> work) override { push(std::move(work)); }

 private:
  template <class Work> void push(Work work, bool always = false) {
    queue_ ? queue_->push(std::move(work), always) : work();
  }
  template <class Work> void in_pieces(size_t bytes, Work work) {
    push([=, this] {
      pool_.parallel_for(int64_t(bytes), kCopyPiece,
          [&](int64_t begin, int64_t end) { work(begin, size_t(end - begin)); });
    });
  }

  Device& device_;
  ThreadPool alone_{1};
  ThreadPool& pool_;
  std::unique_ptr<WorkQueue> queue_;
};

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads) : pool_(threads), compute_(*this, pool_) {}
  ~CpuDevice() override {
    returned_.clear();
    for (bool host : {false, true}) drain_pool(host);
  }
  bool is_cuda() const override { return false; }
  std::string name() const override {
    return cat("cpu, ", pool_.size(), pool_.size() == 1 ? " thread, " : " threads, ",
        cpu_instruction_set());
  }

  Stream& compute() override { return compute_; }
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<CpuStream>(*this); }
  std::unique_ptr<Event> make_event(bool) override { return std::make_unique<CpuEvent>(); }
  int threads() const override { return pool_.size(); }

 protected:
  void multiply(const Gemm& g) override { gemm_cpu(g, pool_); }
  void* allocate(int64_t bytes, bool) override {
    void* p = ::operator new(size_t(bytes), alignment(bytes));
#ifdef MADV_HUGEPAGE
    if (bytes >= kLargePage) madvise(p, size_t(bytes), MADV_HUGEPAGE);
#endif
    return p;
  }
  bool release(void* p, int64_t bytes, bool) override {
    ::operator delete(p, alignment(bytes));
    return true;
  }

 private:
  static std::align_val_t alignment(int64_t bytes) {
    return std::align_val_t(bytes < kLargePage ? 256 : kLargePage);
  }

  ThreadPool pool_;
  CpuStream compute_;
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int threads) {
  return std::make_unique<CpuDevice>(threads);
}

}  // namespace duet
