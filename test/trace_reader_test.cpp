// Trace files of all kinds: what is accepted, what is refused and how, to the byte and the
// nanosecond.
#include <gtest/gtest.h>
#include <malloc.h>

#include "analyze_testing.h"
#include "pipeline/insight/trace/reader.h"

namespace duet {
namespace {

Recording read(std::string_view bytes, size_t chunk = 1 << 20) {
  Names names;
  return read_trace(
      "t",
      [bytes, chunk](char* to, size_t most) mutable {
        const size_t n = bytes.substr(0, chunk).copy(to, most);
        bytes.remove_prefix(n);
        return n;
      },
      names);
}

size_t in_use() {  // bytes that this thread's allocations hold
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

std::string two_kernels() {
  return TraceText().kernel("gemm", 7, 10'000, 20'000).kernel("ncclX", 9, 12'000, 22'000).text();
}

TEST(TraceReader, ThousandthsAreExact) {
  const auto is = [](const char* text, WideInt value) {
    const std::optional<WideInt> found = thousandths(text);
    return found && *found == value;
  };
  EXPECT_TRUE(is("0", 0));
  EXPECT_TRUE(is("4911640000123.456", WideInt(4911640000123456)));
  EXPECT_TRUE(is("1743500000000000005", WideInt(1743500000000000005) * 1000));
  EXPECT_TRUE(is("-1.5", -1500));
  EXPECT_TRUE(is("1.9996", 2000));
  EXPECT_TRUE(is("1.9994999", 1999));
  EXPECT_TRUE(is("1.7e18", WideInt(1700000000000000000) * 1000));
  EXPECT_TRUE(is("1E-3", 1));
  EXPECT_TRUE(is("1.740300000000005E+15", WideInt(1740300000000005) * 1000));
  EXPECT_TRUE(is("1.7403000000000051236e15", WideInt(1740300000000005124)));
  EXPECT_TRUE(
      is("1234567890123456789.01249999999999999999", WideInt(1234567890123456789) * 1000 + 12));
  EXPECT_TRUE(is("0.0000000000000000000000000000000000001", 0));
  for (const char* text : {"", ".", "-", "1.2.3", "x", "1e", "1e999", "N/A", " 1", "1 ",
           "99999999999999999999999999999999999999999"})
    EXPECT_FALSE(thousandths(text)) << text;
}

TEST(TraceReader, TakesTimesAsTheyCome) {
  for (const char* time : {"\"ts\":\"10\",\"dur\":\"2.5\"", "\"dur\":2.500,\"ts\":1e1",
           "\"ts\":10.0004,\"dur\":2.4996"}) {
    const Recording r = read(cat("[{\"ph\":\"X\",\"cat\":\"Kernel\",\"name\":\"k\",", time, "}]"));
    ASSERT_EQ(r.gpu.size(), 1u) << time;
    EXPECT_EQ(r.gpu[0].end - r.gpu[0].begin, 2500) << time;
    EXPECT_EQ(r.base + r.gpu[0].begin, 10'000) << time;
  }
  TraceText far;
  far.events = {R"({"ph":"X","cat":"kernel","name":"a","ts":1743500000000000000,"dur":10})",
      R"({"ph":"X","cat":"kernel","name":"b","ts":1743500000000000005.25,"dur":18446744073709})"};
  const Recording r = read(far.text());
  ASSERT_EQ(r.gpu.size(), 1u);
  EXPECT_EQ(r.left_out.size(), 1u);  // a kernel of 213 days
}

TEST(TraceReader, TakesTextInPlaceOfNumbers) {
  const auto kernel = [](const char* pid, const char* name) {
    return cat(R"({"ph":"X","cat":"kernel","ts":1,"dur":2,"tid":"stream 7","pid":")", pid,
        R"(","name":")", name, "\"}");
  };
  const Analysis a = analyze_bytes(
      cat('[', kernel("GPU 1", "x"), ',', kernel("GPU 0", "y"), ',', kernel("GPU 1", "z"), ']'));
  ASSERT_EQ(a.ranks.size(), 2u);
  for (const int r : {0, 1}) {
    EXPECT_EQ(a.ranks[size_t(r)].number, r);  // in the order in which they came
    EXPECT_EQ(a.ranks[size_t(r)].events.size(), size_t(2 - r));
    EXPECT_EQ(a.recordings[0].streams[size_t(r)].label, "stream 7");
  }
}

TEST(TraceReader, LaunchesAreWhatTheRuntimeAndDriverDo) {
  for (const char* cat_ : {"cuda_runtime", "cuda_driver", "hip_runtime", "Runtime", "xpu_runtime",
           "privateuse1_driver"})
    EXPECT_EQ(read(cat(R"([{"ph":"X","cat":")", cat_,
                       R"(","name":"l","ts":0,"dur":1,"args":{"correlation":"3"}}])"))
                  .launches.size(),
        1u)
        << cat_;
}

TEST(TraceReader, BeginAndEndPairUpPerThread) {
  const Recording r = read(R"([
    {"ph":"B","cat":"kernel","name":"outer","pid":1,"tid":1,"ts":1},
    {"ph":"B","cat":"cpu_op","name":"other thread","pid":1,"tid":2,"ts":2},
    {"ph":"B","cat":"kernel","name":"inner","pid":1,"tid":1,"ts":3},
    {"ph":"E","pid":1,"tid":1,"ts":4}, {"ph":"E","pid":1,"tid":2,"ts":5},
    {"ph":"E","pid":1,"tid":1,"ts":6}, {"ph":"E","pid":1,"tid":1,"ts":7},
    {"ph":"B","cat":"kernel","name":"never ends","pid":1,"tid":3,"ts":8}])");
  ASSERT_EQ(r.gpu.size(), 2u);
  EXPECT_EQ(r.gpu[0].end - r.gpu[0].begin, 1000);
  EXPECT_EQ(r.gpu[1].end - r.gpu[1].begin, 5000);
  EXPECT_EQ(r.left_out.at("an end without its beginning"), 1);
  EXPECT_EQ(r.left_out.at("a beginning without its end"), 1);
}

