// The command line from outside, as a user meets it: each wrong input is told in one line which
// option it is, what was found and what is allowed; TOML files; help and version.
//
// The program is the duet that `make test` builds beside this one, from the same objects.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <regex>

#include "model/base/json.h"
#include "test/data_files.h"
#include "test/processes.h"

namespace duet {
namespace {

class CommandLine : public DataFiles {
 protected:
  CommandLine() : duet_(program_path()) { duet_.replace(duet_.rfind("test_duet"), 9, "duet"); }
  void SetUp() override {
    ASSERT_TRUE(std::filesystem::exists(duet_)) << duet_ << ": make test builds it";
  }
  Ended duet(const std::string& arguments) const {
    return run_command(cat("cd '", folder_, "' && '", duet_, "' ", arguments));
  }
  // Exit status 2, one line with all the words, and nothing written.
  void expect_refused(
      const std::string& arguments, const std::vector<std::string>& words, int files = 0) const {
    const Ended e = duet(arguments);
    const std::string what = arguments.substr(0, 200);
    EXPECT_EQ(e.status, 2) << what << "\n" << e.output;
    EXPECT_EQ(std::count(e.output.begin(), e.output.end(), '\n'), 1) << what << "\n" << e.output;
    EXPECT_TRUE(e.output.starts_with("duet: ")) << e.output;
    EXPECT_LT(e.output.size(), 1500u) << what;
    expect_contains(e.output, words);
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), files) << what;
  }
  std::string duet_;
};

struct Wrong {
  const char* arguments;
  std::vector<std::string> words;
};

TEST_F(CommandLine, WrongNumbersAreNamedWithWhatIsAllowed) {
  const std::vector<Wrong> table = {
      // numbers: below, above, beyond 32 and 64 bits, not numbers
      {"train --pp 4294967297", {"--pp: found '4294967297', allowed: 1 to 4096"}},
      {"train --pp 0", {"--pp: found '0', allowed: 1 to 4096"}},
      {"train --microbatches 4294967297", {"--microbatches", "4294967297", "1 to 1048576"}},
      {"train --microbatches 0", {"--microbatches", "'0'", "1 to"}},
      {"train --redundant-experts 9223372036854775807", {"--redundant-experts", "0 to 16384"}},
      {"train --redundant-experts 9223372036854775808", {"--redundant-experts", "0 to 16384"}},
      {"train --steps 99999999999999999999",
          {"--steps", "99999999999999999999", "0 to 1000000000"}},
      {"train --steps 1e3", {"--steps", "'1e3'", "0 to"}},
      {"train --steps ''", {"--steps", "''", "0 to"}},
      {"train --steps 0x10", {"--steps", "'0x10'", "0 to"}},
      {"train --threads -1", {"--threads", "'-1'", "0 to 4096"}},
      {"train --virtual-stages 0", {"--virtual-stages", "'0'", "1 to"}},
      {"train --ranks-per-node -1", {"--ranks-per-node", "'-1'", "0 to"}},
      {"train --dp 4294967296", {"--dp", "0 to 4096"}},
      {"train --ep 0", {"--ep", "1 to 4096"}},
      {"train --seq-len 4294967296", {"--seq-len", "0 to 2147483647"}},
      {"train --eplb-interval 4294967296", {"--eplb-interval", "0 to"}},
      {"train --seed -1", {"--seed", "'-1'"}},
      {"train --lr -1", {"--lr", "'-1'", "0 to 1000"}},
      {"train --lr nan", {"--lr", "'nan'", "0 to 1000"}},
      {"train --comm-timeout 0", {"--comm-timeout", "0.001 to"}},
      {"generate --temperature -1", {"--temperature", "'-1'"}},
      {"generate --tokens -1", {"--tokens", "'-1'"}},
      {"schedule --pp -1", {"--pp", "'-1'", "0 to 4096"}},
      {"schedule --microbatches -2", {"--microbatches", "'-2'"}},
      {"eplb --gpus 0", {"--gpus", "'0'", "1 to 16384"}},
      {"eplb --replicas 1099511627776", {"--replicas", "1099511627776", "1 to 16384"}},
      {"analyze --top -1", {"--top: found '-1', allowed: 0 to 1048576"}},
      {"bench --steps 0", {"--steps", "'0'", "1 to"}},
      {"compare --steps 0", {"--steps", "0", "at least 1"}},
      {"train --threads 1000000", {"--threads: found '1000000', allowed: 0 to 4096"}},
      {"train --dp 100000", {"--dp: found '100000', allowed: 0 to 4096"}},
      {"train --beta2 1", {"--beta2: found '1', allowed: 0 to 0.999999"}},
  };
  for (const Wrong& wrong : table) expect_refused(wrong.arguments, wrong.words);
}

