// Durable directories: complete or not there, whatever happens to the writer; and every alteration
// is found and named.
#include "pipeline/checkpoint/durable.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <random>

#include "model/base/hash.h"
#include "pipeline/checkpoint/checkpoint.h"
#include "test/testing.h"

namespace duet {
namespace {

class Durable : public FolderTest {
 protected:
  // Writes <folder>/<name> with two files of `bytes` and 3 bytes that are functions of `seed`.
  void write(const std::string& name, int seed, size_t bytes) const {
    DurableDir dir(folder_ + "/" + name);
    dir.file("big.bin").write(content(seed, bytes));
    dir.file("small.txt").write(content(seed + 1, 3));
    dir.publish();
  }
  static std::string content(int seed, size_t bytes) {
    std::string s(bytes, '\0');
    uint32_t x = uint32_t(seed) * 2654435761u + 1;
    for (char& c : s) c = char((x = x * 1664525u + 1013904223u) >> 24);
    return s;
  }
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& e : fs::directory_iterator(folder_))
      all.push_back(e.path().filename().string());
    std::sort(all.begin(), all.end());
    return all;
  }
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_F(Durable, WritesAndVerifies) {
  for (size_t bytes : {size_t(0), size_t(5), size_t(1) << 20, (size_t(3) << 20) + 11}) {
    write("a", 1, bytes);
    verify(folder_ + "/a");
    EXPECT_EQ(contents(folder_ + "/a/big.bin"), content(1, bytes));
    EXPECT_EQ(contents(folder_ + "/a/small.txt"), content(2, 3));
    EXPECT_TRUE(contains(contents(folder_ + "/a/DONE"), cat("\"bytes\": ", bytes)));
    EXPECT_EQ(names(), std::vector<std::string>{"a"});
    EXPECT_THROW(write("a", 1, bytes), Error);  // a complete directory is never replaced
    fs::remove_all(folder_ + "/a");
  }
}

TEST_F(Durable, PiecesBecomeOneFile) {
  const std::string text = content(3, 2500000);
  FileWriter pieces(folder_ + "/pieces");
  std::mt19937 random(5);
  for (size_t i = 0; i < text.size();) {
    const size_t n = std::min<size_t>(random() % 9999, text.size() - i);
    pieces.write(text.data() + i, n);
    i += n;
  }
  pieces.close();
  EXPECT_EQ(contents(folder_ + "/pieces"), text);
}

TEST_F(Durable, ChecksumSeesEveryBitAndTheSize) {
  const std::string text(67, '\0');
  std::vector<uint64_t> seen{checksum(text)};
  for (size_t bit = 0; bit < text.size() * 8; ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = char(1 << (bit % 8));
    seen.push_back(checksum(flipped));
  }
  for (size_t size = 0; size < text.size(); ++size) seen.push_back(checksum(text.substr(0, size)));
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(std::adjacent_find(seen.begin(), seen.end()), seen.end());
}

TEST_F(Durable, NamesTheFileThatIsMissingTruncatedOrAltered) {
  write("a", 1, 100000);
  const std::string big = folder_ + "/a/big.bin";
  auto verify_error = [&] { return error_of([&] { verify(folder_ + "/a"); }); };
  for (size_t at : {size_t(0), size_t(50001), size_t(99999)}) {
    std::string bytes = content(1, 100000);
    bytes[at] ^= 0x10;
    std::ofstream(big, std::ios::binary) << bytes;
    EXPECT_EQ(verify_error().rfind(big + ": altered: 100000 bytes with checksum", 0), 0u)
        << verify_error();
  }
  std::ofstream(big, std::ios::binary) << content(1, 100000) << "x";
  EXPECT_TRUE(contains(verify_error(), big + ": altered: 100001 bytes")) << verify_error();
  fs::resize_file(big, 99992);
  EXPECT_EQ(verify_error(), big + ": truncated: 99992 bytes, DONE says 100000");
  fs::remove(big);
  EXPECT_TRUE(contains(verify_error(), big + ": missing")) << verify_error();
  fs::remove(folder_ + "/a/DONE");
  EXPECT_EQ(verify_error(), folder_ + "/a: not a complete checkpoint: it has no DONE file");
}

TEST_F(Durable, UnpublishedLeavesNothing) {
  { DurableDir(folder_ + "/a").file("x").write("hello"); }
  EXPECT_TRUE(names().empty());
}

TEST_F(Durable, LeftoversAreRemovedAndOthersKept) {
  write("a", 1, 10);
  write("b", 2, 10);
  fs::rename(folder_ + "/b", folder_ + "/b.duet-writing");  // killed just before it was renamed
  fs::create_directories(folder_ + "/c.duet-writing");      // killed while writing
  fs::create_directories(folder_ + "/mine.tmp");
  std::ofstream(folder_ + "/mine.txt") << "x";
  EXPECT_EQ(complete_dirs(folder_), std::vector<std::string>{folder_ + "/a"});
  write("d", 3, 10);
  EXPECT_EQ(names(), (std::vector<std::string>{"a", "d", "mine.tmp", "mine.txt"}));
  EXPECT_TRUE(complete_dirs(folder_ + "/none").empty());
}

TEST_F(Durable, WhatHasTheNameIsPutAside) {
  fs::create_directories(folder_ + "/a");
  std::ofstream(folder_ + "/a/mine.txt") << "x";
  std::ofstream(folder_ + "/a.aside") << "y";
  write("a", 1, 10);
  EXPECT_EQ(names(), (std::vector<std::string>{"a", "a.aside", "a.aside-2"}));
  EXPECT_EQ(contents(folder_ + "/a.aside-2/mine.txt"), "x");
  EXPECT_EQ(contents(folder_ + "/a.aside"), "y");
}

TEST_F(Durable, AFileIsReplacedWholeOrNotAtAll) {
  const std::string file = folder_ + "/f";
  replace_file(file, "old");
  EXPECT_THROW(replace_file(file,
                   [](FileWriter& f) {
                     f.write("half of");
                     throw Error("no more");
                   }),
      Error);
  EXPECT_EQ(contents(file), "old");
  EXPECT_EQ(names(), std::vector<std::string>{"f"});
  write_file(file, "new");
  EXPECT_EQ(contents(file), "new");
  EXPECT_THROW(write_file(folder_, "x"), UsageError);
  EXPECT_THROW(write_file(folder_ + "/none/f", "x"), UsageError);
  EXPECT_THROW(write_file("/dev/full", "x"), Error);
}

TEST_F(Durable, AFullDiskIsNamedAndLeavesTheOlderDirectory) {
  const std::string full = error_of<Error>([] {
    FileWriter out("/dev/full");
    out.write("x");
    out.close();
  });
  EXPECT_EQ(
      full.rfind("/dev/full: cannot be written (1 bytes so far): No space left on device; ", 0), 0u)
      << full;
  EXPECT_TRUE(contains(full, "MiB free there"));

  write("a", 1, 10);
  rlimit old;
  getrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, SIG_IGN);
  const rlimit small{2 << 20, old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string error = error_of<Error>([&] { write("b", 2, 5 << 20); });
  setrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, SIG_DFL);
  EXPECT_TRUE(contains(error, folder_ + "/b.duet-writing/big.bin: cannot be written")) << error;
  EXPECT_EQ(names(), std::vector<std::string>{"a"});
  verify(folder_ + "/a");
}

