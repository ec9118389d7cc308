// Fields: a JSON object that is read field by field, with errors that name file, field, what was
// expected and what was found. All of plan's files are read through it.
//
//   const Ordered json = load_json("cluster.json");
//   const Fields f(json, "cluster.json");
//   cluster.sms = f.number("sms", 1, 1000);      // required
//   if (f.has("name")) name = f.text("name");    // null counts as missing
//
// Read next: model.h.
#pragma once
#include <cmath>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "model/base/check.h"

namespace duet {

using Ordered = nlohmann::ordered_json;

inline Ordered parse_json(const std::string& text, const std::string& where) {
  try {
    return Ordered::parse(text);
  } catch (const nlohmann::json::exception& error) {
    std::string what = error.what();
    throw UsageError(cat(where, ": expected JSON, found ", what.substr(what.find(']') + 2)));
  }
}

inline Ordered load_json(const std::string& path) {
  std::ifstream file(path);
  require(file.good(), path, ": cannot be opened");
  return parse_json({std::istreambuf_iterator<char>(file), {}}, path);
}

class Fields {
 public:
  Fields(const Ordered& json, std::string where) : json_(json), where_(std::move(where)) {
    require(json.is_object(), where_, ": expected an object, found ", json.type_name());
  }
  const std::string& where() const { return where_; }
  const Ordered& json() const { return json_; }
  bool has(const std::string& key) const { return json_.contains(key) && !json_[key].is_null(); }
  const Ordered& at(const std::string& key) const {
    require(has(key), where_, ": ", key, " is missing");
    return json_[key];
  }
  double number(const std::string& key, double lo, double hi) const {
    const Ordered& value = at(key);
    require(value.is_number() && value.get<double>() >= lo && value.get<double>() <= hi, where_,
        ": ", key, ": expected a number, ", lo, " to ", hi, ", found ", value.dump());
    return value.get<double>();
  }
  int64_t integer(const std::string& key, int64_t lo, int64_t hi = int64_t(1) << 40) const {
    const double value = number(key, double(lo), double(hi));
    require(
        value == std::floor(value), where_, ": ", key, ": expected a whole number, found ", value);
    return int64_t(value);
  }
  std::string text(const std::string& key) const {
    const Ordered& value = at(key);
    require(value.is_string(), where_, ": ", key, ": expected a text, found ", value.dump());
    return value.get<std::string>();
  }
  bool flag(const std::string& key, bool otherwise) const {
    if (!has(key)) return otherwise;
    require(json_[key].is_boolean(), where_, ": ", key, ": expected true or false, found ",
        json_[key].dump());
    return json_[key].get<bool>();
  }
  int64_t integer_or(const std::string& key, int64_t otherwise, int64_t lo = 0) const {
    return has(key) ? integer(key, lo) : otherwise;
  }
  std::string text_or(const std::string& key, const std::string& otherwise) const {
    return has(key) ? text(key) : otherwise;
  }
  Fields object(const std::string& key) const { return {at(key), where_ + ": " + key}; }

 private:
  const Ordered& json_;
  std::string where_;
};

}  // namespace duet