TEST_F(CommandLine, OtherValuesAreNamedWithWhatIsAllowed) {
  const std::vector<Wrong> table = {
      {"train --dtype fp8", {"--dtype: found 'fp8', allowed: fp32, bf16"}},
      {"train --dtype 0", {"--dtype", "'0'", "fp32, bf16"}},
      {"train --device tpu", {"--device: found 'tpu', allowed: cpu, cuda"}},
      {"train --transport tcp", {"--transport: found 'tcp', allowed: local, mpi, nccl"}},
      {"train --overlap yes", {"--overlap: found 'yes', allowed: on, off"}},
      {"train --lr-schedule step", {"--lr-schedule: found 'step', allowed: cosine, wsd"}},
      {"train --eplb-policy best", {"--eplb-policy: found 'best', allowed: deepseek, balanced"}},
      {"train --format svg", {"--format: found 'svg', allowed: text, json"}},
      {"train --preset huge", {"--preset", "'huge'", "tiny"}},
      {"schedule --format png", {"--format: found 'png', allowed: text, csv, json, svg"}},
      {"eplb --policy best", {"--policy: found 'best', allowed: deepseek, balanced"}},
      {"analyze --format png", {"--format: found 'png', allowed: text, json, svg"}},
      {"eplb --format png", {"--format: found 'png', allowed: text, json, svg"}},
      {"generate --device ''", {"--device: found '', allowed: cpu, cuda"}},
  };
  for (const Wrong& wrong : table) expect_refused(wrong.arguments, wrong.words);
}

