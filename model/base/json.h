// Json: the one JSON value of the project, for config.json, metrics.jsonl, schedules, loads, traces
// and --format json.
//
// A value is null, a bool, an int64, a double, a string, an array or an object whose members keep
// the order of insertion. It is built once and then read. Numbers written with a point or an
// exponent, or beyond int64, are doubles; doubles are printed in the shortest form that reads back
// to the same bits, NaN and infinity as null; bytes that are not UTF-8 as U+FFFD.
//
// A parsed value knows its place ("config.json: rope.theta"; elements of an array share the
// array's), and every accessor throws UsageError naming it, what was expected and what was found.
// So whoever reads a file needs no checks of its own:
//
//   const Json j = Json::load("config.json");
//   const int64_t d_model = j.at("d_model").integer(1, 1 << 20);
//   if (const Json* q = j.find("q_lora_rank"); q && !q->is_null()) c.q_lora_rank = q->integer();
//
//   out << Json::object({{"schedule", name}, {"pp", pp}, {"ranks", Json(rows)}}).dump();
//
// The parser is nlohmann-json, which only json.cpp includes (it costs seconds to compile).
#pragma once
#include <concepts>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "model/base/check.h"

namespace duet {

class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;

  // --- build ---
  Json() = default;  // null
  // a template, so that no pointer turns into a bool
  template <std::same_as<bool> B> Json(B b) : value_(b) {}
  template <std::integral I>
  requires(!std::same_as<I, bool>) Json(I i) : value_(int64_t(i)) {}
  template <std::floating_point F> Json(F x) : value_(double(x)) {}
  Json(std::string s) : value_(std::move(s)) {}
  Json(std::string_view s) : value_(std::string(s)) {}
  Json(const char* s) : value_(std::string(s)) {}
  Json(Array a) : value_(std::move(a)) {}
  template <class T> explicit Json(const std::vector<T>& v) : value_(Array()) {
    for (const auto& x : v) push(Json(x));
  }
  static Json array() { return Json(Array()); }
  static Json object(Object members = {});  // keys must differ

  // adds a member to an object or replaces it; returns the object
  Json& set(std::string key, Json value);
  Json& push(Json value);  // appends to an array; returns the array

  // --- text --- `where` names the text in errors: a file, an option.
  static Json parse(std::string_view text, const std::string& where);
  static Json load(const std::string& path);
  // indent < 0: one line. Otherwise members on lines of their own, and arrays of plain values on
  // one line.
  std::string dump(int indent = -1) const;

  // --- read --- all throw UsageError where the value is of another type, or an integer is not
  // within lo .. hi
  bool is_null() const { return value_.index() == 0; }
  bool is_integer() const { return std::holds_alternative<int64_t>(value_); }
  bool is_number() const { return is_integer() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }
  bool boolean() const;
  int64_t integer(int64_t lo = INT64_MIN, int64_t hi = INT64_MAX) const;
  double number() const;  // an integer counts
  const std::string& string() const&;
  const Array& items() const&;
  const Object& members() const&;
  const Json& at(std::string_view key) const&;    // the object's member, which must exist
  const Json* find(std::string_view key) const&;  // the object's member, or null
  // From a temporary, values instead of references that would dangle: for (const Json& x :
  // Json::load(f).at("files").items())
  std::string string() && { return std::as_const(*this).string(); }
  Array items() && { return std::as_const(*this).items(); }
  Json at(std::string_view key) && { return std::as_const(*this).at(key); }
  void members() && = delete;
  void find(std::string_view key) && = delete;
  // the value's place; empty if it was not parsed
  std::string where() const { return where_ ? *where_ : ""; }

 private:
  friend struct JsonBuilder;
  template <class T> const T& as(const char* expected) const;
  [[noreturn]] void fail(const std::string& expected, std::string found) const;

  std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object> value_ = nullptr;
  std::shared_ptr<const std::string> where_;
};

}  // namespace duet