TEST(TraceReader, AcceptsWhatLosesNothing) {
  const std::string good = two_kernels();
  EXPECT_EQ(read(good).gpu.size(), 2u);
  EXPECT_EQ(read("\xef\xbb\xbf" + good).gpu.size(), 2u);
  EXPECT_EQ(read("\n\n " + good).gpu.size(), 2u);
  TraceText odd;  // control characters, bytes that are not UTF-8, cut characters
  for (const char* name :
      {"a\tb\nc\x01", "\xff\xfe", "\xc3\xa9 \xe2\x82", "\xed\xa0\x80", "\\u00e9"})
    odd.kernel(name, 7, 1000 * (1 + int64_t(odd.events.size())), 2000);
  for (const size_t chunk : {size_t(1), size_t(2), size_t(3), size_t(7), size_t(1000)}) {
    Names names;
    const Recording r = read(odd.text(), chunk);
    EXPECT_EQ(r.gpu.size() + size_t(r.left_out.count("a negative duration")), 2u + 1) << chunk;
    EXPECT_EQ(r.events, 5) << chunk;
  }
  Names names;
  const std::string_view halves = R"([{"ph":"X","cat":"kernel","ts":1,"dur":1,)"
                                  R"("name":"\ud83d\ude80 \ud83d \ude80\u00e9"}])";
  read_trace("t", read_memory(halves), names);
  EXPECT_EQ(names[0], "\U0001f680 ?ud83d ?ude80\u00e9");
  TraceText last;
  last.kernel(std::string(1 << 18, 'x'), 7, 1000, 2000).kernel("after", 7, 3000, 4000);
  EXPECT_EQ(read(last.text()).gpu.size(), 2u);
}

