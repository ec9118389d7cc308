// See action.h. The text form of actions, out and in.
#include "pipeline/schedule/action.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "model/base/text.h"

namespace duet {
namespace {

constexpr std::array kNames = {"F", "I", "W", "B", "SEND_F", "RECV_F", "SEND_B", "RECV_B"};
constexpr std::string_view kOverlap = ")OVERLAP_F_B";

// Takes a number off the front of `text`; -1 where there is none (or it does not fit an int).
int take_number(std::string_view& text) {
  int value = -1;
  if (text.empty() || text.front() == '-') return -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{}) return -1;
  text.remove_prefix(end - text.data());
  return value;
}

std::optional<Action> parse_single(std::string_view text) {
  Action action;
  text = trimmed(text);
  action.stage = take_number(text);
  const size_t letters = text.find_first_of("0123456789");
  if (action.stage < 0 || letters == text.npos) return std::nullopt;
  const std::string_view name = text.substr(0, letters);
  text.remove_prefix(letters);
  action.microbatch = take_number(text);
  if (action.microbatch < 0 || !text.empty()) return std::nullopt;
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) return std::nullopt;
  action.kind = Kind(found - kNames.begin());
  return action;
}

}  // namespace

const char* kind_name(Kind kind) { return kNames[size_t(kind)]; }

std::string to_string(const Action& a) {
  std::string text = std::to_string(a.stage) + kind_name(a.kind) + std::to_string(a.microbatch);
  if (!a.overlapped()) return text;
  return "(" + text + ";" + std::to_string(a.b_stage) + "B" + std::to_string(a.b_microbatch) +
      std::string(kOverlap);
}

std::optional<Action> parse_action(std::string_view text) {
  text = trimmed(text);
  if (text.empty() || text.front() != '(') return parse_single(text);
  const size_t middle = text.find(';');
  if (middle == text.npos || !text.ends_with(kOverlap)) return std::nullopt;
  auto f = parse_single(text.substr(1, middle - 1));
  text = text.substr(0, text.size() - kOverlap.size());
  const auto b = middle < text.size() ? parse_single(text.substr(middle + 1)) : std::nullopt;
  if (!f || !b || f->kind != Kind::F || b->kind != Kind::B) return std::nullopt;
  f->b_stage = b->stage;
  f->b_microbatch = b->microbatch;
  return f;
}

}  // namespace duet
