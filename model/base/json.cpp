// See json.h.
#include "model/base/json.h"

#include <nlohmann/json.hpp>
#include <set>

#include "model/base/read_file.h"
#include "model/base/text.h"

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

// Makes the value of what the parser meets. The parser's own way looks for each key among those
// before it, which takes minutes where a model's index names 90,000 tensors, and accepts what is
// refused here: keys that occur twice, and a million '[', for values are printed recursively.
struct Builder {
  using Value = nlohmann::ordered_json;
  struct Open {
    Value value;
    std::string key = "";  // whose value is being read
    std::set<std::string> keys = {};
  };
  const std::string& where;
  Value root = {};
  std::vector<Open> open = {};  // arrays and objects, each within the one before

  [[noreturn]] void refuse(const std::string& why) const {
    std::string path;
    for (size_t i = 0; i + 1 < open.size(); ++i)
      if (!open[i].key.empty()) path += (path.empty() ? ": " : ".") + shortened(open[i].key);
    throw UsageError(where + path + ": " + why);
  }
  bool add(Value value) {
    if (open.empty())
      root = std::move(value);
    else if (auto& [outer, key, keys] = open.back(); outer.is_array())
      outer.push_back(std::move(value));
    else
      outer.get_ref<Value::object_t&>().emplace_back(key, std::move(value));
    return true;
  }
  bool begin(Value value) {
    open.push_back({std::move(value)});
    if (open.size() > 200) refuse("nested deeper than the 200 levels allowed");
    return true;
  }
  bool end() {
    Value value = std::move(open.back().value);
    open.pop_back();
    return add(std::move(value));
  }

  // --- what the parser calls ---
  bool null() { return add(nullptr); }
  bool boolean(bool b) { return add(b); }
  bool number_integer(int64_t i) { return add(i); }
  bool number_unsigned(uint64_t i) { return add(i); }
  bool number_float(double x, const std::string&) { return add(x); }
  bool string(std::string& s) { return add(std::move(s)); }
  bool binary(Value::binary_t&) { return false; }  // not in text
  bool start_object(size_t) { return begin(Value::object()); }
  bool start_array(size_t) { return begin(Value::array()); }
  bool end_object() { return end(); }
  bool end_array() { return end(); }
  bool key(std::string& k) {
    open.back().key = k;
    if (!open.back().keys.insert(k).second) refuse("the key \"" + shortened(k) + "\" occurs twice");
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    const std::string what = e.what();
    throw UsageError(
        where + ": not valid JSON: " + shortened(what.substr(what.find("] ") + 2), 300));
  }
};

}  // namespace

Json Json::parse(std::string_view text, const std::string& where) {
  Json j;
  j.where_ = std::make_shared<const std::string>(where);
  Builder builder{where};
  Value::sax_parse(text.begin(), text.end(), &builder);
  *j.value_ = std::move(builder.root);
  return j;
}

Json Json::load(const std::string& path) { return parse(read_file(path), file_name(path)); }

std::string Json::dump(int indent) const {
  return value_->dump(indent, ' ', false, Value::error_handler_t::replace);
}

// --- read ----------------------------------------------------------------------------------------

Json Json::part(const Value& value, const std::string& key) const {
  Json j = *this;
  j.value_ = std::shared_ptr<Value>(value_, const_cast<Value*>(&value));  // changed only by own()
  if (!key.empty() && where_) {
    j.where_ = std::make_shared<const std::string>(*where_ + (root_ ? ": " : ".") + shortened(key));
    j.root_ = false;
  }
  return j;
}

void Json::expect(bool good, const char* expected) const {
  if (!good) fail(expected, dump());
}

void Json::fail(const std::string& expected, const std::string& found) const {
  throw UsageError(
      cat(where(), where_ ? ": " : "", "expected ", expected, ", found ", shortened(found, 200)));
}

bool Json::is_null() const { return value_->is_null(); }

bool Json::is_array() const { return value_->is_array(); }

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

double Json::number(double lo, double hi) const {
  expect(value_->is_number(), "a number");
  const auto x = value_->get<double>();
  if (!(x >= lo && x <= hi))
    fail(hi == DBL_MAX ? cat("a number of at least ", lo) : cat("a number in ", lo, " .. ", hi),
        dump());
  return x;
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