// Text longer than the blocks that it is read in, each of which may begin in the midst of anything.
TEST(TraceReader, BlocksLeaveNoTrace) {
  const std::string event = R"({ "ph" : "X", "cat":"gpu_memcpy", "ts": 1, "dur": 2,)"
                            R"( "name":"\u00e9\ud83d\ude80\"\\)"
                            "\xe2\x82\xac\xf0\x9f\x9a\x80\x01\" }\n";
  constexpr size_t kEvents = 12'000;
  std::string text = "[ ";
  for (size_t i = 0; i < kEvents; ++i) text += (i ? ", " : "") + event;
  for (size_t shift = 0; shift < 40; ++shift) {
    Names names;
    const std::string shifted = std::string(shift, ' ') + text + " ] x";
    const Recording r = read_trace("t", read_memory(shifted), names);
    ASSERT_EQ(r.gpu.size(), kEvents) << shift;
    ASSERT_EQ(names.size(), 1u) << shift;
    ASSERT_EQ(names[0], "\u00e9\U0001f680\"\\\u20ac\U0001f680 ") << shift;
    ASSERT_EQ(r.bytes, int64_t(shifted.size()));
    ASSERT_NE(r.warnings.at(0).find(cat("byte ", shifted.size() - 1)), std::string::npos);
  }
  // Who is done early does not wait for the rest; what reading finds comes in its place.
  EXPECT_NE(refusal("[[1, 2], " + text).find("memory timeline"), std::string::npos);
  const std::string packed = gzip(text + "]");
  const std::string cut = refusal(packed.substr(0, packed.size() - 20));
  EXPECT_NE(cut.find(cat("after ", packed.size() - 20, " bytes")), std::string::npos) << cut;
}

TEST(TraceReader, ARankIsOneOfAJobs) {
  for (const auto& [rank, known] : std::vector<std::pair<const char*, std::optional<int64_t>>>{
           {"7", 7}, {"\"7\"", 7}, {"1e20", {}}, {"100000000000000000000", {}}, {"-1", {}}})
    EXPECT_EQ(
        read(cat("{\"distributedInfo\":{\"rank\":", rank, "},", two_kernels().substr(1))).rank,
        known)
        << rank;
}

TEST(TraceReader, WarnsOfDamageAfterTheEvents) {
  const std::string good = two_kernels();
  const std::string open = good.substr(0, good.rfind("]}"));
  const auto warned = [](const std::string& text, const char* of) {
    const Recording r = read(text);
    EXPECT_EQ(r.gpu.size(), 2u) << text;
    ASSERT_EQ(r.warnings.size(), 1u) << text;
    EXPECT_NE(r.warnings[0].find(of), std::string::npos) << r.warnings[0];
  };
  warned(open + "],\"INFO\":[\"a \"quoted\" word\"]}", "after the events' end");
  warned(open + "]", "after the events' end");
  warned(good + "garbage", "after the events' end");
  for (const size_t from_end :
      {8, 4}) {  // a checksum or a length that is another's: where, nobody knows
    std::string packed = gzip(good);
    packed[packed.size() - from_end] ^= 1;
    warned(packed, "any figure may be wrong");
  }
  warned(open + ",]}", "comma after the last event");
  const std::string array = open.substr(open.find('['));
  warned(array, "not closed");
  warned(array + ",\n", "not closed");
}

