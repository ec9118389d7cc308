// Fuzzing: each reader of bytes that come from outside, fed with mutations of right files, under
// sanitizers (`make fuzz`). A target takes one input and returns, or throws UsageError of one line;
// whatever else happens is a fault.
//
//   targets.cpp       the readers
//   command_line.cpp  the options and TOML, by main.cu itself
//   seeds.cpp         right inputs, made by duet's own writers
//   fuzz.cpp          the entry points of libFuzzer
//   loop.cpp          stands in for libFuzzer where the compiler has none
//
// Read next: targets.cpp.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace duet {

struct Target {
  const char* name;
  void (*run)(std::string_view input);
  std::vector<std::string> (*seeds)();
  bool many_lines = false;  // a refusal may draw a picture below its first line
};
const std::vector<Target>& targets();

// The path of a file of this name with these bytes, in a folder of this process.
std::string as_file(std::string_view bytes, const std::string& name);

// Fails where the text is not one line of at most 2000 bytes. Control characters are main.cu's
// business, and looked for there (command_line.cpp).
void expect_one_line(const std::string& text, std::string_view input);
// Ends the process, and the fuzzer keeps the input.
[[noreturn]] void fault(const std::string& what, std::string_view input);

void run_command_line(std::string_view input);

std::vector<std::string> schedule_seeds();
std::vector<std::string> json_seeds();
std::vector<std::string> loads_seeds();
std::vector<std::string> safetensors_seeds();
std::vector<std::string> config_seeds();
std::vector<std::string> trainer_seeds();
std::vector<std::string> done_seeds();
std::vector<std::string> shard_seeds();
std::vector<std::string> text_seeds();
std::vector<std::string> tokenizer_seeds();
std::vector<std::string> command_line_seeds();
std::vector<std::string> analyze_seeds();

}  // namespace duet
