// Stands in for libFuzzer where the compiler has none: mutates inputs of the corpus at random, with
// the options that scripts/fuzz.sh gives it. It sees no coverage, so it finds less; what it finds
// it writes to ./crash-input.
#include <signal.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv);
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));

namespace {

std::string input;
constexpr size_t kLongest = 4096;

void keep_input() { std::ofstream("crash-input", std::ios::binary) << input; }

void mutate(std::string& s, const std::vector<std::string>& corpus, std::mt19937& random) {
  static const std::string tokens[] = {"0", "-1", "1", "9223372036854775807", "4294967296", "1e999",
      "nan", "[", "]", "{", "}", "\"", ",", "\n", "\xEF\xBB\xBF", std::string(1, '\0'), "\xff\xff"};
  const size_t at = s.empty() ? 0 : random() % s.size();
  switch (random() % 7) {
    case 0:
      if (!s.empty()) s[at] ^= char(1 << random() % 8);
      break;
    case 1:
      if (!s.empty()) s[at] = char(random());
      break;
    case 2: s.insert(at, tokens[random() % std::size(tokens)]); break;
    case 3: s.erase(at, 1 + random() % 8); break;
    case 4: s.insert(at, s.substr(at, 1 + random() % 32)); break;
    case 5: s.resize(at); break;
    default: {
      const std::string& other = corpus[random() % corpus.size()];
      if (!other.empty()) s.insert(at, other.substr(random() % other.size(), 1 + random() % 64));
    }
  }
  if (s.size() > kLongest) s.resize(kLongest);
}

}  // namespace

int main(int argc, char** argv) {
  LLVMFuzzerInitialize(&argc, &argv);
  signal(SIGABRT, [](int) {
    keep_input();
    signal(SIGABRT, SIG_DFL);
  });
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(keep_input);
  long runs = -1;
  double seconds = 1e9;
  std::vector<std::string> corpus;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.starts_with("-runs=")) runs = std::atol(argv[i] + 6);
    if (argument.starts_with("-max_total_time=")) seconds = std::atof(argv[i] + 16);
    if (argument[0] == '-') continue;
    for (const auto& entry : std::filesystem::directory_iterator(argument)) {
      std::ifstream in(entry.path(), std::ios::binary);
      corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    }
  }
  if (corpus.empty()) corpus.emplace_back();
  std::mt19937 random(1);
  const auto begin = std::chrono::steady_clock::now();
  const auto passed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  long done = 0;
  for (; done != runs && passed() < seconds; ++done) {
    input = corpus[size_t(done) < corpus.size() ? size_t(done) : random() % corpus.size()];
    if (size_t(done) >= corpus.size())
      for (unsigned n = 1 + random() % 6; n > 0; --n) mutate(input, corpus, random);
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  }
  std::cerr << "Done " << done << " runs in " << long(passed()) << " second(s)\n";
}
