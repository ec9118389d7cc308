// The arenas, initial values and the optimizer's launches. See param.h.
#include "model/param.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/base/hash.h"
#include "model/machine/launch.h"
#include "model/machine/thread_pool.h"
#include "model/rows/list.h"

namespace duet {

constexpr int64_t kMadeAtOnce = 4 << 20;  // initial values, on their way through host memory

Param& Params::matrix(const std::string& name, int64_t in, int64_t out) {
  return all_.emplace_back(
      Param{.name = name, .rows = in, .cols = out, .transposed = true, .decay = true});
}

Param& Params::vector(const std::string& name, int64_t n, Init init, bool trained) {
  return all_.emplace_back(
      Param{.name = name, .rows = 1, .cols = n, .init = init, .trained = trained});
}

Param& Params::table(const std::string& name, int64_t rows, int64_t cols) {
  return all_.emplace_back(Param{.name = name, .rows = rows, .cols = cols});
}

void Params::place(Device& device, Dtype dtype) {
  const Dtype acc = acc_dtype(dtype);
  elements_ = 0;
  for (Param& p : all_) {
    p.offset = elements_;
    elements_ += stride(p.rows, p.cols);
  }
  weight_ = device.buffer(1, elements_, dtype, Use::weights);
  if (acc != dtype) master_ = device.buffer(1, elements_, acc, Use::weights);
  grad_ = device.buffer(1, elements_, Dtype::f64, Use::gradients);
  m_ = device.buffer(1, elements_, acc, Use::moments);
  v_ = device.buffer(1, elements_, acc, Use::moments);
  for (Param& p : all_) {
    const auto part = [&](const Buf& arena) {
      return arena->col_slice(p.offset, p.rows * p.cols).reshape(p.rows, p.cols);
    };
    p.weight = part(weight_);
    p.master = master_ ? part(master_) : p.weight;
    p.grad = part(grad_);
    p.m = part(m_);
    p.v = part(v_);
  }
}

void Params::allocate(Device& device, Dtype dtype, uint64_t seed) {
  if (all_.empty()) return;
  place(device, dtype);
  Stream& stream = device.compute();
  for (const Buf* arena : {&weight_, &master_, &grad_, &m_, &v_})
    if (*arena) stream.zero((*arena)->data, (*arena)->bytes());

  std::vector<int32_t> begin, count, decay;
  for (const Param& p : all_) {
    if (!p.trained) continue;
    for (int64_t i = 0; i < p.rows * p.cols; i += kBlockSize) {
      begin.push_back(int32_t((p.offset + i) / kBlockAlign));
      count.push_back(int32_t(std::min(kBlockSize, p.rows * p.cols - i)));
      decay.push_back(p.decay);
    }
  }
  block_begin_ = device.upload(begin, Use::scratch);
  block_count_ = device.upload(count, Use::scratch);
  block_decay_ = device.upload(decay, Use::scratch);
  blocks_ = {block_begin_, block_count_, block_decay_};
  squares_ = device.buffer(int64_t(begin.size()), 2, Dtype::f64, Use::scratch);
  squares_host_ = device.host_buffer(2, 2 * int64_t(begin.size()), Dtype::f64);
  memset(squares_host_->data, 0, size_t(squares_host_->bytes()));
  initialize(device, seed);
  masters_changed(stream);
}

// On the host, where all devices' values have the same bits; on all of the rank's cores.
void Params::initialize(Device& device, uint64_t seed) {
  ThreadPool pool(device.threads());
  for (const Param& p : all_) {
    if (p.init == Init::zeros) continue;
    const InitialNormal normal(seed, p.name);
    const int64_t size = p.rows * p.cols, part = std::min(size, kMadeAtOnce);
    const Buf host = device.host_buffer(1, part, p.master.dtype);
    for (int64_t at = 0; at < size; at += part) {
      const int64_t n = std::min(part, size - at);
      pool.parallel_for(n, kBlockSize, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          host->set(i, p.init == Init::ones ? 1.0 : normal(at + i));
      });
      const Tensor to = p.master.reshape(1, size).col_slice(at, n);
      device.compute().copy(to.data, host->data, size_t(to.bytes()));
      device.compute().synchronize();
    }
  }
}

void Params::zero_grad(Stream& stream) {
  if (grad_) stream.zero(grad_->data, size_t(grad_->bytes()));
}

void Params::look(Stream& stream, Look when) {
  launch<SumSquares>(
      stream, squares_->rows, {.x = weight_, .grad = grad_, .sum = squares_, .blocks = blocks_});
  stream.copy(
      squares_host_->row_slice(int64_t(when), 1).data, squares_->data, size_t(squares_->bytes()));
}

std::vector<double> Params::squares() const {
  std::vector<double> sums;
  const double* block = squares_host_->row<double>(int64_t(Look::finished));
  for (const Param& p : all_) {
    if (!p.trained) continue;
    double sum = 0;
    for (int64_t i = 0; i < p.rows * p.cols; i += kBlockSize, block += 2) sum += *block;
    sums.push_back(sum);
  }
  return sums;
}

double Params::largest_gradient() const {
  double largest = 0;
  for (int64_t i = 1; i < squares_host_->size(); i += 2)
    largest = std::max(largest, squares_host_->get(i));
  return largest;
}

void Params::adamw(Stream& stream, const AdamWOptions& o, double clip, int64_t step) {
  ++changes_;
  launch<AdamW>(stream, squares_->rows,
      {.x = weight_,
          .master = master_ ? *master_ : *weight_,
          .grad = grad_,
          .m = m_,
          .v = v_,
          .blocks = blocks_,
          .clip = clip,
          .options = o,
          .correct1 = 1 / (1 - std::pow(o.beta1, double(step))),
          .correct2 = 1 / (1 - std::pow(o.beta2, double(step)))});
}

void Params::masters_changed(Stream& stream) {
  ++changes_;
  if (!master_) return;
  launch<CastRows>(stream, elements_ / kBlockAlign,
      {.x = weight_->reshape(elements_ / kBlockAlign, kBlockAlign),
          .from = master_->reshape(elements_ / kBlockAlign, kBlockAlign)});
}

InitialNormal::InitialNormal(uint64_t seed, const std::string& name) : key_(splitmix(seed)) {
  for (unsigned char c : name) key_ = splitmix(key_ ^ c);
}

double InitialNormal::operator()(int64_t i) const {
  const uint64_t a = splitmix(key_ ^ splitmix(2 * uint64_t(i))),
                 b = splitmix(key_ ^ splitmix(2 * uint64_t(i) + 1));
  const double u = (double(a >> 11) + 1) * 0x1p-53, v = double(b >> 11) * 0x1p-53;  // u in (0, 1]
  return 0.02 * std::sqrt(-2 * std::log(u)) * std::cos(2 * M_PI * v);
}

}  // namespace duet