TEST_F(CommandLine, SmallLanguagesAreCheckedItemByItem) {
  const std::vector<Wrong> table = {
      {"train --model depth=3", {"--model: found 'depth=3'", "n_layers"}},
      {"train --model n_layers=4,depth=4", {"--model: found 'depth=4'"}},
      {"train --model n_layers=x", {"--model: found 'n_layers=x'", "whole"}},
      {"train --model n_layers=9223372036854775807", {"--model", "whole number to 1048576"}},
      {"train --model n_layers=4,n_layers=5", {"--model: found 'n_layers=5'", "each once"}},
      {"train --model d_model=0", {"d_model", "0", "at least 1"}},
      {"train --model n_layers=600 --pp 300 --schedule zbv --microbatches 600",
          {"--schedule, --pp: found zbv with 600 stages, allowed: at most 512"}},
      {"train --split 2,2,2,x", {"--split: found 'x'", "whole numbers"}},
      {"train --split 3,", {"--split: found ''", "whole numbers"}},
      {"train --link intra=3", {"--link: found 'intra=3'", "160GB/s"}},
      {"train --trace t.json --trace-steps x", {"--trace-steps: found 'x'", "2-3"}},
      {"train --trace t.json --trace-steps 2-", {"--trace-steps: found '2-'", "2-3"}},
      {"train --trace t.json --trace-steps 2-3-4", {"--trace-steps: found '2-3-4'", "2-3"}},
      {"train --trace t.json --trace-steps '2 3'", {"--trace-steps: found '2 3'", "2-3"}},
      {"schedule --cost F=0", {"--cost: found 'F=0'", "costs from 1e-12 to 1e+09"}},
      {"schedule --pp 4096 --microbatches 1048576",
          {"--microbatches: found 1048576 through 4096 ranks", "GiB", "up to 16777216"}},
      {"schedule --schedule 2f2b", {"--schedule", "2f2b", "dualpipe"}},
      {"compare --schedules 1f1b,2f2b", {"--schedule", "2f2b", "dualpipe"}},
      // what a run leaves is nothing to compare
      {"compare --rehearse profile.json", {"--rehearse", "duet compare --help"}},
      {"compare --out run", {"--out", "duet compare --help"}},
      {"compare --resume", {"--resume", "duet compare --help"}},
      {"compare --dump-step 1", {"--dump-step", "duet compare --help"}},
      {"compare --layouts 'dp=2 depth=4'", {"--layouts", "'depth=4'", "eplb-interval"}},
      {"diff a", {"A, B: found only A", "allowed: two dumps or two checkpoints"}},
      {"diff a b", {"a: "}},
      {"diff a b --tolerance -1", {"--tolerance: found '-1'", "0 to"}},
      {"plan --format xml", {"--format: found 'xml'", "text, json"}},
      {"schedule --schedule nowhere.csv", {"nowhere.csv: cannot be opened"}},
      {"schedule --schedule .csv", {".csv: cannot be opened"}},
  };
  for (const Wrong& wrong : table) expect_refused(wrong.arguments, wrong.words);
}

// A shell's variable that is not set is not a wish for the demonstration.
TEST_F(CommandLine, EmptyValuesAreRefused) {
  expect_refused("analyze ''", {"traces: found '', allowed: 1 to 4096"});
  expect_refused("diff '' b", {"A: found '', allowed: 1 to 4096"});
  for (const std::string option : {"eplb --loads", "schedule --schedule", "schedule --cost",
           "plan --layouts", "plan --loads", "plan --schedule", "plan --split", "compare --layouts",
           "compare --schedules", "train --data", "train --out", "train --link", "train --model",
           "train --split", "generate --from", "generate --prompt"}) {
    const size_t end = option.find(' ');
    const std::string command = option.substr(0, end), name = option.substr(end + 3);
    write("f.toml", name + " = \"\"\n");
    for (const std::string& empty : {option + " ''", command + " --config f.toml"})
      expect_refused(empty, {"--" + name + ": found '', allowed: "}, 1);
  }
}

TEST_F(CommandLine, DiffWithoutFilesIsADemonstration) {
  const Ended e = duet("diff");
  EXPECT_EQ(e.status, 0) << e.output;
  EXPECT_TRUE(std::regex_search(e.output, std::regex("([0-9]+) tensors: \\1 equal"))) << e.output;
  const Ended json = duet("diff --format json");
  EXPECT_TRUE(Json::parse(json.output, "").at("agree").boolean());
}

TEST_F(CommandLine, WhatARehearsalMakesNothingOfIsRefused) {
  for (const char* option : {"--out x", "--resume", "--lr 1", "--ep 2", "--dtype fp32",
           "--link latency=1us", "--split 1,2"})
    expect_refused(cat("train --rehearse p.json ", option),
        {std::string(option).substr(0, std::string(option).find(' ')) + ": found with --rehearse",
            "its profile's time for a message", "allowed: --rehearse, --steps"});
}

