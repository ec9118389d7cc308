// Json: the one JSON value of the project, for config.json, metrics.jsonl, schedules, loads, traces
// and --format json. A thin layer over nlohmann::ordered_json, which builds, parses and prints;
// what is added are readers that check.
//
// Members keep the order of insertion. Numbers written with a point or an exponent, or beyond 64
// bits, are doubles; others stay whole, though integer() reads none beyond int64. Doubles are
// printed in the shortest form that reads back to the same bits, NaN and infinity as null; bytes
// that are not UTF-8 as U+FFFD.
//
// A parsed value knows its place ("config.json: rope.theta"; elements of an array share the
// array's), and every accessor throws UsageError naming it, what was expected and what was found.
// So whoever reads a file needs no checks of its own:
//
//   const Json j = Json::load("config.json");
//   const int64_t d_model = j.at("d_model").integer(1, 1 << 20);
//   if (const auto q = j.find("q_lora_rank"); q && !q->is_null()) c.q_lora_rank = q->integer();
//
//   out << Json::object({{"schedule", name}, {"pp", pp}, {"ranks", Json(rows)}}).dump();
//
// Copies are cheap and independent: they share the value until one of them is changed. A part keeps
// the whole alive, so parts of temporaries are safe. Only json.cpp and what reads or writes
// events one by one (insight/trace) include nlohmann/json.hpp, which costs a file three seconds to
// compile.
// Read next: hash.h.
#pragma once
#include <cfloat>
#include <concepts>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
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
  Json() : Json(Scalar(nullptr)) {}
  // templates, so that no pointer turns into a bool
  template <std::same_as<bool> B> Json(B b) : Json(Scalar(b)) {}
  template <std::integral I>
  requires(!std::same_as<I, bool>) Json(I i) : Json(Scalar(int64_t(i))) {}
  template <std::floating_point F> Json(F x) : Json(Scalar(double(x))) {}
  Json(std::string s) : Json(Scalar(std::move(s))) {}
  Json(std::string_view s) : Json(std::string(s)) {}
  Json(const char* s) : Json(std::string(s)) {}
  Json(const Array& items);
  template <class T> explicit Json(const std::vector<T>& v) : Json(Array(v.begin(), v.end())) {}
  static Json array() { return Array(); }
  static Json object(const Object& members = {});
  // adds a member to an object or replaces it; returns the object
  Json& set(const std::string& key, const Json& value);
  Json& push(const Json& value);  // appends to an array; returns the array

  // --- text --- `where` names the text in errors: a file, an option.
  static Json parse(std::string_view text, const std::string& where);
  static Json load(const std::string& path);  // see read_file.h
  std::string dump(int indent = -1) const;    // < 0: all on one line

  // --- read --- all throw UsageError where the value is of another type, or a number is not
  // within lo .. hi
  bool is_null() const;
  bool is_array() const;
  bool is_integer() const;
  bool boolean() const;
  int64_t integer(int64_t lo = INT64_MIN, int64_t hi = INT64_MAX) const;
  double number(double lo = -DBL_MAX, double hi = DBL_MAX) const;  // an integer counts
  std::string string() const;
  Array items() const;
  Object members() const;
  Json at(const std::string& key) const;                   // the object's member, which must exist
  std::optional<Json> find(const std::string& key) const;  // the object's member, if it exists
  // the value's place; empty if it was not parsed
  std::string where() const { return where_ ? *where_ : ""; }

 private:
  using Value = nlohmann::ordered_json;
  using Scalar = std::variant<std::nullptr_t, bool, int64_t, double, std::string>;
  explicit Json(const Scalar& scalar);
  // an element of this array, or with its key a member of this object
  Json part(const Value& value, const std::string& key = "") const;
  Value& own();  // for a change
  void expect(bool good, const char* expected) const;
  [[noreturn]] void fail(const std::string& expected, const std::string& found) const;

  std::shared_ptr<Value> value_;
  std::shared_ptr<const std::string> where_;
  bool root_ = true;  // the whole of a text, or an element of it
};

}  // namespace duet
