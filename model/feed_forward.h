// Phases: the steps of a layer. FeedForward: the second half of a layer, in these steps; model/
// implements the dense one, moe/ the mixture of experts.
//
// A mixture of experts sends tokens to the ranks that hold their experts and back: dispatch,
// experts, combine, each twice (forward, and backward for inputs). What leaves in one phase arrives
// in a later one; so phases of one microbatch's forward and of another's backward can be
// interleaved, one computing while the other's tokens travel. One thread runs them, for each
// microbatch in the order of kForward and kBackwardInput; experts_w comes any time after experts_i,
// attention_w after attention_i. One more liberty: shared_f may come before dispatch_f, where the
// host waits for the choices of all ranks, which say what goes where. Before, there is something to
// compute meanwhile; behind, while the tokens travel.
// Read next: layer.h.
#pragma once
#include <memory>

#include "model/context.h"

namespace duet {

// clang-format off
enum class Phase {
  attention_f, router_f, dispatch_f, shared_f, experts_f, combine_f,  // y from x
  combine_i, shared_i, experts_i, dispatch_i, attention_i,            // dx from dy
  experts_w, attention_w                                              // weight gradients
};
// clang-format on
inline constexpr Phase kForward[] = {Phase::attention_f, Phase::router_f, Phase::dispatch_f,
    Phase::shared_f, Phase::experts_f, Phase::combine_f};
inline constexpr Phase kBackwardInput[] = {
    Phase::combine_i, Phase::shared_i, Phase::experts_i, Phase::dispatch_i, Phase::attention_i};
inline constexpr Phase kBackwardWeight[] = {Phase::experts_w, Phase::attention_w};
constexpr bool is_forward(Phase phase) { return phase <= Phase::combine_f; }

// As traces call it.
constexpr const char* phase_name(Phase phase) {
  constexpr const char* names[] = {"attention F", "router F", "dispatch F", "shared F", "experts F",
      "combine F", "combine I", "shared I", "experts I", "dispatch I", "attention I", "experts W",
      "attention W"};
  return names[int(phase)];
}

class FeedForward {
 public:
  // Of one microbatch: what goes in and comes out, all [tokens, d_model], and what a phase leaves
  // for the next ones. The caller keeps x and dy until experts_w.
  struct Saved {
    virtual ~Saved() = default;
    // [tokens, topk] where tokens choose experts, else null; from router_f on
    virtual const Tensor* chosen_experts() const { return nullptr; }
    int microbatch = 0;
    Tensor x, residual;  // before router_f
    Buf y;               // = residual + ffn(x), of combine_f
    Tensor dy;           // before combine_i
    Buf dx;              // of dispatch_i
  };
  virtual ~FeedForward() = default;
  virtual std::unique_ptr<Saved> make_saved() const = 0;
  virtual void run(Phase phase, Saved& saved) = 0;  // attention's phases do nothing
};

// One SwiGLU network of width d_ff; nothing travels.
std::unique_ptr<FeedForward> make_dense(
    const Context& context, Params& params, const std::string& prefix);

}  // namespace duet