TEST_F(CommandLine, WhatPlanMakesNothingOfIsRefused) {
  const std::vector<Wrong> table = {
      {"plan --measure m.json --tp 2", {"--tp: found with --measure", "--measure, --format"}},
      {"plan --measure m.json --gpus 8", {"--gpus: found with --measure"}},
      {"plan --measure m.json --validate r.json", {"--measure: found with --validate"}},
      {"plan --validate r.json --top 3", {"--top: found with --validate"}},
      {"plan --validate r.json --write-profile p", {"--write-profile: found with --validate"}},
      {"plan --layouts pp=2 --profile p.json", {"--profile: found with --layouts", "--seq-len"}},
      {"plan --profile p.json --loads l.json", {"--loads: found with --profile", "--pp"}}};
  for (const Wrong& wrong : table) expect_refused(wrong.arguments, wrong.words);
}

TEST_F(CommandLine, OptionsThatThereAreNotAreNamed) {
  const std::vector<Wrong> table = {
      {"train --stepz 3", {"found --stepz 3, allowed: what duet train --help lists"}},
      {"train more", {"more", "--help"}},
      {"frobnicate", {"found frobnicate, allowed: what duet --help lists"}},
      {"", {"subcommand is required", "what duet --help lists"}},
      {"train --steps", {"--steps"}},
      {"train --steps 3 --steps 4", {"--steps"}},
      // of several together
      {"train --dtype bf16 --device cpu", {"--dtype", "bf16", "fp32"}},
      {"train --resume", {"--resume", "--out"}},
      {"train --trace-steps 2", {"--trace-steps", "--trace"}},
      {"schedule --compare --format csv", {"--format", "csv", "text, json, svg"}},
  };
  for (const Wrong& wrong : table) expect_refused(wrong.arguments, wrong.words);
}

// Bytes of an input that a terminal would obey, or could not show.
TEST_F(CommandLine, RefusalsArePrintable) {
  write("f.toml", "\xff\x9b\x1b[2J\xc2\x9b = 3\n");
  const Ended e = duet("train --config f.toml");
  EXPECT_EQ(e.status, 2) << e.output;
  for (const unsigned char c : e.output) EXPECT_TRUE(c == '\n' || (c >= ' ' && c < 127)) << int(c);
}

// What is not a trace of an earlier run is not overwritten by one.
TEST_F(CommandLine, ATraceReplacesNothingElse) {
  const std::string words(20000, 'w');
  write("data.txt", words);
  const std::string run = "train --preset tiny --steps 1 --sample 0 --data data.txt --trace ";
  for (const char* file : {"data.txt", "./data.txt"})
    expect_refused(run + file, {"--trace: found", "would be overwritten"}, 1);
  expect_refused(run + "out/metrics.jsonl --out out", {"--trace: found out/metrics.jsonl"}, 1);
  EXPECT_EQ(contents(path("data.txt")), words);
  for (int times : {1, 2}) EXPECT_EQ(duet(run + "t.json").status, 0) << times;
}

// Pipes, devices and folders are refused, never waited for; nor is what is not there.
TEST_F(CommandLine, WhatIsNoFileIsRefused) {
  ASSERT_EQ(mkfifo(path("pipe.csv").c_str(), 0600), 0);
  ASSERT_EQ(symlink("/dev/zero", path("zero.csv").c_str()), 0);
  fs::create_directory(path("folder.csv"));
  for (const char* option :
      {"eplb --loads", "eplb --format svg --loads", "schedule --schedule", "train --schedule",
          "compare --schedules", "train --config", "generate --from", "generate --tokenizer",
          "train --steps 1 --data", "train --init", "analyze", "analyze t.json --classify"})
    for (const char* file : {"pipe.csv", "zero.csv", "folder.csv"}) {
      if (file[0] == 'f' && std::string(option).ends_with("--data")) continue;
      const Ended e = duet(cat(option, " ", file));
      EXPECT_EQ(e.status, 2) << option << " " << file << ": " << e.output;
      expect_contains(e.output, {file});
      EXPECT_LT(std::count(e.output.begin(), e.output.end(), '\n'), 3) << e.output;
    }
}