TEST(TraceReader, RefusesDamageWithItsPlace) {
  const auto says = [](const std::string& text, const std::vector<std::string>& words) {
    const std::string found = refusal(text);
    for (const std::string& word : words)
      EXPECT_NE(found.find(word), std::string::npos) << "'" << found << "' without " << word;
    EXPECT_EQ(found.find('\n'), std::string::npos) << found;
  };
  const std::string head =
      "{\"traceEvents\":[{\"ph\":\"X\",\"cat\":\"kernel\",\"name\":\"k\",\"ts\":";
  const std::string at = cat("byte ", head.size());
  says(head + "NaN,\"dur\":1}]}", {at, "a bare NaN"});
  says(head + "Infinity}]}", {at, "a bare Infinity"});
  says(head + "N/A}]}", {at, "a bare N/A"});
  says("   \n\n\t " + head + "NaN}]}", {cat("byte ", head.size() + 7), "a bare NaN"});
  says(head + "1" + std::string(400, '0') + "}]}", {"byte ", "expected JSON"});
  says(head + "1,\"args\":{\"a\":\"torch\\cuda\"}}]}", {"byte ", "forbidden character"});
  says(head + "1,\"args\":{\"a\":\"b\"c\"}}]}", {"byte ", "expected JSON"});
  says(head + "1,\"name\":\"open", {"byte ", "cut off"});
  says(head + "1}", {"cut off"});
  EXPECT_EQ(refusal("[1}").find("cut off"), std::string::npos);
  says("[1}", {"byte 2: expected JSON, found unexpected '}'"});
  says(head + "1,\"args\":" + std::string(100'000, '['), {"byte ", "nested deeper than 512"});
  says(std::string(1, '\0') + head, {"expected a Chrome trace"});
  says(head + std::string(1, '\0') + "1}]}", {at});
  // at every place where a file may end
  const std::string good = two_kernels();
  for (size_t n = 0; n + 3 < good.size(); ++n)
    EXPECT_NE(refusal(good.substr(0, n)), "") << good.substr(0, n);
}

TEST(TraceReader, UnpacksGzip) {
  const std::string good = two_kernels(), half = good.substr(0, 40), rest = good.substr(40);
  EXPECT_EQ(read(gzip(good)).gpu.size(), 2u);
  EXPECT_EQ(read(gzip(good), 1).gpu.size(), 2u);
  EXPECT_EQ(read(gzip(half) + gzip("") + gzip(rest)).gpu.size(), 2u);
  const Recording padded = read(gzip(good) + std::string(100, '\0'));
  EXPECT_EQ(padded.gpu.size(), 2u);
  EXPECT_EQ(padded.warnings.size(), 1u);
  const std::string packed = gzip(good);
  // cut off before the events' end; after it that is a warning
  for (size_t n = 2; n < packed.size() - 30; ++n) {
    const std::string found = refusal(packed.substr(0, n));
    EXPECT_NE(found.find(cat("after ", n, " bytes")), std::string::npos) << found;
  }
  std::string damaged = packed;
  damaged[15] = char(damaged[15] ^ 0x55);
  EXPECT_NE(refusal(damaged), "");
}

TEST(TraceReader, NamesWhatIsNoTrace) {
  const std::pair<std::string, const char*> others[] = {{"", "empty file"},
      {"[[-1,1,37888,7],[0,1,2,3]]", "memory timeline"},
      {R"({"schema":"1.0.1","nodes":[{"name":"x","id":1}]})", "execution trace"},
      {R"({"schema":"1.1.1-chakra.0.0.4","nodes":[]})", "Chakra"},
      {"SQLite format 3\0 ...", "SQLite"}, {"\x0a\x05hello", "Perfetto"}, {"PK\x03\x04", "zip"},
      {"\x28\xb5\x2f\xfd ...", "zstd"}, {"\x80\x04\x95", "pickle"},
      {"hello, world", "'hello, world'"}, {"{}", "without \"traceEvents\""},
      {R"({"a":1})", "without \"traceEvents\""},
      {R"({"traceEvents":[]})", "found none among 0 events"},
      {R"([{"ph":"X","cat":"cpu_op","name":"a","ts":1,"dur":1}])", "ProfilerActivity.CUDA"}};
  for (const auto& [bytes, words] : others) {
    const std::string found = refusal(bytes);
    EXPECT_NE(found.find(words), std::string::npos) << found;
    EXPECT_EQ(found.rfind("trace: ", 0), 0u) << found;
  }
}

TEST(TraceReader, LeavesOutImpossibleEventsAndSaysSo) {
  const std::string head = "{\"ph\":\"X\",\"cat\":\"kernel\",\"name\":\"k\",\"tid\":7";
  TraceText t;
  t.events = {head + ",\"ts\":1615207264505000,\"dur\":50}", head + ",\"ts\":0,\"dur\":0}",
      head + ",\"ts\":1615207264505100,\"dur\":-1}", head + ",\"ts\":1615207264505100}",
      head + ",\"dur\":1}", head + ",\"ts\":\"soon\",\"dur\":1}"};
  for (const bool zero_first : {false, true}) {
    if (zero_first) std::swap(t.events[0], t.events[1]);
    const Recording r = read(t.text());
    EXPECT_EQ(r.gpu.size(), 1u);
    EXPECT_EQ(r.left_out,
        (std::map<std::string, int64_t>{{"timestamp 0", 1}, {"a negative duration", 1},
            {"no duration", 1}, {"no timestamp", 1}, {"a time that is no number", 1}}));
  }
  // Times that count from the trace's start may begin with 0.
  EXPECT_EQ(
      read(TraceText().kernel("a", 7, 0, 100).kernel("b", 7, 900'000, 900'100).text()).gpu.size(),
      2u);

  TraceText covered;
  for (int i = 0; i < 300; ++i) covered.kernel("k", 7, 1000 + i * 10, 1000 + i * 10 + 12);
  EXPECT_EQ(read(covered.text()).gpu.size(), 300u);  // one overlaps the next: legal
  covered.kernel("impossible", 7, 900, 5000).kernel("another stream's", 9, 900, 5000);
  const Recording r = read(covered.text());
  EXPECT_EQ(r.gpu.size(), 301u);
  EXPECT_EQ(r.left_out.at("a kernel over a hundred others of its stream"), 1);
}

// A trace of a million events that is nowhere whole: written while it is read.
TEST(TraceReader, ReadsAMillionEventsInLittleMemory) {
  constexpr int64_t kEvents = 1'000'000;
  int64_t next = 0;
  std::string pending = "{\"traceEvents\":[\n";
  const auto make = [&](char* to, size_t most) {
    while (pending.size() < most && next < kEvents) {
      const int64_t i = next++;
      const bool kernel = i % 10 == 0;
      pending += format(
          "{\"ph\": \"X\", \"cat\": \"%s\", \"name\": \"%s\", \"pid\": 1, \"tid\": %d, "
          "\"ts\": %lld.%03d, \"dur\": 1.5, \"args\": {\"External id\": %lld, \"correlation\": "
          "%lld, \"grid\": [132, 1, 1], \"Input Dims\": [[4096, 7168], [7168, 2048]]}}%s\n",
          kernel ? "kernel" : "cpu_op", kernel ? "void gemm<int, float>(int*)" : "aten::linear",
          kernel ? 7 : 100, 1740461679470813ll + i, int(i % 1000), (long long)i, (long long)i,
          i + 1 < kEvents ? "," : "]}");
    }
    const size_t n = pending.copy(to, most);
    pending.erase(0, n);
    return n;
  };
  Names names;
  const size_t before = in_use();
  size_t peak = before;
  const Recording r = read_trace(
      "generated",
      [&](char* to, size_t most) {
        peak = std::max(peak, in_use());
        return make(to, most);
      },
      names);
  EXPECT_EQ(r.events, kEvents);
  EXPECT_EQ(r.gpu.size(), size_t(kEvents / 10));
  EXPECT_EQ(names.size(), 1u);
  EXPECT_LT(peak - before, size_t(32 << 20)) << "of a text of " << r.bytes;
}

}  // namespace
}  // namespace duet
