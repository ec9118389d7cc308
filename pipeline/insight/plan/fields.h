// Fields: a JSON object that is read field by field, with defaults. All of plan's files are read
// through it.
//
//   const Fields f(Json::load("cluster.json"));
//   cluster.sms = f.number("sms", 1, 1000);      // required
//   if (f.has("name")) name = f.text("name");    // null counts as missing
//
// Read next: cluster.h.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "model/base/embed.h"
#include "model/base/json.h"
#include "model/base/text.h"

namespace duet {

class Fields {
 public:
  explicit Fields(Json json) : json_(std::move(json)) {}
  std::string where() const { return json_.where(); }
  bool has(const std::string& key) const {
    const auto value = json_.find(key);
    return value && !value->is_null();
  }
  Json at(const std::string& key) const {
    require(has(key), where(), ": ", key, " is missing");
    return json_.at(key);
  }
  double number(const std::string& key, double lo, double hi) const {
    return at(key).number(lo, hi);
  }
  int64_t integer(const std::string& key, int64_t lo, int64_t hi = int64_t(1) << 40) const {
    return at(key).integer(lo, hi);
  }
  std::vector<int64_t> integers(const std::string& key) const {
    std::vector<int64_t> all;
    for (const Json& item : at(key).items()) all.push_back(item.integer(0, 1 << 20));
    return all;
  }
  std::string text(const std::string& key) const { return at(key).string(); }
  bool flag(const std::string& key, bool otherwise) const {
    return has(key) ? at(key).boolean() : otherwise;
  }
  int64_t integer_or(const std::string& key, int64_t otherwise, int64_t lo = 0) const {
    return has(key) ? integer(key, lo) : otherwise;
  }
  std::string text_or(const std::string& key, const std::string& otherwise) const {
    return has(key) ? text(key) : otherwise;
  }
  double number_or(const std::string& key, double otherwise, double lo, double hi) const {
    return has(key) ? number(key, lo, hi) : otherwise;
  }
  Fields object(const std::string& key) const { return Fields(at(key)); }

 private:
  Json json_;
};

// The one of a table that has this "name", in any case; else their names are added to `names`.
inline std::optional<Json> find_named(
    const Json& table, const std::string& name, std::string& names) {
  for (const Json& item : table.items()) {
    const std::string own = item.at("name").string();
    if (lower(name) == own) return item;
    names += own + ", ";
  }
  return {};
}

}  // namespace duet
