// What a test sees of the emulated GPU: how it behaves, what it counted, and what it holds against
// its users. What it emulates and what it cannot is in README.md; the functions that the product
// calls are declared in cuda_runtime.h, cublas_v2.h and nccl.h. Read next: cuda_runtime.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulated {

// When queued work runs. lazy: only what a host thread waits for. eager: all that can, as soon as
// it can. random: anything legal between the two.
enum class Order { lazy, eager, random };

struct Options {
  int gpus = 1;                      // DUET_EMULATED_GPUS
  uint64_t seed = 1;                 // DUET_EMULATED_SEED
  Order order = Order::random;       // DUET_EMULATED_ORDER
  size_t memory = size_t(16) << 30;  // bytes of each GPU
};
Options options();         // first those of the environment
void set(const Options&);  // while nothing is queued; the scheduler begins again with the seed

// Since the program began, of all GPUs.
struct Counts {
  int64_t launches = 0;         // kernels, cuBLAS's and NCCL's among them
  int64_t gemms = 0;            // of these cuBLAS's
  int64_t unaligned_gemms = 0;  // with an operand or leading dimension off 16 bytes
  int64_t messages = 0;         // NCCL's kernels
  int64_t copies = 0, fills = 0;
  int64_t copied_bytes = 0;
  int64_t synchronisations = 0;  // of a stream, an event, a device
  int64_t queries = 0;           // of an event
  int64_t host_functions = 0;
  int64_t streams = 0, timed_events = 0;  // made
  int64_t allocations = 0;
};
Counts counts();
Counts operator-(const Counts& a, const Counts& b);

// All that the emulation holds against its users since the last call; empty is good. A program that
// ends without having asked gets them on stderr.
std::vector<std::string> complaints();

// Of NCCL.
int live_communicators();
void break_next_operation();  // it ends in an internal error, reported late

}  // namespace emulated
