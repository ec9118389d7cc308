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
#include <condition_variable>
#include <cstdlib>
#include <deque>
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

// One recording of an event. Shared by the event and by the work that will set it or waits for it.
class Mark {
 public:
  void set(std::exception_ptr error) {
    {
      std::lock_guard lock(mutex_);
      seconds_ = seconds_now();
      error_ = error;
      done_ = true;
    }
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_; });
    if (error_) std::rethrow_exception(error_);
  }
  bool done() const {
    std::lock_guard lock(mutex_);
    return done_;
  }
  double seconds() const {
    std::lock_guard lock(mutex_);
    return seconds_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  double seconds_ = 0;
  std::exception_ptr error_;
};

struct CpuEvent final : Event {
  std::shared_ptr<Mark> mark;
  bool done() const override { return !mark || mark->done(); }
  void synchronize() override {
    if (mark) mark->wait();
  }
  double seconds() const override { return mark ? mark->seconds() : 0; }
};

// What a stream can do, done at once on the calling thread and a pool.
class CpuStream : public Stream {
 public:
  CpuStream(Device& device, ThreadPool& pool) : device_(device), pool_(pool) {}
  Device& device() override { return device_; }

  void record(Event& event) override {
    auto& mark = static_cast<CpuEvent&>(event).mark;
    mark = std::make_shared<Mark>();
    mark->set(nullptr);
  }
  void wait(Event& event) override { event.synchronize(); }
  void synchronize() override {}

  void launch(
      const RowKernel& kernel, int64_t rows, const void* args, size_t, int64_t row_cost) override {
    DUET_CHECK(kernel.cpu != nullptr, kernel.name,
        ": this row operation is not built for the CPU and this dtype");
    const int64_t cost = std::max<int64_t>(row_cost, 1);
    const int64_t piece = std::max({int64_t(1), kInlineCost / 2 / cost, rows / (4 * pool_.size())});
    pool_.parallel_for(rows, rows * cost < kInlineCost ? rows : piece,
        [&](int64_t begin, int64_t end) { kernel.cpu(begin, end, args); });
  }
  void copy(void* dst, const void* src, size_t bytes) override {
    pool_.parallel_for(int64_t(bytes), kCopyPiece, [&](int64_t begin, int64_t end) {
      memcpy(static_cast<char*>(dst) + begin, static_cast<const char*>(src) + begin,
          size_t(end - begin));
    });
  }
  void zero(void* dst, size_t bytes) override {
    pool_.parallel_for(int64_t(bytes), kCopyPiece, [&](int64_t begin, int64_t end) {
      memset(static_cast<char*>(dst) + begin, 0, size_t(end - begin));
    });
  }
  void host(std::function<void()> work) override { work(); }

 private:
  Device& device_;
  ThreadPool& pool_;
};

// A stream with a thread of its own: every method puts work into the queue.
class CpuQueueStream final : public Stream {
 public:
  explicit CpuQueueStream(Device& device)
      : device_(device), now_(device, alone_), thread_([this] { run(); }) {}
  ~CpuQueueStream() override {
    push(nullptr);
    thread_.join();
  }
  Device& device() override { return device_; }

  void record(Event& event) override {
    auto mark = std::make_shared<Mark>();
    static_cast<CpuEvent&>(event).mark = mark;
    push([this, mark] { mark->set(error_); }, true);
  }
  void wait(Event& event) override {
    if (auto mark = static_cast<CpuEvent&>(event).mark) push([mark] { mark->wait(); });
  }
  void synchronize() override {
    auto mark = std::make_shared<Mark>();
    push([this, mark] { mark->set(std::exchange(error_, nullptr)); }, true);
    mark->wait();
  }
  void launch(const RowKernel& kernel, int64_t rows, const void* args, size_t args_bytes,
      int64_t row_cost) override {
    const auto* p = static_cast<const std::byte*>(args);
    push([this, kernel, rows, row_cost, copied = std::vector<std::byte>(p, p + args_bytes)] {
      now_.launch(kernel, rows, copied.data(), copied.size(), row_cost);
    });
  }
  void copy(void* dst, const void* src, size_t bytes) override {
    push([=, this] { now_.copy(dst, src, bytes); });
  }
  void zero(void* dst, size_t bytes) override {
    push([=, this] { now_.zero(dst, bytes); });
  }
  void host(std::function<void()> work) override { push(std::move(work)); }

 private:
  struct Item {
    std::function<void()> work;  // null: the stream ends
    bool always;                 // done after a failure too
  };
  void push(std::function<void()> work, bool always = false) {
    {
      std::lock_guard lock(mutex_);
      queue_.push_back({std::move(work), always});
    }
    pushed_.notify_one();
  }
  void run() {
    for (;;) {
      std::unique_lock lock(mutex_);
      pushed_.wait(lock, [&] { return !queue_.empty(); });
      Item item = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      if (!item.work) return;
      if (error_ && !item.always) continue;
      try {
        item.work();
      } catch (...) {
        error_ = std::current_exception();
      }
    }
  }

  Device& device_;
  ThreadPool alone_{1};
  CpuStream now_;
  std::mutex mutex_;
  std::condition_variable pushed_;
  std::deque<Item> queue_;
  std::exception_ptr error_;  // of the stream's thread
  std::thread thread_;
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
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<CpuQueueStream>(*this); }
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
