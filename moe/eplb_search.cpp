// See eplb_search.h.
#include "moe/eplb_search.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace duet {

namespace {

class Search {
 public:
  Search(const EplbDomain& domain, std::vector<int> start)
      : domain_(domain), expert_(std::move(start)), slot_share_(expert_.size()),
        share_(domain.load.size()), at_(domain.load.size()),
        has_(size_t(domain.gpus) * domain.load.size()), gpu_(size_t(domain.gpus)),
        now_(size_t(domain.gpus)), home_count_(domain.home.size()) {
    const double sum = domain_.total();
    if (sum > 0) inverse_mean_ = domain_.gpus / sum;
    for (int p = 0; p < int(expert_.size()); ++p) at_[expert_[p]].push_back(p);
    for (int e = 0; e < int(at_.size()); ++e) {
      share_[e] = domain_.load[e] / double(at_[e].size());
      for (int p : at_[e]) {
        slot_share_[p] = share_[e];
        count(p, e, 1);
      }
    }
    for (size_t g = 0; g < gpu_.size(); ++g) now_[g] = potential(gpu_[g]);
    best_ = {expert_, *std::max_element(gpu_.begin(), gpu_.end())};
  }

  EplbFound run(double target, int64_t work) {
    if (inverse_mean_ == 0) return best_;
    for (work_ = 0; best_.max_load > target && work_ < work;) {
      if (descend()) {
        const double busiest = *std::max_element(gpu_.begin(), gpu_.end());
        if (busiest < best_.max_load) best_ = {expert_, busiest};
      } else {
        kick();
        work_ += 100;
      }
    }
    return best_;
  }

 private:
  struct Step {
    double gain = 1e-13;  // of the objective; a step must gain more
    int slot = -1;
    int other = -1;   // swap: the other slot
    int expert = -1;  // retarget: the expert to take
  };
  double potential(double load) const {
    const double x = load * inverse_mean_, x2 = x * x, x4 = x2 * x2, x8 = x4 * x4;
    return x8 * x8;
  }

  // Whether the slot's expert may go to another GPU, or nowhere (-1), as far as its home is
  // concerned.
  bool may_leave(int slot, int to_gpu) const {
    const int e = expert_[slot], home = domain_.home[e];
    return slot / domain_.slots / domain_.gpus_per_node != home || home_count_[e] > 1 ||
        (to_gpu >= 0 && to_gpu / domain_.gpus_per_node == home);
  }

  // For each other GPU the pair of slots whose exchange comes closest to levelling the two; of
  // these the best.
  void try_swaps(int g, Step& best) {
    const int slots = domain_.slots, n = int(share_.size());
    const double* mine = &slot_share_[g * slots];
    work_ += int64_t(domain_.gpus) * slots * slots;
    for (int h = 0; h < domain_.gpus; ++h) {
      if (h == g) continue;
      const double* theirs = &slot_share_[h * slots];
      const double half = (gpu_[g] - gpu_[h]) / 2;
      double distance = std::fabs(half) * (1 - 1e-9);
      int a = -1, b = -1;
      for (int i = 0; i < slots; ++i) {
        for (int j = 0; j < slots; ++j) {
          const double off = std::fabs(mine[i] - theirs[j] - half);
          if (off >= distance) continue;
          const int e = expert_[g * slots + i], f = expert_[h * slots + j];
          if (has_[h * n + e] || has_[g * n + f] || !may_leave(g * slots + i, h) ||
              !may_leave(h * slots + j, g))
            continue;
          distance = off;
          a = i;
          b = j;
        }
      }
      if (a < 0) continue;
      const double d = mine[a] - theirs[b];
      const double gain = now_[g] + now_[h] - potential(gpu_[g] - d) - potential(gpu_[h] + d);
      if (gain > best.gain) best = {gain, g * slots + a, h * slots + b, -1};
    }
  }

  double retarget_gain(int slot, int f) const {
    const int e = expert_[slot], g = slot / domain_.slots;
    const double more = domain_.load[e] / double(at_[e].size() - 1) - share_[e];
    const double share_f = domain_.load[f] / double(at_[f].size() + 1), less = share_f - share_[f];
    double gain = now_[g] - potential(gpu_[g] - share_[e] + share_f);
    for (int p : at_[e]) {
      const int h = p / domain_.slots;
      if (h == g) continue;
      const double change = more + (has_[size_t(h) * share_.size() + f] ? less : 0);
      gain += now_[h] - potential(gpu_[h] + change);
    }
    for (int p : at_[f]) {
      const int h = p / domain_.slots;
      if (!has_[size_t(h) * share_.size() + e]) gain += now_[h] - potential(gpu_[h] + less);
    }
    return gain;
  }

