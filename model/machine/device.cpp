// See device.h. The memory pool of every Device: buffers of a few sizes per power of two, kept when
// they are given back. How memory is got from the system is the backend's business.
#include "model/machine/device.h"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

namespace duet {
namespace {

constexpr int64_t kSmall = 64 << 10;  // bytes

// Eight sizes per power of two, none closer than 256 bytes: the sizes of dropless experts, which
// change a little with every batch, find the memory of the step before. What is handed out is of
// the next size or, where that is free, of up to a quarter more (below kSmall) or twice as much;
// MemoryStats counts it whole.
int64_t size_class(int64_t bytes) {
  if (bytes <= 256) return 256;
  const int64_t step = std::max<int64_t>(256, int64_t(std::bit_floor(uint64_t(bytes - 1))) / 8);
  return (bytes + step - 1) / step * step;
}

}  // namespace

Buf::~Buf() {
  if (device_) device_->give(*this);
}

void Buf::swap(Buf& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(tensor_, other.tensor_);
  std::swap(capacity_, other.capacity_);
  std::swap(use_, other.use_);
  std::swap(host_, other.host_);
}

Buf Device::buffer(int64_t rows, int64_t cols, Dtype dtype, Use use) {
  return take(rows, cols, dtype, use, false);
}

Buf Device::host_buffer(int64_t rows, int64_t cols, Dtype dtype) {
  return take(rows, cols, dtype, Use::scratch, true);
}

Buf Device::upload(std::span<const int32_t> values, Use use) {
  Buf buf = buffer(int64_t(values.size()), 1, Dtype::i32, use);
  compute().copy(buf->data, values.data(), values.size_bytes());
  return buf;
}

std::unique_ptr<Stream> Device::borrow_stream() {
  const auto idle = std::find_if(
      returned_.begin(), returned_.end(), [](const Returned& r) { return r.idle->done(); });
  if (idle == returned_.end()) return make_stream();
  std::unique_ptr<Stream> stream = std::move(idle->stream);
  returned_.erase(idle);
  return stream;
}

void Device::give_back(std::unique_ptr<Stream> stream) {
  try {
    std::unique_ptr<Event> idle = make_event();
    stream->record(*idle);
    returned_.push_back({std::move(stream), std::move(idle)});
  } catch (const std::exception&) {  // called by a destructor: the stream goes
  }
}

Buf Device::take(int64_t rows, int64_t cols, Dtype dtype, Use use, bool host) {
  DUET_CHECK(rows >= 0 && cols >= 0, "buffer: expected rows and columns >= 0, found [", rows, ", ",
      cols, "]");
  const int64_t need = size_class(rows * cols * dtype_size(dtype));
  Buf buf;
  // The smallest that fits, unless it is so large that whoever it was made for would soon have to
  // make it again; of small ones there may be some of every size.
  auto it = free_[host].lower_bound(need);
  const auto last = free_[host].upper_bound(need < kSmall ? need + need / 4 : 2 * need);
  while (it != last && it->second.empty()) ++it;
  if (it != last) {
    buf.capacity_ = it->first;
    buf.tensor_.data = it->second.back();
    it->second.pop_back();
  } else {
    try {
      buf.tensor_.data = allocate(need, host);
    } catch (...) {  // the memory there is may lie in the pool, in parts of other sizes
      drain_pool(host);
      buf.tensor_.data = allocate(need, host);
    }
    buf.capacity_ = need;
    if (!host) pool_bytes_ += need;
  }
  buf.tensor_ = {buf.tensor_.data, dtype, rows, cols, cols};
  buf.device_ = this;
  buf.use_ = use;
  buf.host_ = host;
  if (!host) {
    MemoryStats& s = stats_[int(use)];
    s.now += buf.capacity_;
    s.peak = std::max(s.peak, s.now);
  }
  return buf;
}

void Device::give(Buf& buf) {
  if (!buf.host_) stats_[int(buf.use_)].now -= buf.capacity_;
  try {
    free_[buf.host_][buf.capacity_].push_back(buf.tensor_.data);
  } catch (const std::bad_alloc&) {  // called by a destructor: the system gets it instead
    release(buf.tensor_.data, buf.capacity_, buf.host_);
    if (!buf.host_) pool_bytes_ -= buf.capacity_;
  }
}

void Device::drain_pool(bool host) {
  for (auto& [bytes, pieces] : free_[host])
    std::erase_if(pieces, [&, size = bytes](void* piece) {
      if (!release(piece, size, host)) return false;
      if (!host) pool_bytes_ -= size;
      return true;
    });
}

}  // namespace duet
