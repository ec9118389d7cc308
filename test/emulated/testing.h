// What tests on the emulated GPU share: how it behaves for a while.
#pragma once
#include "test/emulated/emulated.h"

namespace duet {

class Behaviour {
 public:
  explicit Behaviour(const emulated::Options& o) { emulated::set(o); }
  Behaviour(const Behaviour&) = delete;
  ~Behaviour() { emulated::set(before_); }

 private:
  const emulated::Options before_ = emulated::options();
};

}  // namespace duet
