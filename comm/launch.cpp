// What a rank can know before it has spoken to another: who started it, and which build on which processor it is.
// Read next: mpi_mpi.cpp.
#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "comm/transport.h"

namespace duet {

// The innermost launcher comes first: mpirun inside a Slurm job starts its processes through srun. SLURM_STEP_NUM_TASKS is
// srun's; SLURM_NTASKS would also be there in a batch script, which is one process.
Launch find_launch(const std::function<const char*(const char*)>& getenv) {
  constexpr const char* launchers[][2] = {
      {"OMPI_COMM_WORLD_SIZE", "mpirun"}, {"PMI_SIZE", "mpiexec"}, {"SLURM_STEP_NUM_TASKS", "srun"}};
  for (const auto& [variable, name] : launchers)
    if (const char* value = getenv(variable)) return {name, std::max(1, atoi(value))};
  return {};
}

Launch find_launch() {
  return find_launch([](const char* name) -> const char* { return std::getenv(name); });
}

namespace {

std::string instruction_set() {
#if defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#elif defined(__ARM_FEATURE_SVE)
  return "SVE";
#elif defined(__ARM_NEON)
  return "NEON";
#else
  return "portable";
#endif
}

std::string processor_features() {
#if defined(__x86_64__)
  return cat(__builtin_cpu_supports("avx2") ? " avx2" : "", __builtin_cpu_supports("fma") ? " fma" : "",
             __builtin_cpu_supports("avx512f") ? " avx512f" : "");
#else
  return "";
#endif
}

// FNV-1a over the program's words; 0 where the system does not show it.
uint64_t program_hash() {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  uint64_t hash = 0xcbf29ce484222325u, any = 0;
  std::vector<uint64_t> words(1 << 16);
  while (file) {
    file.read(reinterpret_cast<char*>(words.data()), std::streamsize(words.size() * 8));
    for (std::streamsize i = 0; i < file.gcount() / 8; i++) hash = (hash ^ words[size_t(i)]) * 0x100000001b3u;
    any |= uint64_t(file.gcount());
  }
  return any ? hash : 0;
}

}  // namespace

std::string build_text() {
  return cat("compiler ", __VERSION__, ", built for ", instruction_set(), ", processor:", processor_features(), ", program ",
             std::hex, program_hash());
}

}  // namespace duet
