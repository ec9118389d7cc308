// The studies behind figures in the READMEs, beside duet and not in it:
//
//   study eplb           the tables of moe/README.md       (make study)
//   study gemm THREADS   GFLOP/s of the CPU's products     (make bench)
//
// Read next: eplb_study.h, gemm_bench.h.
#include <cstdlib>
#include <iostream>
#include <string>

#include "test/study/eplb_study.h"
#include "test/study/gemm_bench.h"

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  const int threads = argc > 2 ? std::atoi(argv[2]) : 0;
  if (what == "eplb" && argc == 2) {
    duet::print_policy_study(std::cout);
    std::cout << '\n';
    duet::print_drift_study(std::cout, {});
    std::cout << '\n';
    duet::print_drift_study(std::cout, {.drift = 0});
  } else if (what == "gemm" && argc == 3 && threads >= 1) {
    duet::bench_gemm(threads, std::cout);
  } else {
    std::cerr << "study: expected 'eplb' or 'gemm THREADS'\n";
    return 2;
  }
  return 0;
}
