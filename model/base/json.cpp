// Json on top of nlohmann-json's event parser and its number and string printers. The only file
// that includes it.
// Read next: json.h has the contract; pipeline/checkpoint/safetensors.cpp is a user.
#include "model/base/json.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

namespace duet {

// Receives the parser's events and puts each value in its slot of the tree. A slot's place is known
// before its value.
struct JsonBuilder {
  // values are destroyed recursively: a million '[' must not overflow the stack
  static constexpr size_t kMaxDepth = 200;
  Json root;
  std::vector<Json*> open = {};  // arrays and objects, each within the one before
  std::string error = {};

  Json* add(Json value) {
    Json* slot = &root;
    if (!open.empty() && open.back()->is_array()) {
      slot = &std::get<Json::Array>(open.back()->value_).emplace_back();
      slot->where_ = open.back()->where_;
    } else if (!open.empty()) {
      slot = &std::get<Json::Object>(open.back()->value_).back().second;
    }
    slot->value_ = std::move(value.value_);
    return slot;
  }
  bool begin(Json value) {
    open.push_back(add(std::move(value)));
    return open.size() <= kMaxDepth ||
        fail(cat("nested deeper than the ", kMaxDepth, " levels allowed"));
  }
  bool end() {
    open.pop_back();
    return true;
  }
  bool fail(const std::string& what) {
    error = cat(open.back()->where(), ": ", what);
    return false;
  }

  bool null() { return add(Json()); }
  bool boolean(bool b) { return add(b); }
  bool number_integer(int64_t i) { return add(i); }
  bool number_unsigned(uint64_t u) { return u <= INT64_MAX ? add(int64_t(u)) : add(double(u)); }
  bool number_float(double x, const std::string&) { return add(x); }
  bool string(std::string& s) { return add(std::move(s)); }
  bool binary(std::vector<uint8_t>&) { return false; }
  bool start_array(size_t) { return begin(Json::array()); }
  bool end_array() { return end(); }
  bool start_object(size_t) { return begin(Json::object()); }
  bool key(std::string& k) {
    const std::string place = open.back()->where() + (open.size() == 1 ? ": " : ".") + k;
    auto& members = std::get<Json::Object>(open.back()->value_);
    members.emplace_back(std::move(k), Json()).second.where_ =
        std::make_shared<const std::string>(place);
    return true;
  }
  bool end_object() {
    std::vector<std::string_view> names;
    for (const auto& [name, value] : open.back()->members()) names.push_back(name);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    return twice == names.end() ? end() : fail(cat("the key \"", *twice, "\" occurs twice"));
  }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    const std::string text = e.what();
    const size_t prefix = text.find("] ");
    error = cat(root.where(),
        ": not valid JSON: ", text.substr(prefix == std::string::npos ? 0 : prefix + 2));
    return false;
  }
};

Json Json::parse(std::string_view text, const std::string& where) {
  JsonBuilder builder;
  builder.root.where_ = std::make_shared<const std::string>(where);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder))
    throw UsageError(builder.error);
  return std::move(builder.root);
}

Json Json::load(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  require(bool(in), path, ": cannot be opened: ", std::strerror(errno));
  std::string text;
  char block[1 << 16];
  while (in.read(block, sizeof block) || in.gcount() > 0) text.append(block, size_t(in.gcount()));
  require(!in.bad(), path, ": cannot be read: ", std::strerror(errno));
  return parse(text, path);
}

Json Json::object(Object members) {
  Json j;
  j.value_ = std::move(members);
  return j;
}

Json& Json::set(std::string key, Json value) {
  auto& members = std::get<Object>(value_);
  for (auto& [name, old] : members) {
    if (name != key) continue;
    old = std::move(value);
    return *this;
  }
  members.emplace_back(std::move(key), std::move(value));
  return *this;
}

Json& Json::push(Json value) {
  std::get<Array>(value_).push_back(std::move(value));
  return *this;
}

namespace {

std::string quoted(const std::string& s) {
  return nlohmann::json(s).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// indent < 0: all on one line.
void print(const Json& j, int indent, int depth, std::string& out) {
  const auto new_line = [&](int d) {
    if (indent >= 0) out.append("\n").append(size_t(indent * d), ' ');
  };
  const char* separator = "";
  if (j.is_object()) {
    out += '{';
    for (const auto& [name, value] : j.members()) {
      out += std::exchange(separator, ",");
      new_line(depth + 1);
      out += quoted(name) + (indent < 0 ? ":" : ": ");
      print(value, indent, depth + 1, out);
    }
    if (!j.members().empty()) new_line(depth);
    out += '}';
  } else if (j.is_array()) {
    const auto& items = j.items();
    const bool plain = std::none_of(
        items.begin(), items.end(), [](const Json& x) { return x.is_array() || x.is_object(); });
    out += '[';
    for (const Json& item : items) {
      out += std::exchange(separator, plain && indent >= 0 ? ", " : ",");
      if (!plain) new_line(depth + 1);
      print(item, indent, depth + 1, out);
    }
    if (!plain) new_line(depth);
    out += ']';
  } else if (j.is_string()) {
    out += quoted(j.string());
  } else if (j.is_integer()) {
    out += std::to_string(j.integer());
  } else if (j.is_number()) {
    out += nlohmann::json(j.number()).dump();
  } else {
    out += j.is_null() ? "null" : j.boolean() ? "true" : "false";
  }
}

}  // namespace

std::string Json::dump(int indent) const {
  std::string out;
  print(*this, indent, 0, out);
  return out;
}

void Json::fail(const std::string& expected, std::string found) const {
  if (found.size() > 200) found = found.substr(0, 197) + "...";
  throw UsageError(cat(where(), where_ ? ": " : "", "expected ", expected, ", found ", found));
}

template <class T> const T& Json::as(const char* expected) const {
  const T* value = std::get_if<T>(&value_);
  if (!value) fail(expected, dump());
  return *value;
}

bool Json::boolean() const { return as<bool>("true or false"); }
const std::string& Json::string() const& { return as<std::string>("a string"); }
const Json::Array& Json::items() const& { return as<Array>("an array"); }
const Json::Object& Json::members() const& { return as<Object>("an object"); }

int64_t Json::integer(int64_t lo, int64_t hi) const {
  const int64_t i = as<int64_t>("an integer");
  if (i < lo || i > hi)
    fail(hi == INT64_MAX ? cat("an integer of at least ", lo)
                         : cat("an integer in ", lo, " .. ", hi),
        dump());
  return i;
}

double Json::number() const {
  if (const int64_t* i = std::get_if<int64_t>(&value_)) return double(*i);
  return as<double>("a number");
}

const Json* Json::find(std::string_view key) const& {
  for (const auto& [name, value] : members())
    if (name == key) return &value;
  return nullptr;
}

const Json& Json::at(std::string_view key) const& {
  if (const Json* value = find(key)) return *value;
  std::string keys;
  for (const auto& member : members()) keys += (keys.empty() ? "\"" : ", \"") + member.first + "\"";
  fail(cat("the key \"", key, "\""), keys.empty() ? "no keys" : keys);
}

}  // namespace duet
