// Small files for the tests of data/: token shards as llm.c writes them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "test/testing.h"

namespace duet {

class DataFiles : public FolderTest {
 protected:
  static std::string header(int32_t magic, int32_t version, int32_t count, int32_t fourth = 0) {
    int32_t words[256] = {magic, version, count, fourth};
    return {reinterpret_cast<const char*>(words), sizeof words};
  }
  template <class Id>
  static std::string shard(int32_t magic, int32_t version, const std::vector<Id>& ids) {
    const std::string bytes(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(Id));
    return header(magic, version, int32_t(ids.size())) + bytes;
  }
  static std::string gpt2(const std::vector<uint16_t>& ids) { return shard(20240520, 1, ids); }
  static std::string llama3(const std::vector<uint32_t>& ids) { return shard(20240801, 7, ids); }
};

// Ids first, first + 1, ...
template <class Id> std::vector<Id> counting(int64_t first, int64_t count) {
  std::vector<Id> ids;
  for (int64_t i = 0; i < count; i++) ids.push_back(Id(first + i));
  return ids;
}

// The message of the UsageError that f throws: one line. Fails the test where it throws none.
template <class F> std::string usage_error(F f) {
  try {
    f();
  } catch (const UsageError& e) {
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "expected a UsageError";
  return "";
}

inline void expect_contains(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "expected '" << part << "' in: " << text;
}

}  // namespace duet