// Of files that are read whole; those of data and weights may be as large as they like.
TEST_F(CommandLine, WhatIsTooLargeToReadWholeIsRefused) {
  std::ofstream(path("large.csv"));
  fs::resize_file(path("large.csv"), (uintmax_t(1) << 31) + 1);  // holds no blocks of the disk
  for (const char* option : {"eplb --loads", "schedule --schedule", "plan --loads"})
    expect_refused(cat(option, " large.csv"), {"large.csv: expected at most 2147483648"}, 1);
}

TEST_F(CommandLine, LoadsOfAPlanAreChecked) {
  write("l.json", "[-1]");
  expect_refused(
      "plan --loads l.json", {"l.json, layer 0, expert 0: expected a load", "found -1"}, 1);
  for (const char* none : {"[]", "{\"weight\": []}"}) {
    write("l.json", none);
    expect_refused("plan --loads l.json", {"l.json: expected at least one layer", "found none"}, 1);
  }
}

TEST_F(CommandLine, AMinusIsStandardInput) {
  write("s.csv",
      "\xEF\xBB\xBF"
      "0F0,0B0\n1F0,1B0\n");
  write("loads.csv", "1,2,3,4\n");
  const std::string plan = " --replicas 4 --groups 1 --nodes 1 --gpus 2 --format json";
  EXPECT_EQ(duet("schedule --format csv --schedule - < s.csv").output, "0F0,0B0\n1F0,1B0\n");
  EXPECT_EQ(duet("eplb --loads - < loads.csv" + plan).output,
      duet("eplb --loads loads.csv" + plan).output);
  expect_refused("schedule --schedule - < /dev/null", {"standard input: expected one row"}, 2);
  expect_refused("eplb --loads - < /dev/null", {"standard input: expected at least one layer"}, 2);
}

TEST_F(CommandLine, AbsurdSizesAreRefusedBeforeAnythingIsMade) {
  write("big.csv", "0F1048574\n");
  for (const Wrong& wrong :
      std::vector<Wrong>{{"train --model n_layers=1000000", {"--model", "GiB"}},
          {"train --model n_layers=1000,d_model=1000000", {"--model", "GiB"}},
          {"train --dp 4096 --pp 4096", {"--dp, --pp", "threads"}},
          {"compare --steps 1 --model n_layers=1000000", {"--model", "GiB"}},
          {"schedule --schedule big.csv", {"big.csv:1, cell 1: found microbatch 1048574"}},
          {"train --schedule big.csv", {"big.csv:1, cell 1: found microbatch 1048574"}}})
    expect_refused(wrong.arguments, wrong.words, 1);
  write("hf/config.json", "{\"model_type\":\"deepseek_v3\",\"vocab_size\":1000000000000000000}");
  expect_refused(
      "train --init hf", {"hf/config.json: vocab_size", "2 .. 1048576", "1000000000000000000"}, 2);
}

TEST_F(CommandLine, GenerateSpeaksOfItsOwnOptions) {
  const Ended e =
      run_command(cat("cd '", folder_, "' && OMPI_COMM_WORLD_SIZE=2 '", duet_, "' generate"));
  EXPECT_EQ(e.status, 2);
  expect_contains(e.output, {"generate: found 2 processes of mpirun, allowed: one"});
  EXPECT_EQ(e.output.find("--dp"), std::string::npos) << e.output;
}

TEST_F(CommandLine, LongAndManyLinedValuesAreShortened) {
  const std::string big(100000, 'x');
  for (const char* option : {"train --preset", "train --steps", "train --model", "train --split",
           "train --link", "train --trace-steps", "train --schedule", "train --data",
           "train --device", "train --out", "schedule --cost", "eplb --loads", "generate --from"}) {
    const std::string name = std::string(option).substr(std::string(option).find("--"));
    expect_refused(cat(option, " ", big), {name, "xxx...", "(100000 characters)", "allowed"});
    expect_refused(cat(option, " 'a\nb'"), {name});
  }
  expect_refused("train --" + big, {"xxx"});
  expect_refused("train --model vocab_size=255", {"vocab_size: found 255", "at least 256"});
  expect_refused("--config " + big + " train", {"--config"});
}

