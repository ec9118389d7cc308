// Traces made for tests: a writer of Chrome trace events, and gzip.
#pragma once
#include <zlib.h>

#include <string>
#include <string_view>
#include <vector>

#include "model/base/check.h"
#include "pipeline/insight/trace/analysis.h"

namespace duet {

struct TraceText {
  std::vector<std::string> events;
  int64_t correlation = 0;

  static std::string time(int64_t ns) {
    return format("%lld.%03d", (long long)(ns / 1000), int(ns % 1000));
  }
  struct Thread {
    int64_t pid, tid;
  };
  TraceText& event(const std::string& cat, const std::string& name, const Thread& thread,
      int64_t begin, int64_t end, const std::string& args = "") {
    events.push_back(duet::cat("{\"ph\":\"X\",\"cat\":\"", cat, "\",\"name\":\"", name,
        "\",\"pid\":", thread.pid, ",\"tid\":", thread.tid, ",\"ts\":", time(begin),
        ",\"dur\":", time(end - begin), ",\"args\":{", args, "}}"));
    return *this;
  }
  // A kernel of stream `stream` on GPU 0, launched at `launched` by thread `tid`; -1: nobody knows.
  TraceText& kernel(const std::string& name, int stream, int64_t begin, int64_t end,
      int64_t launched = -1, int tid = 100) {
    ++correlation;
    if (launched >= 0)
      event("cuda_runtime", "cudaLaunchKernel", {100, tid}, launched, launched + 1,
          duet::cat("\"correlation\":", correlation));
    return event("kernel", name, {0, stream}, begin, end,
        duet::cat("\"device\":0,\"stream\":", stream, ",\"correlation\":", correlation));
  }
  TraceText& annotation(const std::string& name, int64_t begin, int64_t end, int tid = 100) {
    return event("user_annotation", name, {100, tid}, begin, end);
  }
  std::string text(const std::string& more = "") const {
    std::string all = "{" + more + "\"traceEvents\":[";
    for (size_t i = 0; i < events.size(); ++i) all += (i ? ",\n" : "\n") + events[i];
    return all + "\n]}\n";
  }
};

inline std::string gzip(std::string_view text) {
  z_stream z{};
  deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&z, uLong(text.size())) + 64, '\0');
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  z.avail_in = uInt(text.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = uInt(out.size());
  deflate(&z, Z_FINISH);
  out.resize(out.size() - z.avail_out);
  deflateEnd(&z);
  return out;
}

// What a refusal says; empty if the bytes are accepted.
inline std::string refusal(std::string_view bytes) {
  try {
    analyze_bytes(bytes);
    return "";
  } catch (const UsageError& error) {
    return error.what();
  }
}

}  // namespace duet
