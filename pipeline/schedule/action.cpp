// See action.h. The text form of actions, out and in.
#include "pipeline/schedule/action.h"

#include <algorithm>
#include <array>

#include "model/base/text.h"

namespace duet {
namespace {

constexpr std::array kNames = {"F", "I", "W", "B", "SEND_F", "RECV_F", "SEND_B", "RECV_B"};
constexpr std::string_view kOverlap = ")OVERLAP_F_B";

std::optional<Action> parse_single(std::string_view text) {
  constexpr const char* kDigits = "0123456789";
  text = trimmed(text);
  const size_t letters = std::min(text.find_first_not_of(kDigits), text.size()),
               digits = std::min(text.find_first_of(kDigits, letters), text.size());
  const std::optional<int> stage = parse_number<int>(text.substr(0, letters)),
                           microbatch = parse_number<int>(text.substr(digits));
  const auto kind = std::ranges::find(kNames, text.substr(letters, digits - letters));
  if (!stage || !microbatch || kind == kNames.end()) return std::nullopt;
  return Action{Kind(kind - kNames.begin()), *stage, *microbatch};
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
