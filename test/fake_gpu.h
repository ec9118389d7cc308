// A device that says it is a GPU and has none: its memory is the host's, and its streams, compute()
// too, are threads. What comm/ does for GPUs (copies behind events) is tested with it where there
// is no GPU. A kernel that is for GPUs only gets the Stream in place of a CUDA stream, as
// test/fake_nccl.h expects.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "model/machine/device.h"

namespace duet {

class FakeGpu final : public Device {
 public:
  FakeGpu() : cpu_(make_cpu_device(1)), compute_(make_stream()) {}
  ~FakeGpu() override {
    compute_.reset();
    drain_pool();
  }
  bool is_cuda() const override { return true; }
  std::string name() const override { return "a stand-in for a GPU"; }
  double peak_flops(Dtype) const override { return 0; }
  int64_t attention_bytes() const override { return 1 << 20; }
  Stream& compute() override { return *compute_; }
  std::unique_ptr<Event> make_event() override { return cpu_->make_event(); }
  std::unique_ptr<Stream> make_stream() override {
    return std::make_unique<Queue>(*this, cpu_->make_stream());
  }

 private:
  class Queue final : public Stream {
   public:
    Queue(FakeGpu& device, std::unique_ptr<Stream> thread)
        : device_(device), thread_(std::move(thread)) {}
    Device& device() override { return device_; }
    void record(Event& event) override { thread_->record(event); }
    void wait(Event& event) override { thread_->wait(event); }
    void synchronize() override { thread_->synchronize(); }
    void launch(const RowKernel& kernel, int64_t rows, const void* args, size_t bytes,
        int64_t cost) override {
      if (!kernel.cpu) return kernel.cuda(static_cast<Stream*>(this), rows, args);
      thread_->launch(kernel, rows, args, bytes, cost);
    }
    void gemm(const Gemm& g) override { thread_->gemm(g); }
    void grouped_gemm(const Gemm& g, std::span<const int64_t> offsets) override {
      thread_->grouped_gemm(g, offsets);
    }
    void copy(void* dst, const void* src, size_t bytes) override {
      if (memory().owns(src)) return thread_->copy(dst, src, bytes);
      // ordinary memory, which may be let go at once
      const auto* p = static_cast<const char*>(src);
      std::vector<char> aside(p, p + bytes);
      thread_->host([dst, aside = std::move(aside)] {
        std::copy(aside.begin(), aside.end(), static_cast<char*>(dst));
      });
    }
    void zero(void* dst, size_t bytes) override { thread_->zero(dst, bytes); }
    void host(std::function<void()> work) override { thread_->host(std::move(work)); }

   private:
    FakeGpu& device_;
    std::unique_ptr<Stream> thread_;
  };
  // What is GPU memory, of all these devices: one copies from another's.
  class Memory {
   public:
    void add(const void* p, int64_t bytes) {
      const std::lock_guard lock(mutex_);
      bytes_[static_cast<const char*>(p)] = bytes;
    }
    void remove(const void* p) {
      const std::lock_guard lock(mutex_);
      bytes_.erase(static_cast<const char*>(p));
    }
    bool owns(const void* p) {
      const std::lock_guard lock(mutex_);
      const auto after = bytes_.upper_bound(static_cast<const char*>(p));
      return after != bytes_.begin() && p < std::prev(after)->first + std::prev(after)->second;
    }

   private:
    std::mutex mutex_;
    std::map<const char*, int64_t> bytes_;  // by where it begins
  };
  static Memory& memory() {
    static Memory all;
    return all;
  }
  void* allocate(int64_t bytes, bool) override {
    void* p = std::aligned_alloc(256, size_t(bytes));
    memory().add(p, bytes);
    return p;
  }
  void release(void* p, bool) override {
    memory().remove(p);
    std::free(p);
  }

  std::unique_ptr<Device> cpu_;
  std::unique_ptr<Stream> compute_;
};

}  // namespace duet
