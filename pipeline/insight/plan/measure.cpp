// See measure.h.
#include "pipeline/insight/plan/measure.h"

#include <unistd.h>

#include <algorithm>
#include <functional>
#include <thread>

#include "model/base/clock.h"
#include "model/machine/device.h"

namespace duet {
namespace {

// The best of repetitions over a tenth of a second.
double best_seconds(Device& device, const std::function<void()>& work) {
  double best = 1e30, spent = 0;
  for (int i = 0; i < 3 || spent < 0.1; ++i) {
    const double start = seconds_now();
    work(), device.compute().synchronize();
    const double t = seconds_now() - start;
    best = std::min(best, t), spent += t;
  }
  return best;
}

double product_rate(Device& device, Dtype dtype, int64_t m, int64_t n, int64_t k) {
  const Buf a = device.buffer(m, k, dtype, Use::scratch),
            b = device.buffer(k, n, dtype, Use::scratch),
            c = device.buffer(m, n, dtype, Use::scratch);
  for (const Buf* x : {&a, &b}) device.compute().zero((*x)->data, size_t((*x)->bytes()));
  const Gemm g{.form = Form::NN, .a = a, .b = b, .c = c};
  return 2.0 * double(m) * double(n) * double(k) /
      best_seconds(device, [&] { device.compute().gemm(g); });
}

}  // namespace

Cluster measure_cluster() {
  const bool cuda = cuda_device_count() > 0;
  const auto device = cuda
      ? make_cuda_device(0)
      : make_cpu_device(int(std::max(1u, std::thread::hardware_concurrency())));
  const Dtype dtype = cuda ? Dtype::bf16 : Dtype::f32;
  const int64_t size = cuda ? 8192 : 1024;
  Cluster c = find_cluster("h100");
  c.name = device->name(), c.source = "measured by duet plan --measure";
  std::fill(c.peak.begin(), c.peak.end(), 0.0);
  // rate(k) = fastest / (1 + k_half / k) through two lengths of the inner dimension
  const double fast = product_rate(*device, dtype, size, size, size);
  const double slow = product_rate(*device, dtype, size, size, size / 16);
  c.k_half =
      std::clamp((fast / slow - 1) / (16.0 / double(size) - 1.0 / double(size)), 0.0, 4000.0);
  const size_t p = size_t(cuda ? Precision::bf16 : Precision::fp32);
  const double endless = fast * (1 + c.k_half / double(size));
  c.peak[p] = std::max(device->peak_flops(dtype), endless), c.efficiency[p] = endless / c.peak[p];
  if (!cuda) {  // attention is made of the same products, and nothing runs ahead
    c.sms = 2, c.comm_sms = 0, c.tail_waves = 0, c.hidden = 0, c.other = 0;
    c.attention_f = c.attention_b = 0.5 * c.efficiency[p], c.attention_half = 0;
    c.memory_bytes = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGE_SIZE));
    c.reserved_bytes = 0, c.fragmentation = 0;
  }
  const int64_t cols = int64_t(1) << 20, rows = cuda ? 256 : 64;
  const Buf from = device->buffer(rows, cols, Dtype::f32, Use::scratch),
            to = device->buffer(rows, cols, Dtype::f32, Use::scratch);
  device->compute().zero(from->data, size_t(from->bytes()));
  const double copy = best_seconds(
      *device, [&] { device->compute().copy(to->data, from->data, size_t(from->bytes())); });
  c.hbm_bytes_s = 2 * double(from->bytes()) / copy, c.hbm_efficiency = 1;
  c.launch_s = best_seconds(*device, [&] {
    for (int i = 0; i < 100; ++i) device->compute().zero(to->data, 256);
  }) / 100;
  if (!cuda) {
    c.gpus_per_node = c.nvlink_domain = 1024;
    c.nvlink_bytes_s = c.network_bytes_s = c.hbm_bytes_s / 2;
    c.nvlink_efficiency = c.network_efficiency = 1;
    c.nvlink_latency_s = c.network_latency_s = 20e-6;
  }
  return c;
}

}  // namespace duet