TEST_F(Durable, ADirectoryThatCannotBeMadeIsAUsageError) {
  std::ofstream(folder_ + "/file") << "x";
  const std::string error = error_of([&] { DurableDir(folder_ + "/file/a"); });
  EXPECT_EQ(error, folder_ + "/file/a: cannot be created: Not a directory");
}

TEST_F(Durable, TheNewestIsOfTheLastStep) {
  write("step-999999", 1, 100);
  write("step-1000000", 2, 100);
  EXPECT_EQ(newest_checkpoint(folder_), folder_ + "/step-1000000");
}

// A child writes step after step and is killed at a random moment. What is complete then must be
// whole, and no complete directory may be lost.
TEST_F(Durable, KilledAtAnyMomentTheNewestCompleteDirectoryIsWhole) {
  std::mt19937 random(11);
  int published = 0;  // writes that the child reported
  for (int round = 0; round < 12; ++round) {
    int report[2];
    ASSERT_EQ(pipe(report), 0);
    const pid_t child = fork();
    if (child == 0) {
      for (int n = int(complete_dirs(folder_).size());; ++n) {
        write("step-" + std::to_string(1000 + n), n, 100000);
        const int done = n + 1;
        if (::write(report[1], &done, sizeof done) < 0) _exit(1);
      }
    }
    close(report[1]);
    for (int n = 1 + int(random() % 4); n > 0; --n)
      ASSERT_EQ(read(report[0], &published, sizeof published), long(sizeof published));
    usleep(random() % 3000);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    while (read(report[0], &published, sizeof published) == sizeof published) {}
    close(report[0]);
    const auto dirs = complete_dirs(folder_);
    for (const auto& dir : dirs) verify(dir);
    ASSERT_GE(int(dirs.size()), published);
  }
  write("last", 0, 10);  // removes what the killed left
  EXPECT_EQ(names().size(), complete_dirs(folder_).size());
}

}  // namespace
}  // namespace duet
