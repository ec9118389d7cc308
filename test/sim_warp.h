// SimWarp: 32 simulated lanes that run the very row code of the CUDA kernels on a machine without a
// GPU.
//
//   EXPECT_EQ(SimWarp::run([&](SimWarp g) { RmsNormF::row<float>(g, r, args); }), "");
//
// Each lane is a fiber that runs alone until it calls a collective, where it waits until all 32
// have called it. So a lane that leaves early, or calls another collective than the rest, is found:
// run() says which, where a GPU would hang or be wrong. Lanes run in ascending order in one run and
// in descending order in the next, so that a lane which reads what another one wrote without a sync
// between them sees both worlds. Sums go through the same butterfly as Warp's
// (model/machine/group.h). Not simulated: the memory model. Every collective orders memory here; on
// a GPU only sync does.
#pragma once
#include <ucontext.h>

#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/base/check.h"
#include "model/machine/group.h"

namespace duet {

class SimWarp {
 public:
  static constexpr int size = 32;
  int lane() const { return lane_; }
  template <class V> V sum(V x) const {
    return butterfly("sum", x, [](V a, V b) { return a + b; });
  }
  template <class V> V max(V x) const {
    return butterfly("max", x, [](V a, V b) { return a > b ? a : b; });
  }
  template <class V> Best<V> best(Best<V> x) const {
    return butterfly("best", x, [](Best<V> a, Best<V> b) { return better(a, b); });
  }
  void sync() const { machine_->meet("sync", lane_); }

  // Runs row(SimWarp) on 32 lanes. Returns "" or how they diverged.
  template <class Row> static std::string run(Row row) {
    static Machine machine;  // its stacks are used again
    return machine.run([&](int lane) { row(SimWarp(machine, lane)); });
  }

 private:
  using Slot = std::array<std::byte, 16>;  // a value that a lane brings to a collective
  using Slots = std::array<Slot, size>;

  class Machine {
   public:
    Machine() : stacks_(new Stack[size]) {}

    std::string run(std::function<void(int)> row) {
      row_ = std::move(row);
      descending_ = !descending_;
      for (int l = 0; l < size; ++l) {
        at_[l] = "";
        met_[l] = 0;
        getcontext(&fiber_[l]);
        fiber_[l].uc_stack.ss_sp = stacks_[l].data();
        fiber_[l].uc_stack.ss_size = stacks_[l].size();
        fiber_[l].uc_link = &scheduler_;
        const auto self = reinterpret_cast<uintptr_t>(this);
        makecontext(&fiber_[l], reinterpret_cast<void (*)()>(&Machine::enter), 3, int(self >> 32),
            int(self), l);
      }
      for (;;) {
        for (int i = 0; i < size; ++i) {
          const int l = descending_ ? size - 1 - i : i;
          swapcontext(&scheduler_, &fiber_[l]);
        }
        for (int l = 1; l < size; ++l)
          if (at_[l] != at_[0])
            return cat("lanes diverge: lane 0 is at ", at_[0], ", lane ", l, " at ", at_[l]);
        if (at_[0] == "the end") return "";
      }
    }

    // A lane waits here for the others. Two sets of slots: a lane may write its next value while
    // others still read this one's.
    const Slots& meet(const char* collective, int lane, const Slot& value = {}) {
      Slots& slots = slots_[met_[lane]++ % 2];
      slots[lane] = value;
      at_[lane] = collective;
      swapcontext(&fiber_[lane], &scheduler_);
      return slots;
    }

   private:
    using Stack = std::array<std::byte, 256 << 10>;
    static void enter(int high, int low, int lane) {
      auto* self = reinterpret_cast<Machine*>(uintptr_t(unsigned(high)) << 32 | unsigned(low));
      self->row_(lane);
      self->at_[lane] = "the end";
    }
    std::unique_ptr<Stack[]> stacks_;
    ucontext_t scheduler_, fiber_[size];
    std::function<void(int)> row_;
    std::string at_[size];  // the collective at which a lane waits
    int met_[size];         // how many it has met
    Slots slots_[2];
    bool descending_ = true;
  };

  SimWarp(Machine& machine, int lane) : machine_(&machine), lane_(lane) {}

  template <class V, class Combine>
  V butterfly(const char* collective, V x, Combine combine) const {
    Slot slot{};
    static_assert(sizeof x <= sizeof slot);
    memcpy(slot.data(), &x, sizeof x);
    const Slots& slots = machine_->meet(collective, lane_, slot);
    V v[size], w[size];
    for (int l = 0; l < size; ++l) memcpy(&v[l], slots[l].data(), sizeof(V));
    for (int d = size / 2; d > 0; d /= 2) {
      for (int l = 0; l < size; ++l) w[l] = combine(v[l], v[l ^ d]);
      memcpy(v, w, sizeof v);
    }
    return v[lane_];
  }

  Machine* machine_;
  int lane_;
};

}  // namespace duet