TEST_F(CommandLine, TomlStandsBeforeOrAfterTheCommand) {
  write("s.toml", "# a comment\npp = 2\nmicrobatches = 4\ncost = \"F=1,I=1,W=1,FB=2\"\n");
  const Ended plain = duet("schedule --pp 2 --microbatches 4 --cost F=1,I=1,W=1,FB=2");
  EXPECT_EQ(plain.status, 0) << plain.output;
  EXPECT_EQ(duet("schedule --config s.toml").output, plain.output);
  EXPECT_EQ(duet("--config s.toml schedule").output, plain.output);
  EXPECT_EQ(duet("schedule --config s.toml --pp 4").output,  // the command line goes first
      duet("schedule --pp 4 --microbatches 4 --cost F=1,I=1,W=1,FB=2").output);
  write("sections.toml",
      "[train]\nsteps = 7\n[schedule]\npp = 2\nmicrobatches = 4\ncost = \"FB=2\"\n");
  EXPECT_EQ(duet("schedule --config sections.toml").output, plain.output);
}

TEST_F(CommandLine, TomlIsCheckedLikeTheCommandLine) {
  const auto refused = [&](const std::string& toml, const std::vector<std::string>& words) {
    write("f.toml", toml);
    expect_refused("--config f.toml train", words, 1);
    expect_refused("train --config f.toml", words, 1);
  };
  refused("stepz = 3\n", {"--config: found 'train.stepz' in f.toml", "--help"});
  refused("steps = 1\n[trian]\nsteps = 3\n", {"--config", "'trian.", "f.toml"});
  refused("[schedule]\nsteps = 3\n", {"--config", "'schedule.steps'", "f.toml"});
  refused("pp = 4294967297\n", {"--pp", "4294967297", "1 to 4096"});
  refused("device = \"tpu\"\n", {"--device", "tpu", "cpu, cuda"});
  refused("not toml\n", {"--config: f.toml: line 1", "key = value", "not toml"});
  refused("steps = 1\n[train]\nsteps = 3\n", {"--config", "'train.steps' twice"});
  refused("overwrite = -1\n", {"--overwrite", "-1", "true, false"});
  refused("out = \"runs\n", {"f.toml: line 1", "a string that ends on its line"});
  refused("link = \"intra=3\"\n", {"--link", "intra=3"});
  expect_refused("train --config none.toml", {"--config", "none.toml"}, 1);
  write("f.toml", "\xEF\xBB\xBFsteps = -1\n");
  expect_refused("train --config f.toml", {"--steps", "'-1'"}, 1);
  expect_refused("--config f.toml", {"subcommand is required"}, 1);
}

TEST_F(CommandLine, HelpAndVersion) {
  const Ended version = duet("--version");
  EXPECT_EQ(version.status, 0);
  expect_contains(version.output, {"duet ", "compiler", "instruction set", "CUDA", "NCCL", "MPI"});
  const Ended commands = duet("--help");
  EXPECT_EQ(commands.status, 0);
  expect_contains(commands.output,
      {"train", "generate", "compare", "diff", "schedule", "eplb", "bench", "--config",
          "--version"});
  for (const char* command :
      {"train", "generate", "compare", "diff", "schedule", "eplb", "bench"}) {
    const Ended help = duet(cat(command, " --help"));
    EXPECT_EQ(help.status, 0);
    expect_contains(help.output, {"--help", "Usage: ", "="});
  }
  expect_contains(duet("train --help").output,
      {"--pp 1..4096=1 ", "--dtype {fp32, bf16} ", "--lr 0..1000=0.002 ",
          "--overlap {on, off}=on "});
}

}  // namespace
}  // namespace duet
