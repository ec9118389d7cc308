// See json.h. The only file that includes nlohmann/json.hpp.
#include "model/base/json.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

namespace duet {

// --- build ---------------------------------------------------------------------------------------

Json::Json(const Scalar& scalar)
    : value_(std::visit([](const auto& x) { return std::make_shared<Value>(x); }, scalar)) {}

Json::Json(const Array& items) : value_(std::make_shared<Value>(Value::array())) {
  for (const Json& item : items) value_->push_back(*item.value_);
}

Json Json::object(const Object& members) {
  Json j;
  *j.value_ = Value::object();
  for (const auto& [key, value] : members) j.set(key, value);
  return j;
}

Json::Value& Json::own() {
  if (value_.use_count() > 1) value_ = std::make_shared<Value>(*value_);
  return *value_;
}

Json& Json::set(const std::string& key, const Json& value) {
  own()[key] = *value.value_;
  return *this;
}

Json& Json::push(const Json& value) {
  own().push_back(*value.value_);
  return *this;
}

// --- text ----------------------------------------------------------------------------------------

namespace {

// Follows the parser, and refuses what it accepts: keys that occur twice, and a million '[', for
// values are printed recursively.
struct Watcher {
  using Event = nlohmann::json::parse_event_t;
  struct Open {
    std::string key = "";  // whose value is being read
    std::set<std::string> keys = {};
  };
  const std::string& where;
  std::vector<Open> open = {};  // arrays and objects, each within the one before

  [[noreturn]] void refuse(const std::string& why) const {
    std::string path;
    for (size_t i = 0; i + 1 < open.size(); ++i)
      if (!open[i].key.empty()) path += (path.empty() ? ": " : ".") + open[i].key;
    throw UsageError(where + path + ": " + why);
  }
  bool operator()(int, Event event, nlohmann::ordered_json& parsed) {
    if (event == Event::object_end || event == Event::array_end) open.pop_back();
    if (event == Event::object_start || event == Event::array_start) open.emplace_back();
    if (open.size() > 200) refuse("nested deeper than the 200 levels allowed");
    if (event != Event::key) return true;
    auto& [key, keys] = open.back();
    key = parsed.get<std::string>();
    if (!keys.insert(key).second) refuse("the key \"" + key + "\" occurs twice");
    return true;
  }
};

}  // namespace

Json Json::parse(std::string_view text, const std::string& where) {
  Json j;
  j.where_ = std::make_shared<const std::string>(where);
  try {
    Watcher watcher{where};
    *j.value_ = Value::parse(text.begin(), text.end(), std::ref(watcher));
  } catch (const nlohmann::json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    const std::string what = e.what();
    throw UsageError(where + ": not valid JSON: " + what.substr(what.find("] ") + 2));
  }
  return j;
}

Json Json::load(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  require(bool(in), path, cannot_be("opened"));
  std::string text;
  char block[1 << 16];
  while (in.read(block, sizeof block) || in.gcount() > 0) text.append(block, size_t(in.gcount()));
  require(!in.bad(), path, cannot_be("read"));
  return parse(text, path);
}

std::string Json::dump(int indent) const {
  return value_->dump(indent, ' ', false, Value::error_handler_t::replace);
}

// --- read ----------------------------------------------------------------------------------------

Json Json::part(const Value& value, const std::string& key) const {
  Json j = *this;
  j.value_ = std::shared_ptr<Value>(value_, const_cast<Value*>(&value));  // changed only by own()
  if (!key.empty() && where_) {
    j.where_ = std::make_shared<const std::string>(*where_ + (root_ ? ": " : ".") + key);
    j.root_ = false;
  }
  return j;
}

void Json::expect(bool good, const char* expected) const {
  if (!good) fail(expected, dump());
}

void Json::fail(const std::string& expected, std::string found) const {
  if (found.size() > 200) found = found.substr(0, 197) + "...";
  throw UsageError(cat(where(), where_ ? ": " : "", "expected ", expected, ", found ", found));
}

bool Json::is_null() const { return value_->is_null(); }

bool Json::is_integer() const {
  return value_->is_number_integer() &&
      (!value_->is_number_unsigned() || value_->get<uint64_t>() <= INT64_MAX);
}

bool Json::boolean() const {
  expect(value_->is_boolean(), "true or false");
  return value_->get<bool>();
}

int64_t Json::integer(int64_t lo, int64_t hi) const {
  expect(is_integer(), "an integer");
  const auto i = value_->get<int64_t>();
  if (i < lo || i > hi)
    fail(hi == INT64_MAX ? cat("an integer of at least ", lo)
                         : cat("an integer in ", lo, " .. ", hi),
        dump());
  return i;
}

double Json::number() const {
  expect(value_->is_number(), "a number");
  return value_->get<double>();
}

std::string Json::string() const {
  expect(value_->is_string(), "a string");
  return value_->get<std::string>();
}

Json::Array Json::items() const {
  expect(value_->is_array(), "an array");
  Array items;
  for (const Value& item : *value_) items.push_back(part(item));
  return items;
}

Json::Object Json::members() const {
  expect(value_->is_object(), "an object");
  Object members;
  for (const auto& [key, value] : value_->items()) members.emplace_back(key, part(value, key));
  return members;
}

std::optional<Json> Json::find(const std::string& key) const {
  expect(value_->is_object(), "an object");
  const auto it = value_->find(key);
  if (it == value_->end()) return std::nullopt;
  return part(*it, key);
}

Json Json::at(const std::string& key) const {
  if (const auto member = find(key)) return *member;
  std::string keys;
  for (const auto& [name, value] : value_->items())
    keys += (keys.empty() ? "\"" : ", \"") + name + "\"";
  fail(cat("the key \"", key, "\""), keys.empty() ? "no keys" : keys);
}

}  // namespace duet