  // A slot of this GPU takes another expert, or a slot elsewhere takes over part of one of this
  // GPU's experts.
  void try_retargets(int g, Step& best) {
    const int slots = domain_.slots, n = int(share_.size());
    const auto consider = [&](int slot, int f) {
      if (has_[slot / slots * n + f]) return;
      const double gain = retarget_gain(slot, f);
      work_ += 10 + 5 * int64_t(at_[expert_[slot]].size() + at_[f].size());
      if (gain > best.gain) best = {gain, slot, -1, f};
    };
    for (int p = 0; p < int(expert_.size()); ++p) {
      const int e = expert_[p];
      if (at_[e].size() < 2 || has_[p / slots * n + e] > 1 || !may_leave(p, -1)) continue;
      if (p / slots == g) {
        for (int f = 0; f < n; ++f) consider(p, f);
      } else {
        for (int i = 0; i < slots; ++i) consider(p, expert_[g * slots + i]);
      }
    }
  }

  // A replica of e appears in a slot (1), or leaves it (-1).
  void count(int p, int e, int change) {
    const int g = p / domain_.slots;
    gpu_[g] += change * share_[e];
    has_[size_t(g) * share_.size() + size_t(e)] += change;
    if (g / domain_.gpus_per_node == domain_.home[e]) home_count_[e] += change;
  }

  void set_share(int e, double share) {
    for (int p : at_[e]) {
      gpu_[p / domain_.slots] += share - share_[e];
      slot_share_[p] = share;
    }
    share_[e] = share;
  }

  void apply(const Step& step) {
    const auto leave = [&](int p) {
      std::vector<int>& at = at_[expert_[p]];
      at.erase(std::find(at.begin(), at.end(), p));
      count(p, expert_[p], -1);
    };
    const auto enter = [&](int p, int e) {
      expert_[p] = e;
      slot_share_[p] = share_[e];
      at_[e].push_back(p);
      count(p, e, 1);
    };
    const int e = expert_[step.slot], f = step.other >= 0 ? expert_[step.other] : step.expert;
    leave(step.slot);
    if (step.other >= 0) {
      leave(step.other);
      enter(step.other, e);
    } else {
      set_share(e, domain_.load[e] / double(at_[e].size()));
      set_share(f, domain_.load[f] / double(at_[f].size() + 1));
    }
    enter(step.slot, f);
    for (size_t g = 0; g < gpu_.size(); ++g) now_[g] = potential(gpu_[g]);
  }

  bool descend() {
    const int busiest = int(std::max_element(gpu_.begin(), gpu_.end()) - gpu_.begin());
    const int idlest = int(std::min_element(gpu_.begin(), gpu_.end()) - gpu_.begin());
    Step best;
    for (int gpu : {busiest, idlest}) {
      if (best.slot < 0) try_swaps(gpu, best);
      if (best.slot < 0) try_retargets(gpu, best);
    }
    if (best.slot < 0) return false;
    apply(best);
    return true;
  }

  void kick() {
    const int n = int(share_.size()), slots = domain_.slots;
    for (int tries = 0, done = 0; tries < 30 && done < 2; ++tries) {
      const int p = int(random_() % expert_.size()), q = int(random_() % expert_.size());
      const int e = expert_[p], f = expert_[q], g = p / slots, h = q / slots;
      if (g == h || e == f || has_[g * n + f]) continue;
      if (tries % 2 && at_[e].size() > 1 && has_[g * n + e] == 1 && may_leave(p, -1)) {
        apply({0, p, -1, f});
        ++done;
      } else if (!has_[h * n + e] && may_leave(p, h) && may_leave(q, g)) {
        apply({0, p, q, -1});
        ++done;
      }
    }
  }

  const EplbDomain& domain_;
  double inverse_mean_ = 0;
  std::vector<int> expert_;           // [gpus * slots]
  std::vector<double> slot_share_;    // [gpus * slots] what each slot carries
  std::vector<double> share_;         // [experts] load / count
  std::vector<std::vector<int>> at_;  // [experts] the slots of each
  std::vector<uint16_t> has_;         // [gpus, experts] replicas of an expert on a GPU
  std::vector<double> gpu_;           // [gpus] load
  std::vector<double> now_;           // [gpus] its potential
  std::vector<int> home_count_;       // [experts] replicas on the home node
  EplbFound best_;
  int64_t work_ = 0;  // spent so far
  std::minstd_rand random_;
};

}  // namespace

EplbFound eplb_search(
    const EplbDomain& domain, std::vector<int> start, double target, int64_t work) {
  return Search(domain, std::move(start)).run(target, work);
}

}  // namespace duet
