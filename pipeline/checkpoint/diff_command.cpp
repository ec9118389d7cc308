// See diff_command.h.
#include "pipeline/checkpoint/diff_command.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <set>
#include <sstream>

#include "model/base/command_line.h"
#include "model/base/temporary_folder.h"
#include "model/base/text.h"
#include "pipeline/checkpoint/checkpoint.h"

namespace duet {

// --- the order of the forward pass ---------------------------------------------------------------

// The place in `parts` of the first that `name` has in it.
static size_t place_of(std::span<const char* const> parts, std::string_view name) {
  const auto in = [&](const char* part) { return name.find(part) != name.npos; };
  return size_t(std::find_if(parts.begin(), parts.end(), in) - parts.begin());
}

// The number after `part`, or -1.
static int64_t number_after(std::string_view part, std::string_view name) {
  const size_t at = name.find(part);
  if (at == name.npos) return -1;
  const std::string_view rest = name.substr(at + part.size());
  return parse_number<int64_t>(rest.substr(0, rest.find('.'))).value_or(-1);
}

ForwardPlace forward_place(const std::string& name) {
  static constexpr const char *kKinds[] = {"grad.", "m.", "v."},
                              *kModel[] = {"input_ids", "targets", "embed_tokens", "layer",
                                  "model.norm", "lm_head", "logits", "loss"},
                              *kLayer[] = {"input_layernorm", "q_a_proj", "q_a_layernorm",
                                  "q_b_proj", "q_proj", "kv_a_proj", "kv_a_layernorm", "kv_b_proj",
                                  "o_proj", "self_attn", "post_attention_layernorm", "mlp.gate.",
                                  "topk_idx", "shared_experts", "mlp.", "output"},
                              *kExpert[] = {"gate_proj", "up_proj", "down_proj"};
  const auto begins = [&](const char* kind) { return name.starts_with(kind); };
  const auto kind = std::find_if(std::begin(kKinds), std::end(kKinds), begins);
  const int group = kind == std::end(kKinds) ? 0 : int(kind - kKinds) + 1;
  const int64_t layer = std::max(number_after("layers.", name), number_after("layer.", name));
  return {group, place_of(kModel, name), layer, place_of(kLayer, name),
      number_after("experts.", name), place_of(kExpert, name), name};
}

// --- reading -------------------------------------------------------------------------------------

namespace {

namespace fs = std::filesystem;
using Located = TensorFiles::Located;

// Of a run's folder its newest checkpoint; else the path itself.
std::string meant_by(const std::string& path) {
  const std::string newest = fs::is_directory(path) ? newest_checkpoint(path) : "";
  return newest.empty() ? path : newest;
}

std::string moments_of(const std::string& path) {
  return meant_by(path) + "/optimizer.safetensors";
}

TensorFiles open_side(const std::string& path, bool moments) {
  TensorFiles side(meant_by(path));
  if (moments) side.add(moments_of(path));
  return side;
}

constexpr int64_t kPiece = 1 << 16;  // elements, or bytes, in memory at a time

bool same_bytes(const Located& a, const Located& b) {
  const auto piece = [](const Located& t, int64_t at) {
    return t.file->bytes(*t.entry, at, std::min(kPiece, t.entry->size - at));
  };
  bool same = a.entry->dtype == b.entry->dtype && a.entry->size == b.entry->size;
  for (int64_t at = 0; same && at < a.entry->size; at += kPiece)
    same = piece(a, at) == piece(b, at);
  return same;
}

// fn(index, a, b) of every element, as long as it returns true.
template <class Fn> void for_each_element(const Located& a, const Located& b, const Fn& fn) {
  const int64_t n = a.entry->elements();
  for (int64_t at = 0; at < n; at += kPiece) {
    const int64_t count = std::min(kPiece, n - at);
    const auto x = a.file->values<long double>(*a.entry, at, count),
               y = b.file->values<long double>(*b.entry, at, count);
    for (int64_t i = 0; i < count; ++i)
      if (!fn(at + i, x[size_t(i)], y[size_t(i)])) return;
  }
}

// --- comparing -----------------------------------------------------------------------------------

long double difference(long double a, long double b) {
  if (a == b || (std::isnan(a) && std::isnan(b))) return 0;
  const long double d = std::abs(a - b);
  return std::isnan(d) ? INFINITY : d;
}

struct TensorDiff {
  std::string name, a, b;  // dtypes and shapes; empty: missing
  bool same_shape = false;
  double absolute = 0, relative = 0;
  std::optional<int64_t> first;         // element beyond the tolerance
  std::string index, a_value, b_value;  // of that
  bool agrees() const { return same_shape && !first; }
  bool equal() const { return agrees() && absolute == 0; }
};

bool all_agree(const std::vector<TensorDiff>& diffs) {
  return std::all_of(diffs.begin(), diffs.end(), [](const TensorDiff& d) { return d.agrees(); });
}

std::string index_text(const std::vector<int64_t>& shape, int64_t element) {
  std::string text;
  for (size_t d = shape.size(); d-- > 0; element /= shape[d])
    text = cat(element % shape[d], text.empty() ? "" : ", ", text);
  return "[" + text + "]";
}

std::string value_text(const Located& tensor, long double value) {
  const std::string& dtype = tensor.entry->dtype;
  return format("%.*Lg", dtype == "I64" ? 19 : dtype == "F64" ? 17 : 9, value);
}

TensorDiff compare(
    const std::string& name, const TensorFiles& a, const TensorFiles& b, double tolerance) {
  TensorDiff d{.name = name};
  const auto x = a.tensors.find(name), y = b.tensors.find(name);
  if (x != a.tensors.end()) d.a = x->second.entry->text();
  if (y != b.tensors.end()) d.b = y->second.entry->text();
  d.same_shape = !d.a.empty() && !d.b.empty() && x->second.entry->shape == y->second.entry->shape;
  if (!d.same_shape) return d;
  if (same_bytes(x->second, y->second)) return d;
  if (!x->second.entry->readable() || !y->second.entry->readable()) {
    d.absolute = d.relative = INFINITY;
    d.first = 0, d.index = "[]";
    d.a_value = d.b_value = "a dtype that is not read, only compared byte by byte";
    return d;
  }

  long double largest = 0, magnitude = 0;
  for_each_element(x->second, y->second, [&](int64_t, long double u, long double v) {
    largest = std::max(largest, difference(u, v));
    for (long double w : {u, v})
      if (std::isfinite(w)) magnitude = std::max(magnitude, std::abs(w));
    return true;
  });
  d.absolute = double(largest);
  d.relative = largest == 0 ? 0 : double(largest / magnitude);  // inf where there is none
  for_each_element(x->second, y->second, [&](int64_t i, long double u, long double v) {
    if (difference(u, v) <= (long double)(tolerance)*magnitude) return true;
    d.first = i;
    d.index = index_text(x->second.entry->shape, i);
    d.a_value = value_text(x->second, u);
    d.b_value = value_text(y->second, v);
    return false;
  });
  return d;
}

// --- printing ------------------------------------------------------------------------------------

void print_text(const std::vector<TensorDiff>& diffs, double tolerance, std::ostream& out) {
  const TensorDiff* first = nullptr;
  size_t width = 6, identical = 0, within = 0;
  for (const TensorDiff& d : diffs) {
    if (!first && d.first) first = &d;
    identical += d.equal();
    within += d.agrees() && !d.equal();
    if (!d.equal()) width = std::max(width, d.name.size());
  }
  const auto line = [&](const std::string& name, const std::string& rest) {
    out << one_line(name) << std::string(width - name.size() + 2, ' ') << rest << "\n";
  };
  if (identical < diffs.size()) line("tensor", "largest |A-B|      relative");
  for (const TensorDiff& d : diffs)
    if (d.a.empty() || d.b.empty())
      line(d.name, d.a.empty() ? "missing in A, B has " + d.b : "missing in B, A has " + d.a);
    else if (!d.same_shape)
      line(d.name, cat("A has ", d.a, ", B has ", d.b));
    else if (!d.equal())
      line(d.name,
          format("%13.6g %13.6g%s", d.absolute, d.relative,
              d.agrees() ? "  within the tolerance" : ""));
  out << diffs.size() << " tensors: " << identical << " equal, " << within << " within, "
      << diffs.size() - identical - within << " differ\n";
  if (first)
    out << "the first beyond " << tolerance << ": " << one_line(first->name) << " " << first->index
        << ", element " << *first->first << ": A " << first->a_value << ", B " << first->b_value
        << "\n";
}

void print_json(const std::vector<TensorDiff>& diffs, double tolerance, std::ostream& out) {
  Json tensors = Json::array(), first;
  const auto text = [](const std::string& s) { return s.empty() ? Json() : Json(s); };
  for (const TensorDiff& d : diffs) {
    Json j = Json::object(
        {{"tensor", d.name}, {"a", text(d.a)}, {"b", text(d.b)}, {"agrees", d.agrees()}});
    if (d.same_shape) j.set("largest_absolute", d.absolute).set("largest_relative", d.relative);
    if (d.first)
      j.set("first_beyond",
          Json::object({{"element", *d.first}, {"index", Json::parse(d.index, "index")},
              {"a", d.a_value}, {"b", d.b_value}}));
    if (d.first && first.is_null()) first = d.name;
    tensors.push(j);
  }
  out << Json::object({{"tolerance", tolerance}, {"agree", all_agree(diffs)},
                          {"first_beyond", first}, {"tensors", tensors}})
             .dump(2)
      << "\n";
}

}  // namespace

// Of two dumps made on the spot.
static bool demonstrate(DiffOptions o, const MakeDumps& make_dumps, std::ostream& out) {
  const TemporaryFolder folder;
  std::ostringstream unheard;
  const auto [a, b] = make_dumps(folder.path, o.format == Format::json ? unheard : out);
  o.a = a;
  o.b = b;
  if (o.format == Format::text) out << "\n";
  return diff_command(o, out);
}

void add_diff_command(CLI::App& duet, int& exit_status, MakeDumps make_dumps) {
  Command cli(duet, "diff",
      "compare the tensors of two dumps or checkpoints; exit status 1 if one differs");
  const auto o = std::make_shared<DiffOptions>();
  const char* what = "safetensors file, its index, or checkpoint";
  cli.text("A", o->a, what);
  cli.text("B", o->b, what);
  cli.number("--tolerance", o->tolerance, 0, 1e30,
      "difference that counts as none, as a part of the tensor's largest magnitude");
  cli.choice("--format", o->format, {Format::text, Format::json}, format_name,
      "json: every tensor, also those that are equal");
  cli.runs([o, make_dumps = std::move(make_dumps), &exit_status] {
    const bool none = o->a.empty() && o->b.empty();
    const bool agree = none ? demonstrate(*o, make_dumps, std::cout) : diff_command(*o, std::cout);
    exit_status = agree ? 0 : 1;
  });
}

static std::set<ForwardPlace> places_of(const TensorFiles& a, const TensorFiles& b) {
  std::set<ForwardPlace> places;
  for (const TensorFiles* side : {&a, &b})
    for (const auto& [name, tensor] : side->tensors) places.insert(forward_place(name));
  return places;
}

std::string first_difference(const std::string& path_a, const std::string& path_b) {
  const TensorFiles a = open_side(path_a, false), b = open_side(path_b, false);
  for (const ForwardPlace& place : places_of(a, b)) {
    const TensorDiff d = compare(std::get<std::string>(place), a, b, 0);
    if (!d.agrees()) return cat(d.name, " ", d.index);
  }
  return "";
}

bool diff_command(const DiffOptions& o, std::ostream& out) {
  require(!o.a.empty() && !o.b.empty(), "A, B: found ", o.a.empty() ? "none" : "only A",
      ", allowed: two dumps or two checkpoints");
  const bool moments = fs::exists(moments_of(o.a)) && fs::exists(moments_of(o.b));
  const TensorFiles a = open_side(o.a, moments), b = open_side(o.b, moments);
  const std::set<ForwardPlace> places = places_of(a, b);
  require(places.size() < a.tensors.size() + b.tensors.size(),
      "A, B: found no tensor in common in ", shortened(o.a), " and ", shortened(o.b),
      ", allowed: two dumps or two checkpoints");
  std::vector<TensorDiff> diffs;
  for (const ForwardPlace& place : places)
    diffs.push_back(compare(std::get<std::string>(place), a, b, o.tolerance));
  (o.format == Format::json ? print_json : print_text)(diffs, o.tolerance, out);
  return all_agree(diffs);
}

}  // namespace duet
