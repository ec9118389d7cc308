// An action: one thing a rank does, and the text that names it.
//
// The text is that of torch.distributed.pipelining, so that schedules travel between the two
// programs:
//   2F0   forward of stage 2 for microbatch 0             2B0   its full backward (I and W in one)
//   2I0   backward for inputs                             2W0   backward for weights
//   (0F3;15B10)OVERLAP_F_B   the forward 0F3 and the full backward 15B10, which overlap
//   2SEND_F0  stage 2 sends its output on to stage 3      3RECV_F0  stage 3 receives it
//   3SEND_B0  stage 3 sends its input gradient to stage 2 2RECV_B0  stage 2 receives it
// Stages are virtual stages. A generator emits compute actions only; add_comms.h adds the sends and
// receives.
// Read next: schedule.h, the lists of actions.
#pragma once
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace duet {

enum class Kind : std::uint8_t { F, I, W, B, SEND_F, RECV_F, SEND_B, RECV_B };

struct Action {
  Kind kind = Kind::F;
  int stage = 0;
  int microbatch = 0;
  int b_stage = -1;  // of an F that overlaps with a B: the stage and microbatch of that B; -1: none
  int b_microbatch = -1;

  bool overlapped() const { return b_stage >= 0; }
  bool is_comm() const { return kind >= Kind::SEND_F; }
  auto operator<=>(const Action&) const = default;
};

// Of sends and receives.
inline bool is_forward_message(Kind kind) { return kind == Kind::SEND_F || kind == Kind::RECV_F; }
inline bool is_send(Kind kind) { return kind == Kind::SEND_F || kind == Kind::SEND_B; }
inline int other_stage(const Action& comm) {
  return comm.stage + (is_forward_message(comm.kind) == is_send(comm.kind) ? 1 : -1);
}

// Calls part(Action) for the action itself or, where it is an overlapped pair, for its F and then
// for its B.
template <class Part> void for_parts(const Action& a, Part part) {
  part(Action{a.kind, a.stage, a.microbatch});
  if (a.overlapped()) part(Action{Kind::B, a.b_stage, a.b_microbatch});
}

const char* kind_name(Kind kind);  // "F", "SEND_F", ...
std::string to_string(const Action& action);
// spaces around it are ignored; nullopt where the text is no action
std::optional<Action> parse_action(std::string_view);

}  // namespace duet
