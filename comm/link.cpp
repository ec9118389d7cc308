// See link.h.
#include "comm/link.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "model/base/check.h"
#include "model/base/text.h"

namespace duet {
namespace {

std::string bandwidth_text(double bytes_per_s) {
  for (const Unit& u : kBandwidths)
    if (bytes_per_s >= u.value)
      return std::isinf(bytes_per_s) ? "no limit" : cat(bytes_per_s / u.value, " ", u.name);
  return cat(bytes_per_s, " B/s");
}

std::chrono::nanoseconds nanoseconds(double seconds) {
  return std::chrono::nanoseconds(std::llround(seconds * 1e9));
}

}  // namespace

std::chrono::nanoseconds LinkModel::duration(int from, int to, int64_t bytes) const {
  return nanoseconds(double(bytes) / (same_node(from, to) ? intra : inter));
}

std::chrono::nanoseconds LinkModel::delay() const { return nanoseconds(latency); }

bool LinkModel::emulated() const {
  return std::isfinite(intra) || std::isfinite(inter) || latency > 0;
}

std::string LinkModel::text() const {
  return cat(bandwidth_text(intra), " within a node, ", bandwidth_text(inter),
      " between nodes, latency ", latency * 1e6, " us");
}

LinkModel parse_link(const std::string& text) {
  LinkModel model;
  read_keys("--link", text,
      "intra= and inter= with GB/s, MB/s or KB/s, at least 1KB/s, latency= with s, ms, us or ns, "
      "at most 1s, e.g. intra=160GB/s,inter=40GB/s,latency=5us",
      [&](const std::string& key, const std::string& value) {
        const bool latency = key == "latency";
        if (!latency && key != "intra" && key != "inter") return false;
        const auto x = latency ? parse_quantity(value, kTimes) : parse_quantity(value, kBandwidths);
        (latency ? model.latency : key == "intra" ? model.intra : model.inter) = x.value_or(-1);
        return x && (latency ? *x >= 0 && *x <= 1 : *x >= 1e3);
      });
  return model;
}

// --- the times at which a direction is taken -----------------------------------------------------

namespace {

using Taken = std::map<Time, Time>;

// The end of what has the direction at `t`; `t` itself where nothing has.
Time free_from(const Taken& taken, Time t) {
  const auto next = taken.upper_bound(t);
  return next == taken.begin() ? t : std::max(t, std::prev(next)->second);
}

// Where the free time around `t` ends.
Time free_until(const Taken& taken, Time t) {
  const auto next = taken.upper_bound(t);
  return next == taken.end() ? Time::max() : next->first;
}

// Takes the free time [begin, end), joined to its neighbours.
void take(Taken& taken, Time begin, Time end) {
  auto next = taken.upper_bound(begin);
  if (next != taken.end() && next->first == end) {
    end = next->second;
    next = taken.erase(next);
  }
  if (next != taken.begin() && std::prev(next)->second == begin)
    std::prev(next)->second = end;
  else
    taken.emplace(begin, end);
}

void forget_before(Taken& taken, Time now) {
  while (!taken.empty() && taken.begin()->second <= now) taken.erase(taken.begin());
}

}  // namespace

Time Links::send(int from, int to, int64_t bytes, Time now) {
  std::lock_guard lock(mutex_);
  now_ = std::max(now_, now);
  Taken &out = out_[size_t(from)], &in = in_[size_t(to)];
  forget_before(out, now_);
  forget_before(in, now_);

  auto left = model_.duration(from, to, bytes);
  Time t = now_;
  while (left.count() > 0) {
    const Time free = free_from(in, free_from(out, t));
    if (free > t) {  // one of them; the other may be taken there
      t = free;
      continue;
    }
    const Time end = std::min({t + left, free_until(out, t), free_until(in, t)});
    take(out, t, end);
    take(in, t, end);
    left -= end - t;
    t = end;
  }
  return t + model_.delay();
}

}  // namespace duet
