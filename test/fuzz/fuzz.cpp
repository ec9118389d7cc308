// The entry points of libFuzzer, which loop.cpp calls too:
//
//   fuzz --list                      the targets
//   fuzz --seeds=TARGET FOLDER       writes right inputs to begin with
//   fuzz --target=TARGET ...         libFuzzer's options follow
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "model/base/check.h"
#include "test/fuzz/fuzz.h"

namespace duet {

const std::vector<Target>& targets();
static const Target* chosen = nullptr;

static const Target& find_target(const std::string& name) {
  for (const Target& t : targets())
    if (name == t.name) return t;
  std::cerr << "no target " << name << "; --list names them\n";
  std::exit(2);
}

std::string as_file(std::string_view bytes, const std::string& name) {
  static const std::string folder = [] {
    const char* base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    std::string path = cat(base, "/duet-fuzz-XXXXXX");
    if (!mkdtemp(path.data())) std::abort();
    static const std::string kept = path;
    std::atexit([] { std::filesystem::remove_all(kept); });
    return path;
  }();
  const std::string path = folder + "/" + name;
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

void fault(const std::string& what, std::string_view input) {
  std::cerr << "fault of target " << chosen->name << ": " << what << "\ninput of " << input.size()
            << " bytes\n";
  std::abort();
}

void expect_one_line(const std::string& text, std::string_view input) {
  if (text.size() > 2000) fault(cat("a refusal of ", text.size(), " bytes: ", text), input);
  if (text.find('\n') != text.npos) fault("a refusal of several lines: " + text, input);
}

}  // namespace duet

using namespace duet;

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  const std::string_view first = *argc > 1 ? (*argv)[1] : "";
  if (first == "--list") {
    for (const Target& t : targets()) std::cout << t.name << "\n";
    std::exit(0);
  }
  if (first.starts_with("--seeds=") && *argc == 3) {
    const Target& target = find_target(std::string(first.substr(8)));
    std::filesystem::create_directories((*argv)[2]);
    int n = 0;
    for (const std::string& seed : target.seeds())
      std::ofstream(cat((*argv)[2], "/seed-", n++), std::ios::binary) << seed;
    std::exit(0);
  }
  if (!first.starts_with("--target=")) {
    std::cerr << "usage: " << (*argv)[0]
              << " --list | --seeds=TARGET FOLDER | --target=TARGET ...\n";
    std::exit(2);
  }
  chosen = &find_target(std::string(first.substr(9)));
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  try {
    chosen->run(input);
  } catch (const UsageError& refused) {
    const std::string text = refused.what();
    expect_one_line(chosen->many_lines ? text.substr(0, text.find('\n')) : text, input);
  } catch (const std::exception& e) {
    fault(cat("neither taken nor refused: ", e.what()), input);
  }
  return 0;
}
